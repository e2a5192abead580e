"""CMA-ES over keep fractions: a strong black-box search to compare with.

Hansen and Ostermeier, "Completely Derandomized Self-Adaptation in Evolution Strategies" (2001), by
the package ``cmaes`` (Nomura and Shibata, arXiv 2402.01373).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from automl.fitting import Floats
from automl.problem import Problem
from automl.strategies.asking import ask_and_tell
from automl.types import InputError, SearchResult

if TYPE_CHECKING:
    from cmaes import CMA  # type: ignore[import-untyped]


class CmaEs:
    """Adapts a normal distribution of keep fractions.

    It starts around one half everywhere, which is the uniform policy of any budget.
    """

    def __init__(self, sigma: float = 0.2, population: int | None = None) -> None:
        """Sets the distribution.

        Args:
            sigma: Its width at the start, in (0, 1].
            population: Points per generation, >= 4; None is 4 + 3 log(targets).

        Raises:
            ValueError: An argument breaks its rule.
        """
        if not 0 < sigma <= 1:
            raise ValueError(f"CmaEs.sigma must be in (0, 1], got {sigma}")
        if population is not None and population < 4:
            raise ValueError(f"CmaEs.population must be >= 4, got {population}")
        self.sigma = sigma
        self.population = population

    def search(self, problem: Problem, trials: int, seed: int) -> SearchResult:
        """Scores ``trials`` policies, fewer where there are no more.

        Raises:
            InputError: The package ``cmaes`` is not installed.
            SearchStopped: Too many trials in a row failed.
            ValueError: ``trials`` is below 1.
        """
        try:
            from cmaes import CMA
        except ImportError:
            raise InputError("strategy=cmaes needs the package: pip install cmaes") from None
        # One target is a line, for which the package has no covariance: an idle second axis.
        axes = max(len(problem.targets), 2)
        cma = CMA(
            mean=np.full(axes, 0.5),
            sigma=self.sigma,
            bounds=np.tile([0.0, 1.0], (axes, 1)),
            seed=seed,
            population_size=self.population,
        )
        return ask_and_tell(problem, _Generations(cma, len(problem.targets)), trials)


class _Generations:
    """The package's interface, which is told a whole generation, as one point at a time."""

    def __init__(self, cma: CMA, targets: int) -> None:
        self._cma, self._targets = cma, targets
        self.batch = int(cma.population_size)
        self._asked: deque[Floats] = deque()
        self._told: list[tuple[Floats, float]] = []

    def ask(self) -> Floats:
        point = self._cma.ask()
        self._asked.append(point)
        return np.asarray(np.clip(point[: self._targets], 0.0, 1.0))

    def tell(self, score: float) -> None:
        self._told.append((self._asked.popleft(), -score))
        if len(self._told) == self._cma.population_size:
            self._cma.tell(self._told)
            self._told = []
