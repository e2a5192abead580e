"""Rules of thumb that follow depth, the empirical policies of the AMC paper.

He et al., "AMC: AutoML for Model Compression and Acceleration on Mobile Devices" (ECCV 2018),
section 4.1, compares with ``uniform``, ``shallow`` and ``deep``, where "shallow and deep
aggressively prune shallow and deep layers respectively" and no more is said of their shape. Here
pruning ratios change linearly with the position of the target in the network.
"""

from __future__ import annotations

import numpy as np

from automl.fitting import Floats, Ints
from automl.problem import Problem, best
from automl.types import Kept, SearchResult


class Depth:
    """Prunes with ratios that grow or fall linearly with depth.

    Target i of n is pruned by ``min(1, strength * weight[i])``, where ``weight`` runs in equal
    steps from 1 at the favoured end to ``contrast`` at the other, and ``strength`` is the least
    that meets the budget (every target keeps at least its smallest count). One trial, whatever
    the seed.
    """

    def __init__(self, towards: str = "deep", contrast: float = 4.0) -> None:
        """Sets the shape.

        Args:
            towards: ``deep`` prunes the last target most, ``shallow`` the first.
            contrast: How many times the ratio of the least pruned target the most pruned one
                gets, >= 1; 1 is uniform.

        Raises:
            ValueError: An argument breaks its rule.
        """
        if towards not in ("deep", "shallow"):
            raise ValueError(f"Depth.towards must be 'deep' or 'shallow', got {towards!r}")
        if not 1 <= contrast < float("inf"):
            raise ValueError(f"Depth.contrast must be >= 1 and finite, got {contrast}")
        self.towards = towards
        self.contrast = contrast

    def search(self, problem: Problem, trials: int, seed: int) -> SearchResult:
        """Scores the one policy.

        Raises:
            SearchStopped: It could not be scored.
        """
        trial = problem.evaluate(problem.policy(self.kept(problem)))
        return SearchResult(best([trial]).policy, (trial,))

    def kept(self, problem: Problem) -> Kept:
        """The policy's kept counts, shape (targets,)."""
        weight = np.linspace(1.0, self.contrast, len(problem.targets))
        if self.towards == "shallow":
            weight = weight[::-1]

        def when(target: Ints, fraction: Floats) -> Floats:
            # A target may keep more than ``fraction`` once strength is below this; climbing
            # lowers the strength, hence the sign.
            return -(1 - fraction) / weight[target]

        return problem.climb(when)
