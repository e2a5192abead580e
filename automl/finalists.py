"""What a search ends with: a policy within its budget, and the last choice of its best trials.

A strategy may return any policy, whoever wrote it; what is over the budget goes no further.

Near the top the order of a search's scores is mostly noise of the few examples that they were
taken over. So the best few policies are scored again, on all validation data, before one is chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from automl.budget import beside_limits
from automl.policy import Policy
from automl.problem import Problem, Trial, best
from automl.types import InputError, SearchResult, Strategy


def searched(strategy: Strategy, problem: Problem, trials: int, seed: int) -> SearchResult:
    """What a strategy finds, once it is known to be within the budget and among its trials.

    A policy that it chose without trying it is tried here, as the last of the trials.

    Args:
        strategy: Searches.
        problem: What it searches.
        trials: How many policies it tries at most.
        seed: Of the strategy.

    Raises:
        InputError: It returns no result, or chose a policy that is over the budget, of another
            network, or whose trial failed.
        SearchStopped: Too many trials in a row failed.
    """
    result, name = strategy.search(problem, trials, seed), type(strategy).__name__
    if not isinstance(result, SearchResult) or not isinstance(result.policy, Policy):
        raise InputError(
            f"strategy {name} must return automl.types.SearchResult(policy, trials), "
            f"got {_kind(result)}"
        )
    _require_within(problem, result.policy, name)
    known = [one for one in result.trials if one.policy == result.policy]
    if not any(one.status == "ok" for one in known):
        trial = problem.evaluate(result.policy)
        if trial.status == "failed":
            raise InputError(
                f"strategy {name} chose a policy whose trial failed ({trial.error}); let it choose "
                "among those that did not, as automl.problem.best does"
            )
        result = replace(result, trials=(*result.trials, trial))
    return result


def _kind(result: object) -> str:
    """What it is, in words."""
    if isinstance(result, SearchResult):
        return f"a SearchResult whose policy is of type {type(result.policy).__name__}"
    return type(result).__name__


def _require_within(problem: Problem, policy: Policy, name: str) -> None:
    try:
        policy.check(problem.targets, problem.model_hash)
    except InputError as error:
        raise InputError(f"strategy {name} chose a policy that cannot be used: {error}") from error
    kept = policy.kept(problem.targets)
    if not problem.within(kept):
        raise InputError(
            f"strategy {name} chose a policy over the budget "
            f"({beside_limits(problem.costs(kept), problem.limits)}); let it choose among those "
            "within, as automl.problem.best_within does"
        )


def finalists(result: SearchResult, problem: Problem, count: int) -> list[Policy]:
    """The distinct policies that go into the last round, the strategy's own choice first.

    Args:
        result: What a strategy found, from ``searched``.
        problem: What it searched; policies over its budget are left out.
        count: How many at most, at least 1.

    Returns:
        Policies, after the first one by falling score.

    Raises:
        ValueError: ``count`` is below 1.
    """
    if count < 1:
        raise ValueError(f"finalists.count must be >= 1, got {count}")
    ranked = sorted(result.trials, key=lambda trial: -trial.score)
    allowed = (
        trial.policy
        for trial in ranked
        if trial.status == "ok" and problem.within(trial.policy.kept(problem.targets))
    )
    distinct: dict[str, Policy] = {result.policy.key: result.policy}
    for policy in allowed:
        if len(distinct) == count:
            break
        distinct.setdefault(policy.key, policy)
    return list(distinct.values())


def chosen(result: SearchResult) -> Trial:
    """The trial of the policy that a strategy chose, from what ``searched`` returns."""
    same = (one for one in result.trials if one.policy == result.policy)
    trial: Trial = next(one for one in same if one.status == "ok")
    return trial


def choose(policies: Sequence[Policy], careful: Problem) -> Trial:
    """The best of the finalists by a problem with a more careful score.

    Raises:
        SearchStopped: None of them could be scored.
    """
    return best(careful.evaluate_many(policies))
