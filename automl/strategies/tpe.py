"""Tree-structured Parzen estimators over keep fractions: another search to compare with.

Bergstra et al., "Algorithms for Hyper-Parameter Optimization" (NeurIPS 2011), by Optuna.
Where it proposes policies that are all known, the next points are drawn at random.
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
    from optuna import Study, Trial


class Tpe:
    """Compares how densely good and bad trials lie."""

    def __init__(self, startup: int = 10, multivariate: bool = True, batch: int = 1) -> None:
        """Sets the sampler.

        Args:
            startup: Random trials at first, >= 1.
            multivariate: Whether targets are modelled together.
            batch: Trials proposed at a time, >= 1: with an engine they are scored side by side, and
                none of them knows the scores of the others.

        Raises:
            ValueError: ``startup`` or ``batch`` is below 1.
        """
        if startup < 1:
            raise ValueError(f"Tpe.startup must be >= 1, got {startup}")
        if batch < 1:
            raise ValueError(f"Tpe.batch must be >= 1, got {batch}")
        self.batch = batch
        self.startup = startup
        self.multivariate = multivariate

    def search(self, problem: Problem, trials: int, seed: int) -> SearchResult:
        """Scores ``trials`` policies, fewer where there are no more.

        Raises:
            InputError: Optuna is not installed.
            SearchStopped: Too many trials in a row failed.
            ValueError: ``trials`` is below 1.
        """
        try:
            import optuna
        except ImportError:
            raise InputError("strategy=tpe needs the package: pip install optuna") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=self.startup, multivariate=self.multivariate, seed=seed
        )
        study = optuna.create_study(sampler=sampler, direction="maximize")
        return ask_and_tell(problem, _Study(study, len(problem.targets), self.batch, seed), trials)


class _Study:
    def __init__(self, study: Study, targets: int, batch: int, seed: int) -> None:
        self._study, self.batch = study, batch
        self._names = [f"keep{i}" for i in range(targets)]
        self._rng = np.random.default_rng(seed)
        self._asked: deque[Trial] = deque()

    def ask(self) -> Floats:
        trial = self._study.ask()
        self._asked.append(trial)
        return np.array([trial.suggest_float(name, 0.0, 1.0) for name in self._names])

    def tell(self, score: float) -> None:
        self._study.tell(self._asked.popleft(), score)

    def widen(self) -> None:
        for point in self._rng.random((self.batch, len(self._names))):
            self._study.enqueue_trial(dict(zip(self._names, point.tolist(), strict=True)))
