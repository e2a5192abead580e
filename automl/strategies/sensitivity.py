"""Sensitivity analysis: prune targets one at a time, then put the best policy together.

The classic of the field (Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017; Han et
al., 2015, choose thresholds by it), made to use a number of trials as well as it can:

1. The uniform policy, so that the result is never worse, and the dense network.
2. The analysis: damage of each target alone at some counts (``sensitivity_analysis``). It does not
   depend on the budget: with the same journal, a search for another budget pays only for what
   follows.
3. Policies from it, each within the budget and using it: by additive damage
   (``sensitivity_solver``), also of its powers and of other metrics that the scorer reports, and by
   one threshold that all targets' damage stays below.
4. The trials that are left refine: a Gaussian process with the analysis as its mean is fitted to
   the complete policies tried so far (``sensitivity_model``). Of neighbours of the best ones, and
   of what is best if the analysis erred at random, the one that it expects most of is tried next.

The result is the best policy tried, by the problem's own score.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from automl.fitting import Floats, Ints
from automl.hints import did_you_mean
from automl.problem import Problem, Trial, best_within
from automl.strategies.sensitivity_analysis import (
    SCORE,
    Analysis,
    curves,
    damages,
    least_damage,
    plan_probes,
)
from automl.strategies.sensitivity_model import Interaction
from automl.strategies.sensitivity_solver import Solver
from automl.types import InputError, Kept, SearchResult

_log = logging.getLogger(__name__)

POLICIES = ("additive", "threshold")

#: Powers of the damages that are added up at first; below 1 favours pruning few targets hard.
_EXPONENTS = (1.0, 0.75, 1.25)
#: Metrics that are added up at first, beside the one that was chosen.
_METRICS = ("kl", "loss")
#: Neighbours that are thought of, twice for each policy tried, and of how many of the best.
_NEIGHBOURS, _PARENTS = 128, 6
#: Policies thought of that are best for the analysis with errors, and the errors' width (log).
_ELSEWHERE, _ERROR = 2, 0.4
#: Entries of the table of damages beyond which solving takes seconds: then neighbours must do.
_QUICKLY_SOLVED = 1000
#: Policies that the process is fitted to; of more, the best half of these and the latest half.
_MOST_FITTED = 500
#: The uniform policy, the dense network, and one policy from the analysis.
OVERHEAD = 3


@dataclass(frozen=True)
class Sensitivity:
    """Searches by sensitivity analysis; see the module's docstring.

    Attributes:
        policy: How a policy is made from the analysis: ``additive`` (least sum of damages, then
            refined) or ``threshold`` (no target's own damage above one threshold; one policy).
        damage: What is added up: ``score`` (what the problem ranks by) or a metric of the scorer.
        analysis: Part of the trials that may go to the analysis, in [0, 1]. Where that is less
            than one per target, up to one per target is taken all the same.
        refine: Whether the trials that are left refine the policy.
    """

    policy: str = "additive"
    damage: str = SCORE
    analysis: float = 0.25
    refine: bool = True

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
            InputError: ``policy`` is unknown.
            ValueError: ``analysis`` is out of range.
        """
        if self.policy not in POLICIES:
            hint = did_you_mean(self.policy, POLICIES)
            raise InputError(f"no sensitivity policy is called {self.policy!r}; {hint}")
        if not 0 <= self.analysis <= 1:
            raise ValueError(f"Sensitivity.analysis must be in [0, 1], got {self.analysis}")

    def search(self, problem: Problem, trials: int, seed: int) -> SearchResult:
        """Scores at most ``trials`` policies, the analysis included.

        Raises:
            InputError: The scorer does not report ``damage``.
            SearchStopped: Too many trials in a row failed, or none met the budget.
            ValueError: ``trials`` is below 1.
        """
        if trials < 1:
            raise ValueError(f"Sensitivity.trials must be >= 1, got {trials}")
        return _Search(self, problem, trials, np.random.default_rng(seed)).run()


def analyse(problem: Problem, probes: int) -> Analysis:
    """Measures the dense network and ``probes`` policies, fewer where the grids hold no more."""
    planned = plan_probes(problem, probes)
    dense = problem.evaluate(problem.policy(problem.space.units.copy()), allow_over_budget=True)
    policies = [problem.policy(probe.kept) for probe in planned]
    trials = problem.evaluate_many(policies, allow_over_budget=True, near=dense.policy)
    return Analysis(dense, tuple(planned), tuple(trials))


def by_threshold(problem: Problem, table: Floats) -> Kept:
    """The largest policy within the budget in which no damage alone exceeds one threshold.

    As the threshold falls, targets get units back in the order of the damage that each step ends;
    steps that still fit when the budget is reached are taken too.

    Args:
        problem: Grids and budget.
        table: Damages, ``Solver.table``.
    """
    space = problem.space
    first = space.level(space.low)

    def when(target: Ints, fraction: Floats) -> Floats:
        # ``fraction`` lies midway between two counts; the lower one's damage is what ends.
        level = np.floor(fraction * space.units[target] / space.step[target]).astype(np.int64)
        return np.asarray(-table[target, level - first[target]])

    return problem.climb(when)


class Informed:
    """What an analysis tells about complete policies; for searches that start from one.

    Policies are kept counts of shape (targets,).
    """

    def __init__(self, problem: Problem, analysis: Analysis, damage: str = SCORE) -> None:
        """Fits damage curves.

        Args:
            problem: Grids and budget.
            analysis: What was measured.
            damage: What is added up: ``score`` or a metric that the scorer reports.

        Raises:
            InputError: The scorer does not report it.
        """
        self.solver = Solver(problem)
        self.table = self.solver.table(curves(problem, analysis, damage))
        self._problem, self._analysis, self._damage = problem, analysis, damage
        self._counts: dict[str, Kept] = {}

    def first(self) -> Iterator[Kept]:
        """The policies that the analysis suggests by itself, the most trustworthy first.

        Each is within the budget and uses it; some may be equal.
        """
        solver, analysis = self.solver, self._analysis
        yield solver.kept(solver.solve(self.table))
        for exponent in _EXPONENTS[1:]:
            yield solver.kept(solver.solve(self.table**exponent))
        yield by_threshold(self._problem, self.table)
        measured = {} if analysis.dense.measurement is None else analysis.dense.measurement.metrics
        for metric in _METRICS:
            if metric in measured and metric != self._damage:
                other = solver.table(curves(self._problem, analysis, metric))
                yield solver.kept(solver.solve(other))

    def near(self, parents: Sequence[Kept], rng: np.random.Generator) -> Kept:
        """Random neighbours of policies, within the budget and using it, (policies, targets)."""
        at = self.solver.positions(np.stack(parents))
        return self.solver.kept(self.solver.neighbours(at, _NEIGHBOURS, rng))

    def judge(self, trials: Sequence[Trial]) -> Callable[[Kept], Floats] | None:
        """How much policies (policies, targets) are worth trying, by the complete ones tried.

        None where no trial tells anything.
        """
        tried = _most_telling([trial for trial in trials if trial.status != "failed"])
        damage = damages(self._analysis.dense, tried)
        if not (damage > 0).any():
            return None
        damage = np.maximum(damage, least_damage(damage))
        kept = np.array([self._kept(trial) for trial in tried])
        units = self._problem.space.units
        model = Interaction.fitted(self.alone(kept), kept / units, damage)
        return lambda some: model.improvement(self.alone(some), some / units)

    def _kept(self, trial: Trial) -> Kept:
        if trial.policy.key not in self._counts:
            self._counts[trial.policy.key] = trial.policy.kept(self._problem.targets)
        return self._counts[trial.policy.key]

    def alone(self, kept: Kept) -> Floats:
        """Damage of every target alone, (policies, targets)."""
        return np.asarray(self.table[np.arange(len(self.table)), self.solver.positions(kept)])


def _most_telling(trials: list[Trial]) -> list[Trial]:
    """The best ones and the latest, in their order: time and memory grow faster than trials."""
    if len(trials) <= _MOST_FITTED:
        return trials
    half = _MOST_FITTED // 2
    best = {t.policy.key for t in sorted(trials, key=lambda trial: -trial.score)[:half]}
    others = sorted((t for t in trials if t.policy.key not in best), key=lambda t: t.index)
    latest = {trial.policy.key for trial in others[-half:]}
    return [trial for trial in trials if trial.policy.key in best | latest]


def probes_for(problem: Problem, trials: int, share: float) -> int:
    """How many of ``trials`` go to the analysis; the same for every budget."""
    free = sum(len(grid) > 1 for grid in problem.grids)
    return max(0, min(max(int(share * trials), free), trials - OVERHEAD))


class _Search:
    """One search's state."""

    def __init__(
        self, settings: Sensitivity, problem: Problem, trials: int, rng: np.random.Generator
    ) -> None:
        self._settings, self._problem, self._trials, self._rng = settings, problem, trials, rng
        self._solver = Solver(problem)
        self._found: dict[str, Trial] = {}
        # Trials within the budget, and what they keep.
        self._complete: list[Trial] = []
        self._counts: list[Kept] = []

    def run(self) -> SearchResult:
        problem = self._problem
        self._try(problem.fit(np.ones(len(problem.targets))))
        if self._trials > 1:
            probes = probes_for(problem, self._trials, self._settings.analysis)
            analysis = analyse(problem, probes)
            self._add(analysis.dense)
            for trial in analysis.trials:
                self._add(trial)
            self._continue(analysis)
        found = tuple(self._found.values())
        exhausted = self._settings.refine and self._left > 0
        return SearchResult(best_within(problem, found).policy, found, exhausted)

    def _continue(self, analysis: Analysis) -> None:
        informed = Informed(self._problem, analysis, self._settings.damage)
        for kept in self._first(informed):
            if self._left:
                self._try(kept)
        while self._left and self._goes_on:
            wanted = self._next(informed)
            if wanted is None:
                break
            self._try(wanted)

    @property
    def _goes_on(self) -> bool:
        """Whether to refine; without refinement, only until there is a result."""
        return self._settings.refine or all(t.status == "failed" for t in self._complete)

    # ---- candidates

    def _first(self, informed: Informed) -> Iterator[Kept]:
        """Policies from the analysis alone."""
        if self._settings.policy == "threshold":
            yield by_threshold(self._problem, informed.table)
        elif self._settings.refine:
            yield from informed.first()
        else:
            yield next(informed.first())

    def _next(self, informed: Informed) -> Kept | None:
        """What the model, fitted to all complete policies so far, wants to try; None: no more."""
        pairs = list(zip(self._complete, self._counts, strict=True))
        pairs = [pair for pair in pairs if pair[0].status != "failed"] or pairs
        pairs.sort(key=lambda pair: -pair[0].score)
        tried, kept = [trial for trial, _ in pairs], np.array([counts for _, counts in pairs])
        merit = informed.judge(tried) or (lambda some: -informed.alone(some).sum(axis=1))
        pool = self._around(np.concatenate([kept[:_PARENTS], self._elsewhere(informed.table)]))
        if len(pool):
            pool = np.concatenate([pool, self._around(pool[_order(merit(pool))[:_PARENTS]])])
        return pool[_order(merit(pool))[0]] if len(pool) else None

    def _elsewhere(self, table: Floats) -> Kept:
        """The best policies if the analysis erred at random, (policies, targets)."""
        if table.size > _QUICKLY_SOLVED:
            return np.zeros((0, len(table)), np.int64)
        errors = np.exp(_ERROR * self._rng.standard_normal((_ELSEWHERE, len(table))))
        found = [self._solver.solve(table * error[:, None], kicks=0) for error in errors]
        return self._solver.kept(np.array(found))

    def _around(self, parents: Kept) -> Kept:
        """New policies among these and their neighbours, (policies, targets), no two alike."""
        known = {kept.tobytes() for kept in self._counts}
        at = self._solver.positions(parents)
        near = self._solver.neighbours(at, _NEIGHBOURS, self._rng)
        kept = self._solver.kept(np.unique(np.concatenate([at, near]), axis=0))
        return kept[[one.tobytes() not in known for one in kept]]

    # ---- trials

    @property
    def _left(self) -> int:
        return self._trials - len(self._found)

    def _try(self, kept: Kept) -> None:
        self._add(self._problem.evaluate(self._problem.policy(kept), race=True))

    def _add(self, trial: Trial) -> None:
        if trial.policy.key in self._found:
            return
        self._found[trial.policy.key] = trial
        kept = trial.policy.kept(self._problem.targets)
        if self._problem.within(kept):
            self._complete.append(trial)
            self._counts.append(kept)


def _order(merit: Floats) -> Ints:
    """Positions by falling merit, the first of equals first."""
    return np.argsort(-merit, kind="stable")
