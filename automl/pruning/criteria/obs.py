"""Optimal Brain Surgeon, layer by layer: what a weight costs if the others make up for it.

A layer's outputs on calibration data are ``W x``; removing weights and refitting the rest of their
row so that the mean squared change of the outputs is least has closed forms in ``H = E[x x^T]``:

- ``w_j ** 2 / [H^-1]_jj`` is the error of removing one weight of a row (criterion ``obs``),
- :func:`obs_prune` removes many, column by column, and updates what is right of each,
- :func:`obs_refit` is the exact optimum for a given mask.

Sources: Hassibi and Stork, "Second order derivatives for network pruning: Optimal Brain Surgeon"
(NIPS 1992), equation 5; layer-wise as in Frantar and Alistarh, "Optimal Brain Compression" (arXiv
2208.11580), section 3; columns in order as in the same authors' "SparseGPT" (arXiv 2301.00774),
algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from automl.pruning.criteria import Context, ElementCriterion, Need
from automl.pruning.criteria.activations import (
    as_matrices,
    from_matrices,
    input_grams,
    require_uses,
)
from automl.pruning.criteria.checks import OnInputs, require_counts, require_positive

#: Bytes of systems that are solved at once.
_SOLVED_BYTES = 2**28


@dataclass(frozen=True)
class Obs(OnInputs, ElementCriterion):
    """``saliency(w_ij) = w_ij ** 2 / [H^-1]_jj``, H of the inputs that row i multiplies.

    The rise of the layer's mean squared output error if this weight alone is removed and the rest
    of its row refitted. Needs inputs, no labels; costs a forward pass, and for every layer the
    inverse of a matrix as large as its inputs (networks with large layers pass several times, to
    hold few of these at once).

    Attributes:
        images: Calibration inputs used.
        points: Output positions per input and layer, drawn at random.
        damping: Added to H's diagonal, as a fraction of its mean.

    Raises:
        ValueError: A field breaks its rule.
    """

    title: ClassVar[str] = "obs"

    points: int = 32
    damping: float = 1e-2

    def __post_init__(self) -> None:
        """Checks the fields."""
        super().__post_init__()
        require_counts(self, "points")
        require_positive(self, "damping")

    @property
    def needs(self) -> frozenset[Need]:
        """Inputs, and a seed for the positions."""
        return frozenset({"data", "seed"})

    def score_weights(self, context: Context, weights: Sequence[str]) -> dict[str, Tensor]:
        """Name -> saliency."""
        uses = {use.weight: use for use in require_uses("obs", context, weights)}
        found: dict[str, Tensor] = {}
        for name, gram in input_grams(context, self.images, self.points, list(uses.values())):
            weight, use = context.parameter(name), uses[name]
            spread = inverse(damped(gram, self.damping)).diagonal(dim1=1, dim2=2)
            errors = as_matrices(weight.double().square(), use) / spread[:, None]
            found[name] = from_matrices(errors, weight, use)
        return found


class MaskRule(Protocol):
    """Chooses which weights stay, some columns at a time."""

    @property
    def columns(self) -> int:
        """How many neighbouring columns are decided together."""

    def __call__(self, saliency: Tensor) -> Tensor:
        """Which weights stay.

        Args:
            saliency: Shape (rows, columns), fewer columns at the end.

        Returns:
            Booleans of the same shape.
        """


@dataclass(frozen=True)
class KeepFraction:
    """Unstructured: of every block of columns the best weights stay, over all rows together.

    Attributes:
        keep: Fraction that stays, in [0, 1].
        columns: Width of a block.

    Raises:
        ValueError: A field is out of range.
    """

    keep: float
    columns: int = 128

    def __post_init__(self) -> None:
        """Checks the fields."""
        if not 0 <= self.keep <= 1:
            raise ValueError(f"KeepFraction.keep must be in [0, 1], got {self.keep}")
        require_counts(self, "columns")

    def __call__(self, saliency: Tensor) -> Tensor:
        """Exactly ``round(keep * size)`` stay; ties by position."""
        order = torch.argsort(saliency.flatten(), descending=True, stable=True)
        mask = torch.zeros(saliency.numel(), dtype=torch.bool, device=saliency.device)
        mask[order[: round(self.keep * saliency.numel())]] = True
        return mask.view(saliency.shape)


@dataclass(frozen=True)
class KeepNM:
    """N:M: of every M neighbouring columns the best N stay in each row, ties by position.

    Attributes:
        n: Weights that stay, in [0, m].
        m: Columns of a group, >= 1.

    Raises:
        ValueError: A field is out of range.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        """Checks the fields."""
        require_counts(self, "m")
        if not 0 <= self.n <= self.m:
            raise ValueError(f"KeepNM.n must be in [0, {self.m}], got {self.n}")

    @property
    def columns(self) -> int:
        """M."""
        return self.m

    def __call__(self, saliency: Tensor) -> Tensor:
        """N of each row, all of a last group that is no larger."""
        order = torch.argsort(saliency, dim=1, descending=True, stable=True)
        mask = torch.zeros_like(saliency, dtype=torch.bool)
        return mask.scatter_(1, order[:, : self.n], True)


