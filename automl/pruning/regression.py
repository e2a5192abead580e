"""Ridge regression of several groups at once, with a fallback for singular inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Rows multiplied at once: products run in float32, sums across chunks in float64.
_CHUNK = 2048
_RETRIES = 6
_NOISE = 1e-12
#: Of conjugate gradients: most steps, the relative error at which they end, no division by zero.
_STEPS = 200
_ACCURACY = 1e-6
_TINY = 1e-300


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted affine map, shapes (groups, features, outputs) and (groups, outputs)."""

    weight: Tensor
    intercept: Tensor


def solve(
    inputs: Tensor,
    wanted: Tensor,
    weight: Tensor,
    ridge: float,
    centred: bool,
    mask: Tensor | None = None,
) -> Fit:
    """Fits ``inputs @ W + b`` to ``wanted``, pulled towards the given weights.

    Args:
        inputs: Shape (groups, samples, features).
        wanted: Shape (groups, samples, outputs).
        weight: Weights so far, shape (groups, features, outputs).
        ridge: Strength of the pull, relative to the mean power of the inputs.
        centred: Whether an intercept may be fitted; else b = 0.
        mask: Which weights may change, booleans of the shape of ``weight``; None for all. The
            others, zeros of a mask, stay exactly as they are.

    Returns:
        The fit, in the dtype of ``weight``; the old weights where the inputs are constant.
    """
    input_mean = _mean(inputs, centred)
    wanted_mean = _mean(wanted, centred)
    gram, cross = _products(inputs, wanted, input_mean, wanted_mean)
    old = weight.double()
    # Below this power, centred inputs are the rounding noise of constant ones.
    noise = inputs.shape[1] * _NOISE * input_mean.square().mean((1, 2))
    residual = cross - gram @ old
    if mask is None:
        change = regularised(gram, residual, ridge, noise)
    else:
        change = _masked(gram, residual, ridge, noise, mask)
    new = old + change
    intercept = (wanted_mean - input_mean @ new)[:, 0]
    return Fit(new.to(weight.dtype), intercept.to(weight.dtype))


def moments(inputs: Tensor, centred: bool) -> tuple[Tensor, Tensor]:
    """Gram matrix of the centred inputs and their mean, both in float64.

    Args:
        inputs: Shape (groups, samples, features).
        centred: Whether to centre; else the mean is 0.

    Returns:
        Shapes (groups, features, features) and (groups, 1, features).
    """
    mean = _mean(inputs, centred)
    return _products(inputs, inputs[:, :, :0], mean, mean[:, :, :0])[0], mean


def _mean(values: Tensor, centred: bool) -> Tensor:
    groups, samples, width = values.shape
    total = torch.zeros(groups, 1, width, dtype=torch.float64, device=values.device)
    if centred:
        for start in range(0, samples, _CHUNK):
            total += values[:, start : start + _CHUNK].sum(1, keepdim=True)
    return total / samples


def _products(
    inputs: Tensor, wanted: Tensor, input_mean: Tensor, wanted_mean: Tensor
) -> tuple[Tensor, Tensor]:
    """Gram matrix and cross term per group in float64, of centred inputs and targets.

    Centring before multiplying: subtracting the means' product afterwards would cancel.
    """
    groups, _, features = inputs.shape
    both = torch.zeros(
        groups, features, features + wanted.shape[2], dtype=torch.float64, device=inputs.device
    )
    shift, goal = input_mean.to(inputs.dtype), wanted_mean.to(wanted.dtype)
    for start in range(0, inputs.shape[1], _CHUNK):
        rows = slice(start, start + _CHUNK)
        x = inputs[:, rows] - shift
        y = wanted[:, rows] - goal
        if groups > 1:  # many small products: the samples of each lie one behind the other
            x_rows = x.transpose(1, 2).contiguous()
            xy = torch.cat([x_rows, y.transpose(1, 2)], dim=1)
            both += torch.bmm(x_rows, xy.transpose(1, 2))
        else:
            both += x.transpose(1, 2) @ torch.cat([x, y], dim=2)
    return both[..., :features], both[..., features:]


def regularised(gram: Tensor, residual: Tensor, ridge: float, noise: Tensor) -> Tensor:
    """Solves ``(gram + ridge * mean power) x = residual``, with more ridge until it succeeds.

    Args:
        gram: Shape (groups, features, features).
        residual: Shape (groups, features, outputs).
        ridge: Relative to the mean of the diagonal.
        noise: Power below which inputs count as constant, shape (groups,).
    """
    power = gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(torch.finfo(torch.float64).tiny)
    residual = torch.where((power > noise)[:, None, None], residual, 0.0)
    eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    for attempt in range(_RETRIES):
        strength = (ridge * 10**attempt * power)[:, None, None]
        factor, failed = torch.linalg.cholesky_ex(gram + strength * eye)
        if not bool(failed.any()):
            found = torch.cholesky_solve(residual, factor)
            if bool(torch.isfinite(found).all()):
                return found
    return torch.zeros_like(residual)


def _masked(gram: Tensor, residual: Tensor, ridge: float, noise: Tensor, mask: Tensor) -> Tensor:
    """Solves the same where only the entries of ``mask`` may be other than zero.

    Every output has a support of its own, so that there is no one matrix to factorise: conjugate
    gradients, preconditioned by the diagonal, run for all outputs at once, one product with the
    Gram matrix a step.
    """
    power = gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(torch.finfo(torch.float64).tiny)
    strength = (ridge * power)[:, None, None]
    scale = mask / (gram.diagonal(dim1=1, dim2=2)[..., None] + strength)
    left = torch.where((power > noise)[:, None, None], residual, 0.0) * mask
    change = torch.zeros_like(left)
    direction = scale * left
    energy = (left * direction).sum(1, keepdim=True)
    goal = energy * _ACCURACY**2
    for _ in range(_STEPS):
        if not bool((energy > goal).any()):
            break
        product = (gram @ direction + strength * direction) * mask
        length = energy / (direction * product).sum(1, keepdim=True).clamp_min(_TINY)
        change += length * direction
        left -= length * product
        before, towards = energy, scale * left
        energy = (left * towards).sum(1, keepdim=True)
        direction = towards + energy / before.clamp_min(_TINY) * direction
    return change if bool(torch.isfinite(change).all()) else torch.zeros_like(change)
