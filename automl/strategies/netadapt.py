"""NetAdapt: prunes one target a little, keeps the best, and repeats until the budget is met.

Yang et al., "NetAdapt: Platform-Aware Neural Network Adaptation for Mobile Applications", ECCV 2018
(arXiv 1804.03230), algorithm 1. As in the paper: every iteration asks for a reduction of the
resource that decays; for every target the largest keep count that meets it is one candidate; all
candidates are scored; the best goes on. The networks of all iterations are kept.

Deviations:

* Candidates are pruned from the DENSE network and repaired by least squares, so that a trial
  depends on its policy alone: it can be cached, run beside others and resumed. The paper goes on
  training the winner's weights. Short training of every candidate is a setting of the problem
  (``short_term``), for every strategy alike.
* Targets are coupled groups of layers; keep counts lie on the rounding grid.
* The last step lands on the budget, and what a step took beyond it is given back to the hardest
  pruned targets (``netadapt_steps.repaid``): no result is over budget, none wastes it. The official
  code keeps the overshoot.
* The step follows from the trials that are there (a given ``step`` is enlarged if it must be). Too
  few for any step, and the rest of the way is one shrink of all targets alike (``Problem.fit``).
  One trial is always held back for that. Where it is not needed, it scores all targets pruned
  alike from the start, so that no result is worse than that (``guard``).
* Of several resources the most violated one is reduced; a candidate may not raise another beyond
  its limit.
* Three rules for the winner (``winner``). The paper's is ``score``; but steps land on a grid, and
  where one candidate saves three times what was asked, the best score only says that another
  saved less. ``ratio``, which the official code has too, is the default.

``strategy=netadapt_paper`` sets what can be set as in the paper.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from automl.hints import did_you_mean
from automl.problem import Problem, Trial, best_within
from automl.strategies.netadapt_family import Member, save
from automl.strategies.netadapt_steps import Iteration, excess, repaid
from automl.types import InputError, Kept, SearchResult

_log = logging.getLogger(__name__)

Winner = Literal["score", "ratio", "saving"]
WINNERS: tuple[Winner, ...] = ("score", "ratio", "saving")


class NetAdapt:
    """Searches by adapting one target at a time; see the module's docstring.

    It draws no random numbers: the seed changes nothing.

    Attributes:
        family: The networks of the last search, the dense one first.
    """

    def __init__(
        self,
        winner: Winner = "ratio",
        step: float | None = None,
        decay: float = 0.96,
        tolerance: float = 0.0,
        guard: bool = True,
    ) -> None:
        """Sets the rules.

        Args:
            winner: Which candidate goes on. ``ratio``: the one that loses least score per
                resource saved, as a fraction of dense; where some lose nothing, the one of them
                that saves most. ``score``: the one that scores best. ``saving``: of those that
                lose nothing the one that saves most; where all lose, the one that scores best.
            step: What the first iteration removes, as a fraction of the dense network's cost;
                None takes the smallest for which there are trials.
            decay: Every step is so many times the one before, in (0, 1].
            tolerance: A loss of score that ``ratio`` and ``saving`` take for nothing, >= 0.
            guard: Whether a trial goes to the network whose targets are all pruned alike.

        Raises:
            InputError: The rule is unknown.
            ValueError: A number is out of range.
        """
        if winner not in WINNERS:
            raise InputError(f"no winner is called {winner!r}; {did_you_mean(winner, WINNERS)}")
        if step is not None and not 0 < step <= 1:
            raise ValueError(f"NetAdapt.step must be None or in (0, 1], got {step}")
        if not 0 < decay <= 1:
            raise ValueError(f"NetAdapt.decay must be in (0, 1], got {decay}")
        if not 0 <= tolerance < float("inf"):
            raise ValueError(f"NetAdapt.tolerance must be >= 0 and finite, got {tolerance}")
        self.winner, self.step, self.decay, self.tolerance = winner, step, decay, tolerance
        self.guard = guard
        self.family: tuple[Member, ...] = ()
        self._dense_costs: dict[str, float] = {}

    def search(self, problem: Problem, trials: int, seed: int) -> SearchResult:
        """Adapts the network until the budget is met.

        The dense network is a trial too. ``trials`` should be ten or more times the number of
        targets: that is ten iterations.

        Raises:
            SearchStopped: Too many trials in a row failed.
            ValueError: ``trials`` is below 1.
        """
        if trials < 1:
            raise ValueError(f"NetAdapt.trials must be >= 1, got {trials}")
        session = _Session(problem, self, trials)
        result = session.run()
        self.family, self._dense_costs = tuple(session.family), dict(problem.dense_costs)
        return result

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the family of the last search: family.csv, and its policies in family/.

        Args:
            path: A folder.

        Returns:
            The table.
        """
        return save(Path(path), self.family, self._dense_costs)[0]


