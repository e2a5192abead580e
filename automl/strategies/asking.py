"""What black-box optimisers share: they ask for keep fractions, and are told scores.

Every point of the unit cube becomes a policy that meets the budget by the path that leads from the
smallest network through it (``Problem.fit``), so all trials are within the budget and use it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from automl.fitting import Floats
from automl.policy import Policy
from automl.problem import Problem, Trial, best
from automl.types import SearchResult

#: Points asked for in a row without a new policy after which there are taken to be no more.
_STALE = 200


class Optimiser(Protocol):
    """Maximises over the unit cube.

    Attributes:
        batch: Points that are asked for before the first of them is told, >= 1: those may be scored
            at the same time.
    """

    batch: int

    def ask(self) -> Floats:
        """The next point, shape (targets,), in [0, 1]."""

    def tell(self, score: float) -> None:
        """The score of the point asked for first of those that were not told yet."""

    def widen(self) -> None:
        """Looks further away: the last batch, of which all is told, held nothing new."""


def ask_and_tell(problem: Problem, optimiser: Optimiser, trials: int) -> SearchResult:
    """Scores ``trials`` policies, fewer where the optimiser has no new ones.

    Points that round to a policy known already are answered at once and do not count; where all of
    a batch are known, the optimiser is asked to look further away. A failed
    trial is told as the worst score so far, since these optimisers know no failures: once there is
    a score. One that fell behind in a race is told as its estimate.

    Raises:
        SearchStopped: Too many trials in a row failed.
        ValueError: ``trials`` is below 1.
    """
    if trials < 1:
        raise ValueError(f"trials must be >= 1, got {trials}")
    found: dict[str, Trial] = {}
    waiting: list[Trial] = []  # to be told
    stale = 0
    while len(found) < trials and stale < _STALE:
        known = len(found)
        asked = [problem.policy(problem.fit(optimiser.ask())) for _ in range(optimiser.batch)]
        waiting += problem.evaluate_many(_leading(asked, found, trials), race=True)
        for trial in waiting:
            found.setdefault(trial.policy.key, trial)
        scores = [trial.score for trial in found.values() if trial.status != "failed"]
        if scores:
            _tell(optimiser, waiting, min(scores))
            waiting = []
        stale = stale + len(asked) if len(found) == known else 0
        if stale and not waiting:
            optimiser.widen()
    tried = tuple(found.values())
    return SearchResult(best(tried).policy, tried, len(tried) < trials)


def _tell(optimiser: Optimiser, trials: Sequence[Trial], worst: float) -> None:
    for trial in trials:
        optimiser.tell(trial.score if trial.status != "failed" else worst)


def _leading(asked: Sequence[Policy], found: Mapping[str, Trial], trials: int) -> list[Policy]:
    """The first of them, as many as there are trials for."""
    keys, leading = set(found), []
    for policy in asked:
        if len(keys) == trials:
            break
        keys.add(policy.key)
        leading.append(policy)
    return leading
