"""CMA-ES over keep fractions: a strong black-box search to compare with.

Hansen and Ostermeier, "Completely Derandomized Self-Adaptation in Evolution Strategies" (2001), by
the package ``cmaes`` (Nomura and Shibata, arXiv 2402.01373). Where a generation rounds to policies
that are all known, it begins anew with twice the points per generation (Auger and Hansen, "A
Restart CMA Evolution Strategy With Increasing Population Size", CEC 2005).
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
    from collections.abc import Callable

    from cmaes import CMA  # type: ignore[import-untyped]

#: Between the seeds of a search's starts, so that those of other searches are others.
_BETWEEN_SEEDS = 1_000_003


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

        def begin(start: int, population: int | None) -> CMA:
            return CMA(
                mean=np.full(axes, 0.5),
                sigma=self.sigma,
                bounds=np.tile([0.0, 1.0], (axes, 1)),
                seed=seed + start * _BETWEEN_SEEDS,
                population_size=population,
            )

        generations = _Generations(begin, self.population, len(problem.targets))
        return ask_and_tell(problem, generations, trials)


class _Generations:
    """The package's interface, which is told a whole generation, as one point at a time."""

    def __init__(
        self, begin: Callable[[int, int | None], CMA], population: int | None, targets: int
    ) -> None:
        self._begin, self._targets = begin, targets
        self._starts, self._cma = 1, begin(0, population)
        self.batch = int(self._cma.population_size)
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

    def widen(self) -> None:
        self.batch *= 2
        self._cma = self._begin(self._starts, self.batch)
        self._starts += 1
