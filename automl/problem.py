"""The problem a search solves: prune a network within a budget so that it scores best.

Everything that trials have in common is here and nowhere in the strategies: budgets, the journal
and its cache, failures, repeatable random numbers, progress. Nothing here imports torch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike

from automl.budget import Budget, beside_limits
from automl.engines import Done, Engine
from automl.engines.errors import place_of
from automl.engines.serial import Serial
from automl.fitting import Bools, Constraints, Floats, Schedule, Space, climb, fit
from automl.hashing import digest
from automl.journal import Journal, Row
from automl.policy import Policy
from automl.racing import Floats as Losses
from automl.racing import Leader, Leaders, Racing
from automl.runner import Examiner, Job, Outcome, Runner, now, run_trial
from automl.trials import (
    KnownRows,
    SearchStopped,
    Status,
    Trial,
    TrialLog,
    best,
    check_row,
    trial_of,
    trial_row,
)
from automl.types import CostModel, InputError, Kept, Measurement, Resource, Scorer, Target

__all__ = [
    "Plan", "Problem", "Pruner", "Ranker", "SearchStopped", "Trial", "TrialLog", "best",
    "best_within", "limited", "trial_row",
]  # fmt: skip

_log = logging.getLogger(__name__)

#: For fewer trials, what a network like them has computed is not worth computing.
_FEWEST_NEAR = 4


class Plan(Protocol):
    """The part of ``automl.plan.IndexPlan`` that a problem needs."""

    @property
    def targets(self) -> tuple[Target, ...]:
        """What can be pruned, in network order."""


class Pruner(Protocol):
    """Turns kept counts into networks; ``automl.pruning.pruner.Pruner``."""

    @property
    def fingerprint(self) -> str:
        """Identifies criterion, reconstruction and calibration; part of the journal's key."""

    @property
    def model_hash(self) -> str:
        """``weights_hash`` of the dense network."""

    def policy(self, kept: Kept) -> Policy:
        """Chooses which units to keep."""

    def prune(self, policy: Policy) -> Any:
        """The slim, repaired network."""


@runtime_checkable
class Ranker(Protocol):
    """A pruner that can say how important the units of every target are."""

    def unit_scores(self, criterion: str | None, **settings: Any) -> list[Floats]:
        """Scores of every target's units, shape (units,); None is the pruner's criterion."""


def limited(
    budget: Budget,
    space: Space,
    cost_models: Mapping[Resource, CostModel],
    dense_costs: Mapping[str, float],
) -> Constraints:
    """The limits of a budget on what a network costs.

    Args:
        budget: As it was given.
        space: The counts that may be kept.
        cost_models: Resource -> cost model.
        dense_costs: Resource -> cost of the dense network.

    Raises:
        InputError: A resource has no cost model, or the smallest network breaks a limit.
    """
    found = Constraints(cost_models, budget.resolve(dense_costs))
    try:
        found.require_reachable(space)
    except InputError as error:
        if all(limit.relative for limit in budget.limits):
            raise
        hint = "numbers up to 1 are fractions of the dense network"
        raise InputError(f"{error} ({hint})") from None
    return found


