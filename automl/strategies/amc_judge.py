"""Which episode next? A Gaussian process over finished episodes.

The additive model of ``automl.strategies.amc_credit`` divides rewards, but damages do not quite
add up: two neighbouring layers pruned hard hurt more than both alone. Candidates are therefore
judged by a Gaussian process (Rasmussen & Williams, 2006) whose covariance is the additive model's
plus one that falls with the distance of the logarithms of the keep fractions::

    cov(a, b) = basis(a) . basis(b) / alpha + power exp(-|log a - log b|^2 / (2 length^2))

``alpha`` is the additive model's; ``power``, ``length`` and the noise are those of a small grid
with the most evidence, no interactions (``power`` 0) among them. Candidates are valued by one
function drawn from the posterior (Thompson sampling), by Matheron's rule with random Fourier
features (Wilson et al., "Efficiently Sampling Functions from Gaussian Process Posteriors", ICML
2020).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from automl.fitting import Floats
from automl.strategies.amc_credit import Credit, transform
from automl.types import Kept

_FOURIER = 512


@dataclass(frozen=True, slots=True)
class Interactions:
    """How the covariance is set.

    Attributes:
        power: Variance of what the additive model misses, in those of the values.
        length: Distance of the logarithms at which two policies tell less of each other.
        noise: Variance of the noise.
    """

    power: float
    length: float
    noise: float


#: Distances and variances that are compared.
GRID = tuple(
    Interactions(power, length, noise)
    for power, length, noise in product((0.0, 0.05, 0.15, 0.4), (0.3, 0.6, 1.2), (0.01, 0.03, 0.1))
    if power or length == 0.3  # without power, length means nothing
)


class Judge:
    """The process after some episodes.

    Attributes:
        settings: Of the covariance, from the grid.
    """

    def __init__(
        self,
        credit: Credit,
        kept: Kept,
        rewards: Floats,
        units: Kept,
        settings: Interactions | None = None,
    ) -> None:
        """Fits.

        Args:
            credit: The additive model of the same episodes.
            kept: Finished episodes, shape (episodes, targets), at least two.
            rewards: Their rewards, shape (episodes,).
            units: Units of the dense network, shape (targets,).
            settings: Of the covariance; None chooses from the grid.
        """
        value = transform(rewards)
        deviation = float(value.std())
        self._values = (value - value.mean()) / (deviation if deviation > 1e-12 else 1.0)
        self._credit, self._units = credit, units
        self._basis, self._logs = self._features(kept)
        self._additive = self._basis @ self._basis.T
        self._distance = _squared_distance(self._logs, self._logs)
        self.settings = self._most_evident(GRID if settings is None else [settings])
        self._factor = cho_factor(self._covariance(self.settings), lower=True)

    def draw(self, rng: np.random.Generator) -> Callable[[Kept], Floats]:
        """The values of policies by one draw from the posterior, (episodes, targets) -> (episodes).

        Choosing by draws is Thompson sampling: a policy is tried as often as it is thought best.
        """
        prior = self._prior(rng)
        noise = np.sqrt(self.settings.noise) * rng.standard_normal(len(self._values))
        missed = self._values - prior(self._basis, self._logs) - noise
        weights = cho_solve(self._factor, missed)

        def value(kept: Kept) -> Floats:
            basis, logs = self._features(kept)
            distance = _squared_distance(logs, self._logs)
            across = basis @ self._basis.T + self._interaction(self.settings, distance)
            return np.asarray(prior(basis, logs) + across @ weights)

        return value

    def _prior(self, rng: np.random.Generator) -> Callable[[Floats, Floats], Floats]:
        """A function drawn before any episode is known."""
        power, length = self.settings.power, self.settings.length
        weights = rng.standard_normal(self._basis.shape[1])
        frequency = rng.standard_normal((self._logs.shape[1], _FOURIER)) / length
        phase = rng.uniform(0, 2 * np.pi, _FOURIER)
        height = np.sqrt(2 * power / _FOURIER) * rng.standard_normal(_FOURIER)
        return lambda basis, logs: np.asarray(
            basis @ weights + np.cos(logs @ frequency + phase) @ height
        )

    def _features(self, kept: Kept) -> tuple[Floats, Floats]:
        """Basis, scaled so that its products are covariances, and logarithms."""
        basis = self._credit.standardised(kept) / np.sqrt(self._credit.alpha)
        return basis, np.log(kept / self._units)

    def _interaction(self, settings: Interactions, distance: Floats) -> Floats:
        return np.asarray(settings.power * np.exp(-distance / (2 * settings.length**2)))

    def _covariance(self, settings: Interactions) -> Floats:
        found = self._additive + self._interaction(settings, self._distance)
        found[np.diag_indices_from(found)] += settings.noise
        return found

    def _most_evident(self, grid: Iterable[Interactions]) -> Interactions:
        """The settings under which the values are likeliest."""
        return max(grid, key=self._evidence)

    def _evidence(self, settings: Interactions) -> float:
        factor, _ = cho_factor(self._covariance(settings), lower=True)
        fit = self._values @ cho_solve((factor, True), self._values)
        return float(-fit / 2 - np.log(np.diag(factor)).sum())


def _squared_distance(a: Floats, b: Floats) -> Floats:
    """Between all rows of two arrays, (m, d) and (n, d) give (m, n)."""
    squares = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1)
    return np.asarray(np.maximum(squares - 2 * a @ b.T, 0.0))
