"""What black-box optimisers share: they ask for keep fractions, and are told scores.

Every point of the unit cube becomes a policy that meets the budget by the path that leads from the
smallest network through it (``Problem.fit``), so all trials are within the budget and use it.
"""

from __future__ import annotations

from typing import Protocol

from automl.fitting import Floats
from automl.problem import Problem, Trial, best
from automl.types import SearchResult

#: Points asked for per trial before there are taken to be no more policies.
_ASKED = 5


class Optimiser(Protocol):
    """Maximises over the unit cube."""

    def ask(self) -> Floats:
        """The next point, shape (targets,), in [0, 1]."""

    def tell(self, score: float) -> None:
        """The score of the point asked for last."""


def ask_and_tell(problem: Problem, optimiser: Optimiser, trials: int) -> SearchResult:
    """Scores ``trials`` policies, fewer where the optimiser has no new ones.

    Points that round to a policy known already are answered at once and do not count. A failed
    trial is told as the worst score so far, since these optimisers know no failures.

    Raises:
        SearchStopped: Too many trials in a row failed.
        ValueError: ``trials`` is below 1.
    """
    if trials < 1:
        raise ValueError(f"trials must be >= 1, got {trials}")
    found: dict[str, Trial] = {}
    worst = 0.0
    for _ in range(_ASKED * trials):
        trial = problem.evaluate(problem.policy(problem.fit(optimiser.ask())))
        found.setdefault(trial.policy.key, trial)
        scores = [one.score for one in found.values() if one.status == "ok"]
        worst = min(scores, default=worst)
        optimiser.tell(trial.score if trial.status == "ok" else worst)
        if len(found) == trials:
            break
    return SearchResult(best(list(found.values())).policy, tuple(found.values()))
