"""Slim networks laid back into the dense network's shapes, to be looked at by its plan."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from automl.graph.mask_buffers import SUFFIX
from automl.graph.materialise import KeptUnits
from automl.plan import IndexPlan
from automl.pruning.masks import masks_of
from automl.training.state import evaluating, state_tensors

#: Largest distance of outputs that is rounding, as a fraction of their size.
_ROUNDING = 1e-3


@torch.no_grad()
def laid_back(network: nn.Module, dense: nn.Module, plan: IndexPlan, units: KeptUnits) -> nn.Module:
    """A slim network in the dense network's shapes, zero where channels are gone.

    It computes what the slim network does, but for layer norms over pruned channels.

    Args:
        network: The slim network; masks are left behind, their zeros come along.
        dense: The dense network, which is not touched.
        plan: Its plan.
        units: What the slim network has kept.
    """
    whole = copy.deepcopy(dense).eval()
    positions = [torch.from_numpy(at) for at in plan.positions(units)]
    axes = {tensor.name: tensor.axes for tensor in plan.tensors}
    masks = {name + SUFFIX for name in masks_of(network)}
    theirs = state_tensors(whole)
    for name, tensor in state_tensors(network).items():
        if name in masks:
            continue
        full = theirs[name]
        cuts = axes.get(plan.aliases.get(name, name), (None,) * full.dim())
        if all(axis is None for axis in cuts):
            full.copy_(tensor)
            continue
        index = [
            torch.arange(size) if axis is None else positions[axis]
            for size, axis in zip(full.shape, cuts, strict=True)
        ]
        grid = torch.meshgrid(*(at.to(full.device) for at in index), indexing="ij")
        full.zero_()[grid] = tensor
    return whole


@torch.no_grad()
def computes_the_same(ours: nn.Module, theirs: nn.Module, inputs: Tensor) -> bool:
    """Whether two networks put out the same for these inputs, up to rounding."""
    with evaluating(ours), evaluating(theirs):
        first, second = ours(inputs), theirs(inputs)
    if not isinstance(first, Tensor):
        return False
    return bool((first - second).norm() <= _ROUNDING * second.norm())
