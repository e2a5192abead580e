"""How damages of single targets add up in complete policies, learned from the complete ones.

Pruned together, targets hurt more, or less, than the sum of what they do alone. The model::

    damage(kept) = sum_t scale[t] * alone[t](kept[t]) ** exponent

has one scale per target, which a Bayesian linear regression fits to complete policies. Errors are
relative ones, so each row is divided by its damage. Scales have a normal prior around one common
scale; its width, the noise and the exponent are those of the largest evidence (MacKay, "Bayesian
Interpolation", 1992) on small grids. Drawing scales from the posterior and taking the policy that
is best for them is Thompson sampling: a policy is tried as often as it is thought best.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from automl.fitting import Floats

_EXPONENTS = (0.75, 0.85, 1.0, 1.2)
#: Widths of the prior relative to the common scale, and relative errors of predictions.
_WIDTHS = (0.1, 0.2, 0.4, 0.8)
_NOISES = (0.02, 0.04, 0.08, 0.16)
#: Scales may not fall below this part of the common scale: damage never helps.
_LEAST = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class Interaction:
    """The posterior of the scales.

    Attributes:
        exponent: Of the damages.
        common: The common scale.
        mean: Scales, (targets,).
        root: A root of their covariance, (targets, targets).
    """

    exponent: float
    common: float
    mean: Floats
    root: Floats

    @classmethod
    def fitted(cls, alone: Floats, damage: Floats) -> Interaction:
        """Fits to complete policies.

        Args:
            alone: Damage of each target alone at what the policy keeps, (policies, targets).
            damage: Damage of the policy, (policies,), positive.
        """
        best, found = -np.inf, None
        for exponent in _EXPONENTS:
            rows = alone**exponent / damage[:, None]
            common = _common(rows)
            for width, noise in product(_WIDTHS, _NOISES):
                evidence = _evidence(rows, common, width * common, noise)
                if evidence > best:
                    best, found = evidence, (exponent, rows, common, width * common, noise)
        assert found is not None  # for the type checker: evidences are finite
        exponent, rows, common, width, noise = found
        return cls(exponent, common, *_posterior(rows, common, width, noise))

    def table(self, table: Floats, rng: np.random.Generator | None = None) -> Floats:
        """Curves (targets, counts) as the model scales them.

        Args:
            table: Curves of targets alone.
            rng: For a draw from the posterior; None takes its mean.
        """
        scale = self.mean
        if rng is not None:
            scale = scale + self.root @ rng.standard_normal(len(scale))
        return np.asarray(table**self.exponent * np.maximum(scale, _LEAST * self.common)[:, None])


def _common(rows: Floats) -> float:
    """The scale c of least squares of ``c * sum of row = 1``."""
    sums = rows.sum(axis=1)
    return float(sums.sum() / (sums @ sums))


def _evidence(rows: Floats, common: float, width: float, noise: float) -> float:
    """Log density of the rows' ones under the model, up to a constant."""
    residual = 1 - common * rows.sum(axis=1)
    covariance = noise**2 * np.eye(len(rows)) + width**2 * rows @ rows.T
    lower = np.linalg.cholesky(covariance)
    whitened = np.linalg.solve(lower, residual)
    return float(-0.5 * whitened @ whitened - np.log(np.diag(lower)).sum())


def _posterior(rows: Floats, common: float, width: float, noise: float) -> tuple[Floats, Floats]:
    """Mean and root of the covariance of the scales."""
    targets = rows.shape[1]
    precision = rows.T @ rows / noise**2 + np.eye(targets) / width**2
    residual = 1 - common * rows.sum(axis=1)
    mean = common + np.linalg.solve(precision, rows.T @ residual / noise**2)
    values, vectors = np.linalg.eigh(precision)
    return mean, vectors / np.sqrt(values)
