"""Ridge regression of several groups at once, with a fallback for singular inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Rows multiplied at once: products run in float32, sums across chunks in float64.
_CHUNK = 2048
_RETRIES = 6


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted affine map, shapes (groups, features, outputs) and (groups, outputs)."""

    weight: Tensor
    intercept: Tensor


def solve(inputs: Tensor, wanted: Tensor, weight: Tensor, ridge: float, centred: bool) -> Fit:
    """Fits ``inputs @ W + b`` to ``wanted``, pulled towards the given weights.

    Args:
        inputs: Shape (groups, samples, features).
        wanted: Shape (groups, samples, outputs).
        weight: Weights so far, shape (groups, features, outputs).
        ridge: Strength of the pull, relative to the mean power of the inputs.
        centred: Whether an intercept may be fitted; else b = 0.

    Returns:
        The fit, in the dtype of ``weight``; the old weights where the inputs are constant.
    """
    samples = inputs.shape[1]
    input_mean = _mean(inputs, centred)
    wanted_mean = _mean(wanted, centred)
    gram = _product(inputs, inputs) - samples * input_mean.transpose(1, 2) @ input_mean
    cross = _product(inputs, wanted) - samples * input_mean.transpose(1, 2) @ wanted_mean
    old = weight.double()
    change = _regularised(gram, cross - gram @ old, ridge)
    new = old + change
    intercept = (wanted_mean - input_mean @ new)[:, 0]
    return Fit(new.to(weight.dtype), intercept.to(weight.dtype))


def _mean(values: Tensor, centred: bool) -> Tensor:
    mean = values.mean(1, keepdim=True, dtype=torch.float64)
    return mean if centred else torch.zeros_like(mean)


def _product(one: Tensor, other: Tensor) -> Tensor:
    """``one^T other`` per group in float64, shape (groups, features, outputs)."""
    total = torch.zeros(
        one.shape[0], one.shape[2], other.shape[2], dtype=torch.float64, device=one.device
    )
    for start in range(0, one.shape[1], _CHUNK):
        rows = slice(start, start + _CHUNK)
        total += one[:, rows].transpose(1, 2) @ other[:, rows]
    return total


def _regularised(gram: Tensor, residual: Tensor, ridge: float) -> Tensor:
    """Solves ``(gram + ridge * mean power) x = residual``, with more ridge until it succeeds."""
    power = gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(torch.finfo(torch.float64).tiny)
    eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    for attempt in range(_RETRIES):
        strength = (ridge * 10**attempt * power)[:, None, None]
        factor, failed = torch.linalg.cholesky_ex(gram + strength * eye)
        if not bool(failed.any()):
            found = torch.cholesky_solve(residual, factor)
            if bool(torch.isfinite(found).all()):
                return found
    return torch.zeros_like(residual)