class _Session:
    """One search.

    Attributes:
        family: The networks chosen so far.
    """

    def __init__(self, problem: Problem, settings: NetAdapt, trials: int) -> None:
        self.family: list[Member] = []
        self._problem, self._settings, self._trials = problem, settings, trials
        self._found: dict[str, Trial] = {}

    def run(self) -> SearchResult:
        """Iterates from the dense network to the budget."""
        kept = self._problem.space.high.copy()
        # The dense network is worth a trial if it is the result or there are others beside it.
        if self._problem.within(kept) or self._trials > 2:
            self.family.append(Member(0, None, 1, self._evaluate([kept])[0]))
        while not self._problem.within(kept):
            adapted = self._adapt(kept)
            if adapted is None:
                self._shrink(kept)
                break
            kept = adapted
        if self._settings.guard and len(self._found) < self._trials:
            self._evaluate([self._problem.fit(np.ones(len(kept)))])
        chosen = best_within(self._problem, list(self._found.values()))
        self._close(chosen)
        return SearchResult(chosen.policy, tuple(self._found.values()))

    # ---- one iteration

    def _adapt(self, kept: Kept) -> Kept | None:
        """The winner's counts; None where there is no candidate, or none could be scored."""
        iteration = Iteration.of(self._problem, kept)
        counts = self._counts(iteration, kept)
        candidates = [self._changed(kept, *change) for change in sorted(counts.items())]
        trials = self._evaluate(candidates, near=kept)
        scored = [i for i, trial in enumerate(trials) if trial.status == "ok"]
        if not scored:
            return None
        winner = scored[self._winner(iteration, [trials[i] for i in scored])]
        name = self._problem.targets[sorted(counts)[winner]].name
        self.family.append(Member(self._iteration, name, len(trials), trials[winner]))
        return candidates[winner]

    def _counts(self, iteration: Iteration, kept: Kept) -> dict[int, int]:
        """Target -> count of the candidates; empty where there are too few trials for a step."""
        problem, decay = self._problem, self._settings.decay
        limit = problem.limits[iteration.resource]
        left = self._trials - len(self._found) - 1  # one is held back for ``_shrink``
        total = sum(excess(problem, kept).values())
        smallest = iteration.smallest_step(total, decay, limit, left)
        if smallest is None:
            return {}
        if self._settings.step is not None:
            asked = self._settings.step * decay ** (self._iteration - 1)
            counts = iteration.counts(max(asked, smallest), limit)
            if 1 <= len(counts) <= left:
                return counts
        return iteration.counts(smallest, limit)

    def _changed(self, kept: Kept, target: int, count: int) -> Kept:
        changed = kept.copy()
        changed[target] = count
        return repaid(self._problem, changed) if self._problem.within(changed) else changed

    def _winner(self, iteration: Iteration, trials: Sequence[Trial]) -> int:
        """Position of the candidate that goes on."""
        scores = [trial.score for trial in trials]
        allowed = [i for i, trial in enumerate(trials) if self._within(trial)]
        rule = self._settings.winner
        if allowed or rule == "score":  # within the budget nothing more needs to be saved
            return max(allowed or range(len(trials)), key=lambda i: scores[i])
        now = self.family[-1].trial if self.family else trials[0]
        before = now.score if now.status == "ok" else max(scores)
        losses = [before - score - self._settings.tolerance for score in scores]
        savings = [_saving(iteration, trial) for trial in trials]
        harmless = [i for i, loss in enumerate(losses) if loss <= 0]
        if harmless:
            return max(harmless, key=lambda i: savings[i])
        if rule == "saving":
            return max(range(len(trials)), key=lambda i: scores[i])
        return min(range(len(trials)), key=lambda i: losses[i] / savings[i])

    # ---- the end

    def _shrink(self, kept: Kept) -> None:
        """Goes the rest of the way in one trial, all targets alike."""
        _log.warning(
            "NetAdapt: after %d of %d trials no single target could be pruned on; "
            "the rest of the way all were, alike: more trials would help",
            len(self._found),
            self._trials,
        )
        shrunk = self._problem.fit(kept / self._problem.space.units)
        (trial,) = self._evaluate([shrunk])
        self.family.append(Member(self._iteration, None, 1, trial))

    def _close(self, chosen: Trial) -> None:
        """Makes what was chosen the family's last member, and its only one within the budget."""
        if self.family[-1].trial.policy != chosen.policy:
            self.family = [one for one in self.family if not self._within(one.trial)]
            self.family.append(Member(self._iteration, None, 1, chosen))

    # ---- trials

    @property
    def _iteration(self) -> int:
        """Number of the iteration to come, from 1."""
        return self.family[-1].iteration + 1 if self.family else 1

    def _within(self, trial: Trial) -> bool:
        return bool(self._problem.within(trial.policy.kept(self._problem.targets)))

    def _evaluate(self, candidates: Sequence[Kept], near: Kept | None = None) -> list[Trial]:
        policies = [self._problem.policy(kept) for kept in candidates]
        like = None if near is None else self._problem.policy(near)
        trials = self._problem.evaluate_many(policies, allow_over_budget=True, near=like)
        for trial in trials:
            self._found.setdefault(trial.policy.key, trial)
        return trials


def _saving(iteration: Iteration, trial: Trial) -> float:
    """How much less of the resource a candidate costs, as a fraction of dense."""
    assert trial.measurement is not None  # for the type checker: candidates were scored
    return (iteration.cost - trial.measurement.costs[iteration.resource]) / iteration.dense
