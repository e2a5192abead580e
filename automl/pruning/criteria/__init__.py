"""Importance criteria: a score per unit, higher is more worth keeping; one file each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from automl.plan import IndexPlan

Scores = list[NDArray[np.float64]]


class Criterion(Protocol):
    """Scores the units of every target."""

    @property
    def name(self) -> str:
        """Identifies the criterion and its settings; part of the journal's key."""

    def __call__(self, model: nn.Module, plan: IndexPlan) -> Scores:
        """One array of shape (units,) per target, higher is more important."""


def written_sums(
    model: nn.Module, plan: IndexPlan, of_element: Callable[[Tensor], Tensor]
) -> Scores:
    """Sums a function of every weight that writes a unit, over all coupled layers.

    Args:
        model: The dense network.
        plan: Its plan.
        of_element: Elementwise function of a weight, for example ``torch.abs``.

    Returns:
        One array of shape (units,) per target, in float64.
    """
    totals = np.zeros(int(plan.offsets[-1]) + 1)
    state = dict(model.named_parameters(remove_duplicate=False))
    shapes = {tensor.name: tensor for tensor in plan.tensors}
    for layer in plan.layers_plan:
        if not layer.tensors or layer.out_axis is None:
            continue
        weight = layer.tensors[0]
        tensor = shapes.get(weight)
        if tensor is None or layer.out_axis not in tensor.axes:
            continue
        dim = tensor.axes.index(layer.out_axis)
        others = [d for d in range(len(tensor.shape)) if d != dim]
        values = of_element(state[weight].detach())
        sums = values.sum(others, dtype=torch.float64) if others else values.double()
        axis = plan.axes[layer.out_axis]
        for units in (axis.first, axis.second):
            np.add.at(totals, units, sums.cpu().numpy())  # -1 lands in the spare last entry
    return [
        totals[start : start + target.units]
        for start, target in zip(plan.offsets, plan.targets, strict=False)
    ]
