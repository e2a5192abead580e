"""How damages of single targets add up in complete policies, learned from the complete ones.

Pruned together, targets hurt more, or less, than the sum of what they do alone, and neighbouring
policies do so alike. A Gaussian process says how much::

    log damage(kept) = offset + log sum_t alone[t](kept[t]) ** exponent + f(kept / units),
    cov(f(x), f(y)) = height ** 2 * prod_t exp(-|x[t] - y[t]| / width)

so that far from what was tried the analysis decides, and near it what was found there. Exponent,
height and width are those of the largest evidence on small grids (Rasmussen and Williams,
"Gaussian Processes for Machine Learning", 2006, section 5.4). The next policy is the one with the
largest expected improvement (Jones et al., "Efficient Global Optimization of Expensive Black-Box
Functions", 1998). Against smoother kernels, and against scaling each target's damage by
regression, this one ranked policies best (docs/sensitivity.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.linalg import solve_triangular

from automl.fitting import Floats

_EXPONENTS = (0.75, 0.85, 1.0)
_HEIGHTS = (0.1, 0.2, 0.4)
_WIDTHS = (0.5, 1.0, 2.0)
#: Standard deviation of log damage that no policy's neighbour explains.
_NOISE = 0.03
_TINY = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class Interaction:
    """The process after some complete policies.

    Attributes:
        exponent: Of the damages.
        height: Standard deviation of log damage from what the analysis says.
        width: How far, in removed fractions summed over targets, policies are alike.
        offset: Log of the damage per sum.
    """

    exponent: float
    height: float
    width: float
    offset: float
    _keep: Floats
    _lower: Floats
    _whitened: Floats
    _best: float

    @classmethod
    def fitted(cls, alone: Floats, keep: Floats, damage: Floats) -> Interaction:
        """Fits to complete policies.

        Args:
            alone: Damage of each target alone at what the policy keeps, (policies, targets).
            keep: What the policy keeps, as fractions, (policies, targets).
            damage: Damage of the policy, (policies,), positive.
        """
        y, distance = np.log(damage), _distance(keep, keep)
        sums = {exponent: _log_sum(alone, exponent) for exponent in _EXPONENTS}
        roots = {size: _root(distance, *size) for size in product(_HEIGHTS, _WIDTHS)}
        evidence, found = -np.inf, None
        for exponent, height, width in product(_EXPONENTS, _HEIGHTS, _WIDTHS):
            lower = roots[height, width]
            offset, whitened = _offset(lower, y - sums[exponent])
            value = float(-0.5 * whitened @ whitened - np.log(np.diag(lower)).sum())
            if value > evidence:
                evidence, found = value, (exponent, height, width, offset, keep, lower, whitened)
        assert found is not None  # for the type checker: evidences are finite
        return cls(*found, float(y.min()))

    def predicted(self, alone: Floats, keep: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation of log damage of policies, each (policies,)."""
        covariance = self.height**2 * np.exp(-_distance(keep, self._keep) / self.width)
        reached = solve_triangular(self._lower, covariance.T, lower=True)
        mean = self.offset + _log_sum(alone, self.exponent) + reached.T @ self._whitened
        variance = self.height**2 - np.einsum("ij,ij->j", reached, reached)
        return np.asarray(mean), np.sqrt(np.maximum(variance, _TINY))

    def improvement(self, alone: Floats, keep: Floats) -> Floats:
        """By how much policies are expected to lower the least log damage, (policies,)."""
        mean, deviation = self.predicted(alone, keep)
        ahead = (self._best - mean) / deviation
        density = np.exp(-0.5 * ahead**2) / math.sqrt(2 * math.pi)
        below = 0.5 * np.array([math.erfc(-one / math.sqrt(2)) for one in ahead])
        return np.asarray(deviation * (ahead * below + density))


def _distance(first: Floats, second: Floats) -> Floats:
    from scipy.spatial.distance import cdist  # a third of a second, for whoever refines

    return np.asarray(cdist(first, second, "cityblock"))


def _log_sum(alone: Floats, exponent: float) -> Floats:
    return np.asarray(np.log(np.maximum((alone**exponent).sum(axis=1), _TINY)))


def _root(distance: Floats, height: float, width: float) -> Floats:
    covariance = height**2 * np.exp(-distance / width) + _NOISE**2 * np.eye(len(distance))
    return np.asarray(np.linalg.cholesky(covariance))


def _offset(lower: Floats, above: Floats) -> tuple[float, Floats]:
    """The constant of generalised least squares, and what it leaves, whitened."""
    ones, values = solve_triangular(lower, np.stack([np.ones(len(above)), above], 1), lower=True).T
    offset = float(ones @ values / (ones @ ones))
    return offset, np.asarray(values - offset * ones)
