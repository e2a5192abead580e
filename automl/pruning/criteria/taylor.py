"""First-order Taylor expansion of the loss.

Source: Molchanov et al., "Importance Estimation for Neural Network Pruning" (arXiv 1906.10771):
for single weights equation 8, ``I(w) = (g w) ** 2``; for a unit with the set S of parameters that
is removed at once, equation 9, ``I(S) = (sum over S of g w) ** 2``. Both are averaged over
minibatches, as in the authors' implementation.

Deviations: a unit's S is its batch norms' scale and shift where it has batch norms, for removing
the unit makes these zero (their gates, section 3.2), else the weights and biases that write it;
coupled layers belong to one S.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from automl.plan import TensorPlan
from automl.pruning.criteria import (
    Context,
    ElementCriterion,
    Scores,
    UnitCriterion,
    by_target,
    writing_dims,
)
from automl.pruning.criteria.checks import OnGradients
from automl.pruning.criteria.gradients import (
    Gradients,
    batch_gradients,
)


@dataclass(frozen=True)
class Taylor(OnGradients, ElementCriterion):
    """``saliency(w) = mean over minibatches of (g w) ** 2``, g the gradient of the mean loss.

    Needs labelled inputs (or ``labels=model``) and a loss; costs a forward and backward pass.
    """

    title: ClassVar[str] = "taylor"

    def score_weights(self, context: Context, weights: Sequence[str]) -> dict[str, Tensor]:
        """Name -> saliency, of all parameters in one pass."""
        sums: dict[str, Tensor] = {}
        batches = 0
        for _, grads in batch_gradients(context, self.images, self.batch_size, self.labels):
            batches += 1
            for name, grad in grads.items():
                term = (grad * context.parameter(name)).double().square_()
                sums[name] = sums[name].add_(term) if name in sums else term
        return {name: total / batches for name, total in sums.items()}


@dataclass(frozen=True)
class TaylorGroup(OnGradients, UnitCriterion):
    """``score(u) = mean over minibatches of (sum over S(u) of g w) ** 2``.

    The loss's first-order change when the unit is removed as a whole; terms of opposite sign
    cancel, which sums of squares do not. Needs and costs what :class:`Taylor` does.
    """

    title: ClassVar[str] = "taylor_group"

    def score_units(self, context: Context) -> Scores:
        """Scores of all units in one pass."""
        members = unit_parameters(context)
        total = np.zeros(int(context.plan.offsets[-1]) + 1)
        batches = 0
        for _, grads in batch_gradients(context, self.images, self.batch_size, self.labels):
            batches += 1
            total += _group_sums(context, members, grads) ** 2
        return by_target(context.plan, total / batches)


#: A parameter, the dimension that belongs to units, and that dimension's axis.
Member = tuple[str, int, int]


def unit_parameters(context: Context) -> list[Member]:
    """The parameters that become zero when a unit is removed, once each.

    Of a target with batch norms these are their scales and shifts, else weights and biases.
    """
    plan = context.plan
    weights = {name: (dim, axis) for name, dim, axis in writing_dims(plan)}
    vectors = [
        t for t in plan.tensors if t.trainable and len(t.shape) == 1 and t.axes[0] is not None
    ]
    norms = [t for t in vectors if _of_batchnorm(context, t)]
    gated = {target for t in norms for target in _targets(context, t.axes[0])}

    def is_gated(axis: int | None) -> bool:
        return bool(_targets(context, axis) & gated)

    members = [(t.name, 0, t.axes[0]) for t in norms if t.axes[0] is not None]
    members += [(name, dim, axis) for name, (dim, axis) in weights.items() if not is_gated(axis)]
    members += [
        (t.name, 0, t.axes[0])
        for t in vectors
        if t not in norms
        and t.axes[0] is not None
        and t.name not in weights
        and not is_gated(t.axes[0])
    ]
    return members


def _of_batchnorm(context: Context, tensor: TensorPlan) -> bool:
    owner = context.model.get_submodule(tensor.name.rpartition(".")[0])
    return isinstance(owner, torch.nn.modules.batchnorm._BatchNorm)


def _targets(context: Context, axis: int | None) -> frozenset[int]:
    return frozenset() if axis is None else context.plan.counts[axis].targets


def _group_sums(
    context: Context, members: Sequence[Member], grads: Gradients
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Sum of g w over the parameters of every global unit, shape (units + 1,)."""
    sums = np.zeros(int(context.plan.offsets[-1]) + 1)
    for name, dim, axis_index in members:
        product = (grads[name] * context.parameter(name)).double().movedim(dim, 0)
        values = (
            product.flatten(1).sum(1).cpu().numpy() if product.dim() > 1 else product.cpu().numpy()
        )
        axis = context.plan.axes[axis_index]
        for units in (axis.first, axis.second):
            np.add.at(sums, units, values)  # -1 lands in the spare last entry
    return sums
