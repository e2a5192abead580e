"""Every target pruned alike: the baseline that any search has to beat."""

from __future__ import annotations

import numpy as np

from automl.problem import Problem, best
from automl.types import SearchResult


class Uniform:
    """Keeps the same fraction of every target, the largest that the budget allows.

    Targets come as near to the common fraction as rounding lets them; what is left of the budget
    goes to single steps, in network order. One trial, whatever the seed.
    """

    def search(self, problem: Problem, trials: int, seed: int) -> SearchResult:
        """Scores the one policy.

        Raises:
            SearchStopped: It could not be scored.
        """
        kept = problem.fit(np.ones(len(problem.targets)))
        trial = problem.evaluate(problem.policy(kept))
        return SearchResult(best([trial]).policy, (trial,))
