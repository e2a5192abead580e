"""Random policies that use the whole budget: the baseline that any learning search has to beat."""

from __future__ import annotations

import numpy as np

from automl.fitting import Floats, Ints
from automl.problem import Problem, best
from automl.types import Kept, SearchResult

#: Draws for one new policy, before the problem is taken to have no more.
_DRAWS = 100


class Random:
    """Draws policies at random, all of them just within the budget, no two alike.

    Every target draws the ODDS keep / (1 - keep) of its keep fraction from a log-logistic
    distribution (with exponent 1, that is a keep fraction uniform in (0, 1)). Then the odds of all
    targets are multiplied by one common factor, the largest that the budget allows, and rounded.
    This leaves the order of the draws, reaches every mixture of hardly and heavily pruned
    targets, and favours no network size: policies are neither rejected for being too large nor
    clipped, both of which would leave mostly small networks (the official AMC code clips, so that
    its last layers are pruned hardest). The exponent is drawn anew for every policy, so that some
    are nearly uniform and some extreme.
    """

    def __init__(self, spread: float = 1.0) -> None:
        """Sets the variety.

        Args:
            spread: Exponents are uniform in (0, spread]: below 1 policies are nearer to uniform,
                above 1 more extreme.

        Raises:
            ValueError: ``spread`` is not positive and finite.
        """
        if not 0 < spread < float("inf"):
            raise ValueError(f"Random.spread must be > 0 and finite, got {spread}")
        self.spread = spread

    def search(self, problem: Problem, trials: int, seed: int) -> SearchResult:
        """Scores ``trials`` policies, fewer where the budget does not leave as many.

        Raises:
            SearchStopped: Too many of them could not be scored.
            ValueError: ``trials`` is below 1.
        """
        if trials < 1:
            raise ValueError(f"Random.trials must be >= 1, got {trials}")
        rng = np.random.default_rng(seed)
        drawn: dict[bytes, Kept] = {}
        while len(drawn) < trials and self._add(drawn, problem, rng):
            pass
        policies = [problem.policy(kept) for kept in drawn.values()]
        found = problem.evaluate_many(policies, race=True)
        return SearchResult(best(found).policy, tuple(found), len(found) < trials)

    def draw(self, problem: Problem, rng: np.random.Generator) -> Kept:
        """One random policy's kept counts, shape (targets,)."""
        exponent = self.spread * (1 - rng.random())
        log_odds = exponent * rng.logistic(size=len(problem.targets))

        def when(target: Ints, fraction: Floats) -> Floats:
            # The logarithm of the common factor that lifts ``target`` to ``fraction``.
            return np.log(fraction / (1 - fraction)) - log_odds[target]

        return problem.climb(when)

    def _add(self, drawn: dict[bytes, Kept], problem: Problem, rng: np.random.Generator) -> bool:
        """Adds a policy not drawn before; whether one was found."""
        for _ in range(_DRAWS):
            kept = self.draw(problem, rng)
            if kept.tobytes() not in drawn:
                drawn[kept.tobytes()] = kept
                return True
        return False
