"""The last choice of a search: its best trials, scored once more and more carefully.

Near the top the order of a search's scores is mostly noise of the few examples that they were
taken over. So the best few policies are scored again, on all validation data, before one is chosen.
"""

from __future__ import annotations

from collections.abc import Sequence

from automl.policy import Policy
from automl.problem import Problem, Trial, best
from automl.types import SearchResult


def finalists(result: SearchResult, problem: Problem, count: int) -> list[Policy]:
    """The distinct policies that go into the last round, the strategy's own choice first.

    Args:
        result: What a strategy returned.
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
    """The trial of the policy that a strategy chose."""
    trial: Trial = next(one for one in result.trials if one.policy == result.policy)
    return trial


def choose(policies: Sequence[Policy], careful: Problem) -> Trial:
    """The best of the finalists by a problem with a more careful score.

    Raises:
        SearchStopped: None of them could be scored.
    """
    return best(careful.evaluate_many(policies))
