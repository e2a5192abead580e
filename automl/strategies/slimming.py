"""Rankings of all units of a network together: as they are, or after regularised training.

Sources: one threshold for the scores of all layers is Molchanov et al. (arXiv 1611.06440), section
2.2, and network slimming, Liu et al. (arXiv 1708.06519), section 3. Scores of different layers are
made comparable first; dividing by a layer's L2 norm is Molchanov's, ``lamp`` is Lee et al.,
"Layer-adaptive Sparsity for the Magnitude-based Pruning" (arXiv 2010.07611), equation 4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from automl.fitting import Floats, Ints
from automl.policy import Policy
from automl.problem import Problem, best
from automl.types import Kept, SearchResult


def _lamp(ranked: Floats) -> Floats:
    """Share of a unit in itself and all better ones; scores are squared norms already."""
    better = np.cumsum(ranked)
    return np.divide(ranked, better, out=np.zeros_like(ranked), where=better > 0)


def _over(size: Callable[[Floats], Any]) -> Callable[[Floats], Floats]:
    def scaled(ranked: Floats) -> Floats:
        by = float(size(ranked))
        return ranked / by if by > 0 else ranked

    return scaled


#: Name -> what makes the scores of one target comparable, given descending, shape (units,).
NORMALISE: Mapping[str, Callable[[Floats], Floats]] = {
    "none": lambda ranked: ranked,
    "mean": _over(lambda ranked: np.abs(ranked).mean()),
    "l2": _over(lambda ranked: np.sqrt((ranked**2).sum())),
    "max": _over(lambda ranked: np.abs(ranked).max()),
    "lamp": _lamp,
}


class Global:
    """Keeps the units with the highest scores of the whole network, within the budget.

    The criterion is the run's (``criterion=``). Every way of making layers comparable gives one
    policy; as many are tried as there are trials, and the best is kept.
    """

    def __init__(self, normalise: Sequence[str] = ("lamp", "mean", "l2", "max", "none")) -> None:
        """Sets what is tried.

        Args:
            normalise: How scores of different targets are made comparable, the first ones first:
                ``none``, divided by their ``mean``, ``l2`` norm or ``max``, or ``lamp``.

        Raises:
            ValueError: There is none, or one is not known.
        """
        unknown = [name for name in normalise if name not in NORMALISE]
        if not normalise or unknown or isinstance(normalise, str):
            raise ValueError(
                f"{type(self).__name__}.normalise must list some of {', '.join(NORMALISE)}, "
                f"got {normalise!r}"
            )
        self.normalise = tuple(normalise)

    def search(self, problem: Problem, trials: int, seed: int) -> SearchResult:
        """Scores one policy per way, no policy twice.

        Raises:
            InputError: The criterion cannot score this network's units.
            SearchStopped: No policy could be scored.
        """
        scores = self.scores(problem)
        policies: dict[str, Policy] = {}
        for name in self.normalise:
            policy = self.policy(problem, scores, self.kept(problem, scores, name))
            policies.setdefault(policy.key, policy)
        found = [problem.evaluate(policy) for policy in list(policies.values())[:trials]]
        return SearchResult(best(found).policy, tuple(found))

    def scores(self, problem: Problem) -> list[Floats]:
        """Scores of the units of every target."""
        return problem.unit_scores()

    def kept(self, problem: Problem, scores: Sequence[Floats], name: str) -> Kept:
        """Kept counts by one way of comparing, shape (targets,)."""
        ranked = [NORMALISE[name](np.sort(values)[::-1].astype(np.float64)) for values in scores]

        def when(target: Ints, fraction: Floats) -> Floats:
            """The better the unit that a step adds, the earlier it is taken."""
            pairs = zip(target.tolist(), fraction.tolist(), strict=True)
            return np.array([-ranked[t][int(f * len(ranked[t]))] for t, f in pairs])

        return problem.climb(when)

    def policy(self, problem: Problem, scores: Sequence[Floats], kept: Kept) -> Policy:
        """The policy that keeps the best units."""
        return problem.policy(kept)


class Slimming(Global):
    """Trains under a regulariser, then removes what has shrunk; network slimming by default.

    A copy of the network is trained (``criterion=slimming`` says how); its scores rank the units
    of the whole network. The units found are pruned from the dense weights and scored like those
    of any other strategy.
    """

    def __init__(
        self,
        criterion: str = "slimming",
        settings: Mapping[str, Any] | None = None,
        threshold: float = 0.0,
        normalise: Sequence[str] = ("none", "lamp", "mean", "l2", "max"),
    ) -> None:
        """Sets how to train and what to remove.

        Args:
            criterion: ``slimming``, ``group_lasso`` or ``growing``, or any other of
                conf/criterion.
            settings: Replace those of the criterion's file.
            threshold: Units below this fraction of their target's best go even where the budget
                would let them stay, in [0, 1); 0 removes only what the budget asks for. Where a
                target has scores below 0, they are counted from its least.
            normalise: See :class:`Global`.

        Raises:
            ValueError: An argument breaks its rule.
        """
        super().__init__(normalise)
        if not 0 <= threshold < 1:
            raise ValueError(f"Slimming.threshold must be in [0, 1), got {threshold}")
        self.criterion, self.settings = criterion, dict(settings or {})
        self.threshold = threshold

    def scores(self, problem: Problem) -> list[Floats]:
        """Scores after training."""
        return problem.unit_scores(self.criterion, **self.settings)

    def kept(self, problem: Problem, scores: Sequence[Floats], name: str) -> Kept:
        """Kept counts by one way of comparing, without those below the threshold."""
        kept = super().kept(problem, scores, name)
        if self.threshold == 0:
            return kept
        space, alive = problem.space, np.array([self._alive(values) for values in scores])
        lowered = np.minimum(kept, np.maximum(space.kept(space.level(alive)), space.low))
        return lowered if problem.within(lowered) else _lowered_within(problem, kept, lowered)

    def _alive(self, values: Floats) -> int:
        """How many units reach the threshold; scores below 0 are counted from the least."""
        above = values - min(float(values.min()), 0.0)
        return int((above >= self.threshold * above.max()).sum())

    def policy(self, problem: Problem, scores: Sequence[Floats], kept: Kept) -> Policy:
        """Names the units, because the run's own criterion would choose others."""
        chosen = [
            np.sort(np.argsort(-values, kind="stable")[:count]).tolist()
            for values, count in zip(scores, kept, strict=True)
        ]
        indices = [
            None if len(units) == target.units else units
            for units, target in zip(chosen, problem.targets, strict=True)
        ]
        return Policy.from_kept(
            problem.targets, kept, indices=indices, model_hash=problem.model_hash
        )


def _lowered_within(problem: Problem, kept: Kept, lowered: Kept) -> Kept:
    """Counts lowered target by target where the budget is still met.

    A measured latency may rise where units go.
    """
    found = kept.copy()
    for target in np.flatnonzero(lowered < kept):
        one = found.copy()
        one[target] = lowered[target]
        found = one if problem.within(one) else found
    return found
