"""The problem a search solves: prune a network within a budget so that it scores best.

Everything that trials have in common is here and nowhere in the strategies: budgets, the journal
and its cache, failures, repeatable random numbers, progress. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike

from automl.budget import Budget, beside_limits
from automl.engines import Engine
from automl.engines.serial import Serial
from automl.evaluation import Evaluation
from automl.fitting import Bools, Constraints, Floats, Schedule, Space, climb, fit
from automl.hashing import digest
from automl.journal import Journal, Row
from automl.policy import Policy
from automl.racing import Racing
from automl.runner import Examiner, Job, Runner
from automl.trials import (
    SearchStopped,
    Trial,
    TrialLog,
    best,
    trial_row,
)
from automl.types import CostModel, InputError, Kept, Measurement, Resource, Scorer, Target

__all__ = [
    "Plan", "Problem", "Pruner", "Ranker", "SearchStopped", "Trial", "TrialLog", "best",
    "best_within", "limited", "trial_row",
]  # fmt: skip


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
        if racing is not None and not isinstance(scorer, Examiner):
            raise InputError("racing needs the loss of every example: use a ClassifierScorer")
        self._racing, self._reuses = racing, reuse
        self._cost_models = dict(cost_models)
        self.dense_costs = self.costs(self.space.units)
        self._constraints = limited(self.budget, self.space, self._cost_models, self.dense_costs)
        self.limits = dict(self._constraints.limits)
        self._on_trial = on_trial
        self._max_failures, self._failures_in_a_row = max_failures, 0
        self._can_resume = isinstance(journal, Journal)
        self._trials: dict[str, Trial] = {}
        self._evaluation = Evaluation(
            Runner(pruner, scorer, prepare),
            Serial() if engine is None else engine,
            cost=self.cost,
            dense=self._unpruned,
            journal=journal,
            known=known,
            max_failures=max_failures,
            racing=racing or Racing(),
        )

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
        policy, found = self._unpruned(), self._evaluation
        (trial,) = found.measured([self._job(self._key(policy), policy, -1)])
        if trial.measurement is None:
            text = f"{trial.error}{found.place(trial)}"
            raise InputError(f"the dense network cannot be scored: {text}") from found.raised
        return trial.measurement

    def _unpruned(self) -> Policy:
        return self.policy(self.space.units.copy())

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
            with closing(self._evaluation.run_round(jobs, race)) as round_:
                for job, trial in round_:
                    self._trials[job.key] = trial
                    self._account(trial)
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

    def _account(self, trial: Trial) -> None:
        self._failures_in_a_row = self._failures_in_a_row + 1 if trial.status == "failed" else 0
        if self._on_trial is not None:
            self._on_trial(trial)
        if self._failures_in_a_row >= self._max_failures:
            then = ", then resume" if self._can_resume else ""
            raise SearchStopped(
                f"{self._failures_in_a_row} trials in a row failed, the last with {trial.error}"
                f"{self._evaluation.place(trial)}; mend that{then}"
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
