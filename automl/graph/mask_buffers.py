"""Masks of parameters, as buffers beside them (see ``automl.pruning.masks``)."""

from __future__ import annotations

import torch
from torch import nn

#: ``weight`` -> ``weight_mask``.
SUFFIX = "_mask"


def is_mask(owner: nn.Module, name: str) -> bool:
    """Whether a module's tensor of this name is the mask of one of its parameters."""
    mask, weight = owner._buffers.get(name), owner._parameters.get(name.removesuffix(SUFFIX))
    if mask is None or weight is None:
        return False
    return name.endswith(SUFFIX) and mask.dtype == torch.bool and mask.shape == weight.shape