def obs_prune(
    weight: Tensor,
    hessian: Tensor,
    mask_rule: MaskRule,
    *,
    damping: float = 1e-2,
    order: Tensor | None = None,
) -> Tensor:
    """Prunes a matrix column by column; what is right of a column makes up for its zeros.

    Args:
        weight: Shape (rows, columns); multiplies inputs of shape (columns,).
        hessian: ``E[x x^T]`` of these, shape (columns, columns); any positive factor.
        mask_rule: Chooses what stays, on saliencies of the weights updated so far.
        damping: Added to the diagonal, as a fraction of its mean.
        order: Permutation of the columns in which they are gone through, and in which the rule's
            neighbours are neighbours; None for as they are.

    Returns:
        The new weight, in the type and shape of ``weight``, exactly 0.0 where pruned.

    Raises:
        ValueError: Shapes do not fit, or numbers are not finite.
    """
    _check(weight, hessian)
    at = torch.arange(weight.shape[1]) if order is None else order
    at = at.to(weight.device)
    work = weight.double()[:, at]
    factor = _inverse_factor(damped(hessian.double()[None], damping)[0][at][:, at])
    for start in range(0, work.shape[1], mask_rule.columns):
        _prune_block(work, factor, start, mask_rule)
    pruned = torch.empty_like(work)
    pruned[:, at] = work
    return pruned.to(weight.dtype)


def _prune_block(work: Tensor, factor: Tensor, start: int, mask_rule: MaskRule) -> None:
    """Decides a block of columns and moves their errors to the right, in place."""
    stop = min(start + mask_rule.columns, work.shape[1])
    pivots = factor.diagonal()[start:stop]
    keep = mask_rule((work[:, start:stop] / pivots).square())
    errors = torch.zeros_like(work[:, start:stop])
    for column in range(start, stop):
        gone = torch.where(keep[:, column - start], 0.0, work[:, column])
        error = gone / factor[column, column]
        work[:, column:stop] -= error[:, None] * factor[column, column:stop]
        # Rounding would leave something like 1e-18.
        work[:, column].masked_fill_(~keep[:, column - start], 0.0)
        errors[:, column - start] = error
    work[:, stop:] -= errors @ factor[start:stop, stop:]


def obs_refit(weight: Tensor, hessian: Tensor, mask: Tensor, *, damping: float = 1e-2) -> Tensor:
    """The weights on a mask that change the outputs least.

    Every row w becomes the minimum of ``(v - w)^T (H + damping) (v - w)`` over v that are zero off
    the mask. Costs a system of all columns per row, so it is for layers of moderate size.

    Args:
        weight: The dense matrix, shape (rows, columns).
        hessian: ``E[x x^T]`` of its inputs, shape (columns, columns); any positive factor.
        mask: True where weights stay, shape (rows, columns).
        damping: Added to the diagonal, as a fraction of its mean.

    Returns:
        The new weight, in the type and shape of ``weight``, exactly 0.0 off the mask.

    Raises:
        ValueError: Shapes do not fit, or numbers are not finite.
    """
    _check(weight, hessian)
    if mask.shape != weight.shape:
        raise ValueError(f"obs_refit.mask must be {tuple(weight.shape)}, got {tuple(mask.shape)}")
    gram = damped(hessian.double()[None], damping)[0]
    dense, at_once = weight.double(), max(1, _SOLVED_BYTES // (8 * gram.numel()))
    refitted = torch.zeros_like(dense)
    for rows in torch.split(torch.arange(len(dense), device=weight.device), at_once):
        stays = mask[rows].double()
        system = gram * stays[:, :, None] * stays[:, None, :]
        # Pruned columns become equations v = 0, so that all rows have systems of one size.
        system.diagonal(dim1=1, dim2=2).add_(1 - stays)
        wanted = (dense[rows] @ gram) * stays
        factor = torch.linalg.cholesky(system)
        refitted[rows] = torch.cholesky_solve(wanted[:, :, None], factor)[:, :, 0]
    return refitted.masked_fill_(~mask, 0.0).to(weight.dtype)


def channels_innermost(weight: Tensor) -> Tensor:
    """The order of a convolution's columns in which N:M looks for neighbours.

    Args:
        weight: Shape (out, into, *kernel).

    Returns:
        Permutation of the columns of ``weight.reshape(out, -1)`` that goes through the input
        channels at one position of the kernel before the next; the identity for linear layers.
    """
    into = weight.shape[1]
    return torch.arange(weight[0].numel()).reshape(into, -1).T.flatten()


# ---- Hessians


def damped(gram: Tensor, damping: float) -> Tensor:
    """``H + damping * mean(diag H)``, shape (groups, n, n); never zero on the diagonal.

    Raises:
        ValueError: H is not finite.
    """
    if not bool(gram.isfinite().all()):
        raise ValueError("obs.hessian must be finite, got NaN or infinity")
    power = gram.diagonal(dim1=1, dim2=2).mean(1)
    power = torch.where(power > 0, power, torch.ones_like(power))
    eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    return gram + damping * power[:, None, None] * eye


def inverse(gram: Tensor) -> Tensor:
    """Inverse of symmetric positive matrices, shape (groups, n, n)."""
    return torch.cholesky_inverse(torch.linalg.cholesky(gram))


def _inverse_factor(gram: Tensor) -> Tensor:
    """Upper triangular U with ``gram^-1 = U^T U``."""
    factor: Tensor = torch.linalg.cholesky(inverse(gram[None])[0], upper=True)
    return factor


def _check(weight: Tensor, hessian: Tensor) -> None:
    columns = weight.shape[-1]
    if weight.dim() != 2 or hessian.shape != (columns, columns):
        raise ValueError(
            f"obs.hessian must be (columns, columns) of a matrix, got {tuple(hessian.shape)} for "
            f"weight {tuple(weight.shape)}"
        )
    if not bool(weight.isfinite().all()):
        raise ValueError("obs.weight must be finite, got NaN or infinity")
