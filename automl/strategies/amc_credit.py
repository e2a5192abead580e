"""Whose decision was it? An additive model of finished episodes.

AMC gives every transition of an episode the episode's whole reward, so a target that was pruned
well in a bad episode is blamed for it. Here the reward is divided among the decisions, as return
decomposition does (Arjona-Medina et al., "RUDDER", 2019; Ren et al., "Learning Long-Term Reward
Redistribution via Randomized Return Decomposition", ICLR 2022), with a Bayesian linear model in
place of a network, since there are hundreds of episodes and not millions of steps::

    value(kept) = bias + sum_t weights[t] . basis(kept[t] / units[t]),
    basis(x) = (log x, 1 - x, (1 - x)^2)

fitted to ``-log(-reward)``, in which damage adds up better than in the reward itself. Weights have
one normal prior; its width and that of the noise are set by the evidence (MacKay, "Bayesian
Interpolation", 1992).
"""

from __future__ import annotations

import numpy as np

from automl.fitting import Floats
from automl.types import Kept

#: Functions of one target's keep fraction.
_BASIS = 3
_EVIDENCE_ROUNDS = 20
#: With so many there is nothing to be saved by decomposing something smaller.
_FEW_FEATURES = 512


class Credit:
    """The model after some episodes.

    Attributes:
        mean: Weights, shape (targets * 3,), on standardised features.
        alpha: Precision of their prior.
    """

    def __init__(self, kept: Kept, rewards: Floats, units: Kept) -> None:
        """Fits.

        Args:
            kept: Finished episodes, shape (episodes, targets), at least two.
            rewards: Their rewards, shape (episodes,), negative (others count as almost 0).
            units: Units of the dense network, shape (targets,).
        """
        self._units = units
        features = self._features(kept)
        self._centre, spread = features.mean(axis=0), features.std(axis=0)
        self._scale = np.where(spread > 1e-9, spread, 1.0)
        value = transform(rewards)
        deviation = float(value.std())
        value = (value - value.mean()) / (deviation if deviation > 1e-12 else 1.0)
        self._fit(self.standardised(kept), value)

    def shares(self, kept: Kept) -> Floats:
        """Each decision's part of the value, (episodes, targets).

        In standard deviations of the episodes' values, relative to the mean episode.
        """
        parts = self.standardised(kept) * self.mean
        return np.asarray(parts.reshape(*kept.shape, _BASIS).sum(axis=-1))

    def standardised(self, kept: Kept) -> Floats:
        """The basis, of mean 0 and deviation 1 over the episodes, (episodes, targets * 3)."""
        return np.asarray((self._features(kept) - self._centre) / self._scale)

    def _features(self, kept: Kept) -> Floats:
        x = kept / self._units
        basis = np.stack([np.log(x), 1 - x, (1 - x) ** 2], axis=-1)
        return basis.reshape(len(kept), -1)

    def _fit(self, x: Floats, y: Floats) -> None:
        """Evidence approximation; ``alpha`` is the prior's precision, ``beta`` the noise's."""
        values, vectors = _spectrum(x)
        target = vectors.T @ (x.T @ y)
        alpha, beta, count = 1.0, 10.0, len(y)
        for _ in range(_EVIDENCE_ROUNDS):
            weights = beta * target / (alpha + beta * values)
            free = float(np.sum(beta * values / (alpha + beta * values)))
            residual = float(np.sum((y - x @ (vectors @ weights)) ** 2))
            alpha = float(np.clip(free / (weights @ weights + 1e-9), 1e-3, 1e4))
            beta = float(np.clip(max(count - free, 1.0) / (residual + 1e-9), 1e-2, 1e4))
        self.mean = vectors @ (beta * target / (alpha + beta * values))
        self.alpha = alpha


def _spectrum(x: Floats) -> tuple[Floats, Floats]:
    """Eigenvalues and -vectors (features, values) of ``x.T @ x``; those that are 0 may be missing.

    Where there are few episodes for many features, by way of the episodes: the same up to rounding.
    """
    if x.shape[1] <= max(len(x), _FEW_FEATURES):
        values, vectors = np.linalg.eigh(x.T @ x)
        return np.maximum(values, 0.0), vectors
    _, singular, rows = np.linalg.svd(x, full_matrices=False)
    return singular**2, rows.T


def transform(rewards: Floats) -> Floats:
    """``-log(-reward)``: rising with the reward, additive where damage multiplies."""
    return np.asarray(-np.log(np.maximum(-rewards, 1e-6)))