class Problem:
    """Evaluates policies of one network under one budget; the only way to a trial.

    A policy is scored once: asked again, in this process or from the journal of an earlier one,
    its trial is answered at once. Strategies that are deterministic in their seed therefore
    resume by running again.

    Attributes:
        plan: Structure of the dense network.
        targets: What can be pruned, in network order.
        space: How many units each target may keep.
        budget: The budget as given.
        limits: The budget in absolute values, by resource.
        dense_costs: Costs of the dense network, by resource.
        model_hash: ``weights_hash`` of the dense network.
    """

    def __init__(
        self,
        plan: Plan,
        pruner: Pruner,
        scorer: Scorer,
        budget: Budget | Mapping[str, Any],
        cost_models: Mapping[Resource, CostModel],
        *,
        rounding: int | Sequence[int] = 8,
        min_keep: float = 0.0,
        journal: TrialLog | None = None,
        known: Iterable[Row] = (),
        on_trial: Callable[[Trial], None] | None = None,
        max_failures: int = 3,
        prepare: Callable[[Any], Any] | None = None,
        engine: Engine | None = None,
        racing: Racing | None = None,
        reuse: bool = True,
    ) -> None:
        """Checks that the budget can be met; scores nothing yet.

        Args:
            plan: Structure of the dense network.
            pruner: Makes slim networks.
            scorer: Scores them on held-out data.
            budget: What they may cost (see ``Budget.parse``).
            cost_models: What they do cost; all are reported, those in the budget limit.
            rounding: Kept counts are multiples of this (see ``automl.fitting.step_for``); one
                for each target, or one for all.
            min_keep: Least fraction of its units that every target keeps.
            journal: Where trials are written and looked up; None keeps them in memory.
            known: Rows of other journals. A trial found there is not scored again, but written to
                the journal when it is first asked for.
            on_trial: Called after every new trial, those answered by the journal included.
            max_failures: So many failed trials in a row stop the search.
            prepare: What is done to a slim network before it is scored and changes no output
                (folding batch norm); None scores it as it is.
            engine: Where trials run; None runs them here, one after the other. It changes no
                result and stays open.
            racing: How trials race, where a strategy lets them; None scores every trial on all
                examples. Other journals then answer nothing that races.
            reuse: Whether trials that begin like another network start from its activations,
                where the pruner and the scorer can; it changes no result. Trials that may race
                never do.

        Raises:
            InputError: There is nothing to prune, the budget is malformed or out of reach, or
                the scorer cannot race.
            ValueError: ``max_failures`` is below 1.
        """
        if max_failures < 1:
            raise ValueError(f"Problem.max_failures must be >= 1, got {max_failures}")
        self.plan = plan
        self.targets = tuple(plan.targets)
        self.space = Space.of(self.targets, rounding, min_keep)
        self.budget = Budget.parse(budget)
        self.model_hash = pruner.model_hash
        self._pruner, self._scorer = pruner, scorer
        self._runner = Runner(pruner, scorer, prepare)
        self._engine: Engine = Serial() if engine is None else engine
        if racing is not None and not isinstance(scorer, Examiner):
            raise InputError("racing needs the loss of every example: use a ClassifierScorer")
        self._racing, self._reuses = racing, reuse
        self._leaders = Leaders(racing or Racing())
        self._losses: dict[str, Losses] = {}  # of the trials of a round
        self._cost_models = dict(cost_models)
        self.dense_costs = self.costs(self.space.units)
        self._constraints = limited(self.budget, self.space, self._cost_models, self.dense_costs)
        self.limits = dict(self._constraints.limits)
        self._journal = journal
        self._on_trial = on_trial
        self._max_failures = max_failures
        self._failures_in_a_row = 0
        self._places: dict[int, str] = {}  # where failed trials failed, in the user's own code
        self._raised: BaseException | None = None
        self._trials: dict[str, Trial] = {}
        self._rows = KnownRows(journal, max_failures)
        self._known = {row["key"]: row for row in map(check_row, known) if row["status"] == "ok"}
        self._is_prepared = False

    # ---- arithmetic

    @property
    def grids(self) -> tuple[Kept, ...]:
        """The counts that each target may keep, ascending."""
        return self.space.grids()

    def costs(self, kept: Kept) -> dict[str, float]:
        """All costs of one network by resource; kept counts of shape (targets,)."""
        return {str(name): float(model(kept)) for name, model in self._cost_models.items()}

    def cost_of(self, resource: Resource, kept: Kept) -> Floats:
        """One cost; batched, (..., targets) gives (...)."""
        return np.asarray(self._cost_models[resource](kept), np.float64)

    def within(self, kept: Kept) -> Bools:
        """Whether the budget is met; batched, (..., targets) gives (...)."""
        return self._constraints(kept)

    def cost(self, policy: Policy) -> dict[str, float]:
        """All costs of a policy by resource.

        Raises:
            InputError: The policy is of another network.
        """
        return self.costs(policy.kept(self.targets))

    def fit(self, desired: ArrayLike) -> Kept:
        """The largest kept counts within the budget towards a wish (see ``fitting.fit``)."""
        return fit(desired, self.space, self._constraints)

    def climb(self, when: Schedule) -> Kept:
        """The largest kept counts within the budget in an order (see ``fitting.climb``)."""
        return climb(when, self.space, self._constraints)

    def policy(self, kept: Kept) -> Policy:
        """The policy that keeps these counts, with the units that the pruner's criterion picks."""
        return self._pruner.policy(kept)

    def unit_scores(self, criterion: str | None = None, **settings: Any) -> list[Floats]:
        """How important the units of every target are, higher is better.

        Args:
            criterion: A name from conf/criterion; None for the one that chooses units.
            settings: Replace those of the criterion's file.

        Returns:
            One array of shape (units,) per target.

        Raises:
            InputError: There is no such criterion, it lacks data, or units are not ranked here.
        """
        if not isinstance(self._pruner, Ranker):
            raise InputError("this strategy ranks whole channels; choose granularity=channel")
        return self._pruner.unit_scores(criterion, **settings)

    # ---- trials

    @cached_property
    def dense(self) -> Measurement:
        """The dense network's measurement, by the same road as every trial.

        Raises:
            InputError: It cannot be scored, so no pruned network can.
        """
        policy = self.policy(self.space.units.copy())
        (trial,) = self._measured([self._job(self._key(policy), policy, -1)])
        if trial.measurement is None:
            text = f"{trial.error}{self._places.get(-1, '')}"
            raise InputError(f"the dense network cannot be scored: {text}") from self._raised
        return trial.measurement

    @property
    def trials(self) -> tuple[Trial, ...]:
        """All distinct policies that were asked for, in order."""
        return tuple(self._trials.values())

    def evaluate(
        self, policy: Policy, *, allow_over_budget: bool = False, race: bool = False
    ) -> Trial:
        """Prunes and scores a policy, unless that was done before.

        Args:
            policy: What to try.
            allow_over_budget: Accept a policy that breaks the budget, to learn from it.
            race: Whether the trial may be discarded where it falls behind the best so far; it
                never is unless the problem has ``racing`` and the policy is within the budget.

        Returns:
            The trial, failed if pruning or scoring raised or the score is not a finite number.

        Raises:
            InputError: The policy is of another network or other weights.
            ValueError: The policy is over budget.
            SearchStopped: Too many trials in a row failed.
        """
        return self.evaluate_many([policy], allow_over_budget=allow_over_budget, race=race)[0]

    def evaluate_many(
        self,
        policies: Sequence[Policy],
        *,
        allow_over_budget: bool = False,
        race: bool = False,
        near: Policy | None = None,
    ) -> list[Trial]:
        """Evaluates policies that do not depend on each other's results; see ``evaluate``.

        All are checked before the first is scored. The engine may score several at a time, and
        each is written as it finishes; all else goes in the order of ``policies``, so that the
        results, and where failures stop the search, are the same with every engine. Where they
        race, rounds of them do, each against the leaders that there were before it.

        Args:
            policies: What to try.
            allow_over_budget: As for ``evaluate``.
            race: As for ``evaluate``.
            near: A policy from which each differs in few targets. What its network computes up to
                there is then computed once; it changes no result.
        """
        for policy in policies:
            self._check(policy, allow_over_budget)
        race = race and self._racing is not None
        keys = [self._key(policy) for policy in policies]
        new: dict[str, Policy] = {}
        for key, policy in zip(keys, policies, strict=True):
            if not self._is_answered(key, race):
                new.setdefault(key, policy)
        for jobs in self._rounds(new, race):
            if near is not None and self._reuses:
                jobs = [replace(job, near=near) for job in jobs]
            self._run_round(jobs, race)
        found = []
        for key in keys:  # what was known, and a policy's second time, come from the cache
            cached = new.pop(key, None) is None
            found.append(replace(self._trials[key], cached=True) if cached else self._trials[key])
        return found

    def _is_answered(self, key: str, race: bool) -> bool:
        known = self._trials.get(key)
        return known is not None and (race or known.status != "discarded")

    def _check(self, policy: Policy, allow_over_budget: bool) -> None:
        policy.check(self.targets, self.model_hash)
        kept = policy.kept(self.targets)
        if allow_over_budget or self.within(kept):
            return
        over = beside_limits(self.costs(kept), self.limits)
        raise ValueError(f"Problem.evaluate: policy must be within budget, got {over}")

    def _key(self, policy: Policy) -> str:
        parts = (self.model_hash, self._pruner.fingerprint, self._scorer.fingerprint, policy.key)
        return digest(*parts)

    def _job(self, key: str, policy: Policy, index: int) -> Job:
        # What is over the budget neither races nor leads, so that its losses are not needed.
        may_lead = self._racing is not None and bool(self.within(policy.kept(self.targets)))
        return Job(key, policy, index, examined=may_lead)

    def _rounds(self, new: Mapping[str, Policy], race: bool) -> Iterator[list[Job]]:
        """The jobs of policies; all at once, or as many as race against the same leaders."""
        jobs, fresh = [], len(self._trials)
        for key, policy in new.items():
            known = self._trials.get(key)  # discarded before, and now asked for in full
            jobs.append(self._job(key, policy, fresh if known is None else known.index))
            fresh += known is None
        size = self._racing.round if race and self._racing is not None else max(len(jobs), 1)
        for start in range(0, len(jobs), size):
            yield jobs[start : start + size]

    def _run_round(self, jobs: Sequence[Job], race: bool) -> None:
        finished = []
        with closing(self._measured(jobs, race)) as trials:
            for job, trial in zip(jobs, trials, strict=True):
                self._trials[job.key] = trial
                self._account(trial)
                if trial.status == "ok" and job.examined:
                    finished.append(Leader(job.key, trial, self._losses.get(job.key)))
        self._losses.clear()
        self._leaders.add(finished)

    def _measured(self, jobs: Sequence[Job], race: bool = False) -> Generator[Trial, None, None]:
        """The trials of distinct policies in order, from the journal or by scoring them."""
        ready: dict[int, Trial] = {}
        for at, job in enumerate(jobs):
            known = self._known_trial(job, race)
            if known is not None:
                ready[at] = known
        missing = [at for at in range(len(jobs)) if at not in ready]
        with closing(self._submitted([jobs[at] for at in missing], race)) as results:
            for at in range(len(jobs)):
                while at not in ready:
                    done = next(results)
                    there = missing[done.index]
                    ready[there] = self._finished(jobs[there], done)
                yield ready.pop(at)

    def _known_trial(self, job: Job, race: bool) -> Trial | None:
        """From the journal, or from another one that was given, and then written to the journal."""
        rows = self._rows
        row = rows.race(job.key, self._leaders.bar_name) if race else rows.get(job.key)
        if row is not None:
            return trial_of(row, job.index, job.policy, self.cost(job.policy))
        other = None if race else self._known.get(job.key)
        if other is None:
            return None
        trial = trial_of(other, job.index, job.policy, self.cost(job.policy))
        self._write(job.key, trial)
        return trial

    def _submitted(self, jobs: Sequence[Job], race: bool) -> Generator[Done, None, None]:
        if jobs:
            if sum(not job.examined for job in jobs) < _FEWEST_NEAR:
                jobs = [replace(job, near=None) for job in jobs]
            jobs = self._against_the_leaders(jobs) if race else jobs
            yield from self._engine.submit(run_trial, jobs, self._shared)

    def _against_the_leaders(self, jobs: Sequence[Job]) -> Sequence[Job]:
        """The jobs with a bar to pass, once there are enough leaders."""
        last = self._leaders.last
        if last is None:
            return jobs
        if last.losses is None:  # the journal knows only the score
            job = self._job(last.key, last.trial.policy, last.trial.index)
            (done,) = self._engine.submit(run_trial, [job], self._shared)
            last.losses = None if done.value is None else done.value.losses
        if last.losses is None:
            raise SearchStopped(f"the best trial so far cannot be scored again: {_error(done)}")
        bar = self._leaders.bar(last.losses)
        return [replace(job, bar=bar) if job.examined else job for job in jobs]

    @property
    def _shared(self) -> int:
        """What the engine calls the pruner and the scorer."""
        if self._engine.isolated and not self._is_prepared:
            self._runner.prepare(self.policy(self.space.units.copy()))
            self._is_prepared = True
        return self._engine.put(self._runner)

    def _finished(self, job: Job, done: Done) -> Trial:
        """The trial of a result that just came in, written to the journal."""
        found: Outcome | None = done.value
        error, detail, index = _error(done), done.detail, job.index
        seconds, time = 0.0, now()
        measurement = None
        status: Status = "failed"
        if found is not None:
            detail, seconds, time = found.detail or detail, found.seconds, found.time
            if found.score is not None:
                measurement = Measurement(found.score, found.metrics, self.cost(job.policy))
                status = "discarded" if found.discarded else "ok"
            if found.losses is not None:
                self._losses[job.key] = found.losses
        if error is not None:
            # The journal holds one line; whoever looks for the cause wants to see where.
            _log.info("trial %d failed: %s\n%s", index, error, detail)
            self._places[index] = place_of(detail)
            self._raised = None if found is None else found.raised
        trial = Trial(index, job.policy, measurement, status, error, seconds, time)
        # A dense network that cannot be scored ends the search at once; journalled, it would
        # do so even after the cause is gone.
        if trial.status != "failed" or index >= 0:
            self._write(job.key, trial)
        return trial

    def _write(self, key: str, trial: Trial) -> None:
        row = {"key": key, **trial_row(trial)}
        if trial.status == "discarded":
            row["bar"] = self._leaders.bar_name
        if self._journal is not None:
            self._journal.append(row)
        self._rows.add(row)

    def _account(self, trial: Trial) -> None:
        self._failures_in_a_row = self._failures_in_a_row + 1 if trial.status == "failed" else 0
        if self._on_trial is not None:
            self._on_trial(trial)
        if self._failures_in_a_row >= self._max_failures:
            then = ", then resume" if isinstance(self._journal, Journal) else ""
            raise SearchStopped(
                f"{self._failures_in_a_row} trials in a row failed, the last with {trial.error}"
                f"{self._places.get(trial.index, '')}; mend that{then}"
            )


def best_within(problem: Problem, trials: Sequence[Trial]) -> Trial:
    """The best of the trials that meet the budget (see ``best``).

    Raises:
        SearchStopped: None meets it, or none of those that do succeeded.
    """
    allowed = [t for t in trials if problem.within(t.policy.kept(problem.targets))]
    if not allowed and any(trial.status == "ok" for trial in trials):
        raise SearchStopped(
            f"none of {len(trials)} trials met the budget; allow more trials or a larger budget"
        )
    return best(allowed)


def _error(done: Done) -> str | None:
    """Why there is no score, one line: of the engine, or of the trial itself."""
    return done.error if done.value is None else done.value.error
