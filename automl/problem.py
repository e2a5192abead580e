"""The problem a search solves: prune a network within a budget so that it scores best.

Everything that trials have in common is here and nowhere in the strategies: budgets, the journal
and its cache, failures, repeatable random numbers, progress. Nothing here imports torch.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby, takewhile
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike

from automl.budget import Budget
from automl.engines import Done, Engine
from automl.engines.serial import Serial
from automl.fitting import Bools, Constraints, Floats, Schedule, Space, climb, fit
from automl.hashing import digest
from automl.journal import Row
from automl.policy import Policy
from automl.runner import Job, Runner, now, run_trial
from automl.types import CostModel, InputError, Kept, Measurement, Resource, Scorer, Target

_log = logging.getLogger(__name__)

Status = Literal["ok", "failed"]

#: How errors begin, or what they say, whose cause is the machine and not the policy.
_OUTSIDE = re.compile(
    r"^(MemoryError|OutOfMemoryError|OSError|PermissionError)\b|can't allocate memory"
)


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


class TrialLog(Protocol):
    """Where finished trials are written; ``automl.journal.Journal``, or a list to forget them."""

    def __iter__(self) -> Iterator[Row]:
        """All rows in the order written."""

    def append(self, row: Row, /) -> None:
        """Writes a row."""


class SearchStopped(RuntimeError):
    """Several trials in a row failed: the fault is not in the policies."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One policy and what became of it.

    Attributes:
        index: Position among the distinct policies that the problem was asked for, from 0;
            -1 for the dense network.
        policy: What was tried.
        measurement: What was measured; None where the trial failed.
        status: ``ok`` or ``failed``.
        error: Why it failed, one line.
        seconds: How long pruning and scoring took; like ``time``, not part of equality.
        time: When it was done, UTC, in ISO 8601.
        cached: Whether it was answered without scoring; not part of equality.
    """

    index: int
    policy: Policy
    measurement: Measurement | None
    status: Status
    error: str | None
    seconds: float = field(compare=False)
    time: str = field(compare=False, default="")
    cached: bool = field(compare=False, default=False)

    @property
    def score(self) -> float:
        """The score; minus infinity where the trial failed."""
        return -math.inf if self.measurement is None else self.measurement.score


def best(trials: Sequence[Trial]) -> Trial:
    """The trial with the highest score, the earliest of equals.

    Raises:
        SearchStopped: No trial succeeded.
    """
    succeeded = [trial for trial in trials if trial.status == "ok"]
    if not succeeded:
        reason = f": {trials[-1].error}" if trials else ""
        raise SearchStopped(f"no trial succeeded{reason}")
    return max(succeeded, key=lambda trial: trial.score)


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

        Raises:
            InputError: There is nothing to prune, or the budget is malformed or out of reach.
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
        self._cost_models = dict(cost_models)
        self.dense_costs = self.costs(self.space.units)
        self.limits = self.budget.resolve(self.dense_costs)
        self._constraints = Constraints(self._cost_models, self.limits)
        self._constraints.require_reachable(self.space)
        self._journal = journal
        self._on_trial = on_trial
        self._max_failures = max_failures
        self._failures_in_a_row = 0
        self._trials: dict[str, Trial] = {}
        self._rows = _known_rows(journal, max_failures)
        self._known = {row["key"]: row for row in known if row["status"] == "ok"}
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
        (trial,) = self._measured([Job(self._key(policy), policy)], -1)
        if trial.measurement is None:
            raise InputError(f"the dense network cannot be scored: {trial.error}")
        return trial.measurement

    @property
    def trials(self) -> tuple[Trial, ...]:
        """All distinct policies that were asked for, in order."""
        return tuple(self._trials.values())

    def evaluate(self, policy: Policy, *, allow_over_budget: bool = False) -> Trial:
        """Prunes and scores a policy, unless that was done before.

        Args:
            policy: What to try.
            allow_over_budget: Accept a policy that breaks the budget, to learn from it.

        Returns:
            The trial, failed if pruning or scoring raised or the score is not a finite number.

        Raises:
            InputError: The policy is of another network or other weights.
            ValueError: The policy is over budget.
            SearchStopped: Too many trials in a row failed.
        """
        return self.evaluate_many([policy], allow_over_budget=allow_over_budget)[0]

    def evaluate_many(
        self, policies: Sequence[Policy], *, allow_over_budget: bool = False
    ) -> list[Trial]:
        """Evaluates policies that do not depend on each other's results; see ``evaluate``.

        All are checked before the first is scored. The engine may score several at a time, and
        each is written as it finishes; all else goes in the order of ``policies``, so that the
        results, and where failures stop the search, are the same with every engine.
        """
        for policy in policies:
            self._check(policy, allow_over_budget)
        keys = [self._key(policy) for policy in policies]
        new: dict[str, Policy] = {}
        for key, policy in zip(keys, policies, strict=True):
            if key not in self._trials:
                new.setdefault(key, policy)
        jobs = [Job(key, policy) for key, policy in new.items()]
        with closing(self._measured(jobs, len(self._trials))) as trials:
            for job, trial in zip(jobs, trials, strict=True):
                self._trials[job.key] = trial
                self._account(trial)
        found = []
        for key in keys:  # what was known, and a policy's second time, come from the cache
            cached = new.pop(key, None) is None
            found.append(replace(self._trials[key], cached=True) if cached else self._trials[key])
        return found

    def _check(self, policy: Policy, allow_over_budget: bool) -> None:
        policy.check(self.targets, self.model_hash)
        kept = policy.kept(self.targets)
        if allow_over_budget or self.within(kept):
            return
        costs = self.costs(kept)
        over = [f"{name} {costs[name]:,.6g} of {most:,.6g}" for name, most in self.limits.items()]
        raise ValueError(f"Problem.evaluate: policy must be within budget, got {', '.join(over)}")

    def _key(self, policy: Policy) -> str:
        parts = (self.model_hash, self._pruner.fingerprint, self._scorer.fingerprint, policy.key)
        return digest(*parts)

    def _measured(self, jobs: Sequence[Job], first: int) -> Generator[Trial, None, None]:
        """The trials of policies in order, from the journal or by scoring them.

        Args:
            jobs: Distinct ones.
            first: Index of the first.
        """
        ready: dict[int, Trial] = {}
        for at, job in enumerate(jobs):
            known = self._known_trial(job, first + at)
            if known is not None:
                ready[at] = known
        missing = [at for at in range(len(jobs)) if at not in ready]
        with closing(self._submitted([jobs[at] for at in missing])) as results:
            for at in range(len(jobs)):
                while at not in ready:
                    done = next(results)
                    there = missing[done.index]
                    ready[there] = self._finished(jobs[there], done, first + there)
                yield ready.pop(at)

    def _known_trial(self, job: Job, index: int) -> Trial | None:
        """From the journal, or from another one that was given, and then written to the journal."""
        trial = self._replayed(self._rows.get(job.key), job.policy, index)
        if trial is None:
            trial = self._replayed(self._known.get(job.key), job.policy, index)
            if trial is not None:
                self._write(job.key, trial)
        return trial

    def _submitted(self, jobs: Sequence[Job]) -> Generator[Done, None, None]:
        if jobs:
            yield from self._engine.submit(run_trial, jobs, self._shared)

    @property
    def _shared(self) -> int:
        """What the engine calls the pruner and the scorer."""
        if self._engine.isolated and not self._is_prepared:
            self._runner.prepare(self.policy(self.space.units.copy()))
            self._is_prepared = True
        return self._engine.put(self._runner)

    def _finished(self, job: Job, done: Done, index: int) -> Trial:
        """The trial of a result that just came in, written to the journal."""
        found, error, detail = done.value, done.error, done.detail
        seconds, time = 0.0, now()
        measurement = None
        if error is None:
            error, detail, seconds, time = found.error, found.detail, found.seconds, found.time
            if found.score is not None:
                measurement = Measurement(found.score, found.metrics, self.cost(job.policy))
        if error is not None:
            # The journal holds one line; whoever looks for the cause wants to see where.
            _log.info("trial %d failed: %s\n%s", index, error, detail)
        status: Status = "failed" if measurement is None else "ok"
        trial = Trial(index, job.policy, measurement, status, error, seconds, time)
        # A dense network that cannot be scored ends the search at once; journalled, it would
        # do so even after the cause is gone.
        if trial.status == "ok" or index >= 0:
            self._write(job.key, trial)
        return trial

    def _replayed(self, row: Row | None, policy: Policy, index: int) -> Trial | None:
        if row is None:
            return None
        measurement = None
        if row["status"] == "ok":
            measurement = Measurement(row["score"], row["metrics"], self.cost(policy))
        rest = (row["status"], row["error"], row["seconds"], row["time"])
        return Trial(index, policy, measurement, *rest, cached=True)

    def _write(self, key: str, trial: Trial) -> None:
        row = {"key": key, **trial_row(trial)}
        if self._journal is not None:
            self._journal.append(row)
        self._rows[key] = row

    def _account(self, trial: Trial) -> None:
        self._failures_in_a_row = 0 if trial.status == "ok" else self._failures_in_a_row + 1
        if self._on_trial is not None:
            self._on_trial(trial)
        if self._failures_in_a_row >= self._max_failures:
            raise SearchStopped(
                f"{self._failures_in_a_row} trials in a row failed, the last with {trial.error}; "
                "mend that, then resume"
            )


def trial_row(trial: Trial) -> Row:
    """A trial as plain data, for journals and tables."""
    found = trial.measurement
    return {
        "index": trial.index,
        "status": trial.status,
        "score": None if found is None else found.score,
        "metrics": None if found is None else dict(found.metrics),
        "costs": None if found is None else dict(found.costs),
        "seconds": trial.seconds,
        "time": trial.time,
        "kept": [decision.kept for decision in trial.policy.decisions],
        "policy": trial.policy.key,
        "error": trial.error,
    }


def _known_rows(journal: TrialLog | None, max_failures: int) -> dict[str, Row]:
    """What the journal answers, by key.

    The failures that stopped an earlier run are left out: whoever resumes has mended their cause,
    and answered from the journal they would stop this run at the same place. In the journal they
    are the last rows, unless other trials ran beside them; by index they are in a row anyway.
    Failures that were not the policy's fault (no memory, a full disk) are left out too: scored
    again, the run comes to the result that it would have had without them.
    """
    rows = [] if journal is None else [row for row in journal if not _was_outside(row)]
    by_index = sorted(rows, key=lambda row: int(row["index"]))
    stopped = {id(row) for row in _in_a_row(by_index, max_failures)}
    last = [id(row) for row in takewhile(lambda row: row["status"] == "failed", reversed(rows))]
    if len(last) >= max_failures:
        stopped.update(last)
    return {row["key"]: row for row in rows if id(row) not in stopped}


def _was_outside(row: Row) -> bool:
    """Whether a trial failed for what the machine lacked at the time."""
    return row["status"] != "ok" and bool(_OUTSIDE.search(row["error"] or ""))


def _in_a_row(rows: Sequence[Row], least: int) -> list[Row]:
    """Failures with at least ``least - 1`` others right before or after them."""
    found: list[Row] = []
    for failed, some in groupby(rows, key=lambda row: bool(row["status"] == "failed")):
        group = list(some)
        if failed and len(group) >= least:
            found += group
    return found
