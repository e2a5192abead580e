"""Weights of layers as the matrices that regressions fit, and back."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from automl.pruning.regression import Fit


def as_matrices(layer: nn.Module, groups: int) -> Tensor:
    """Weights as (groups, features of a group, outputs of a group), in the order of patches."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return by_columns(layer, weight, groups)


def by_columns(layer: nn.Module, weight: Tensor, groups: int) -> Tensor:
    """The same of any tensor of the weight's shape: a mask."""
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):  # (in, out of a group, *kernel)
        apart = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        return apart.transpose(2, 3).reshape(groups, -1, weight.shape[1])
    return weight.reshape(groups, weight.shape[0] // groups, -1).transpose(1, 2)


def from_columns(layer: nn.Module, columns: Tensor) -> Tensor:
    """Such matrices in the shape of the layer's weight."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        groups, _, outputs = columns.shape
        apart = columns.reshape(groups, weight.shape[0] // groups, -1, outputs)
        return apart.transpose(2, 3).reshape(weight.shape)
    return columns.transpose(1, 2).reshape(weight.shape)


def by_group(wanted: Tensor, groups: int) -> Tensor:
    """(samples, channels) to (groups, samples, channels of a group)."""
    return wanted.reshape(len(wanted), groups, -1).transpose(0, 1)


def write(layer: nn.Module, norm: Any, fit: Fit) -> None:
    """Puts a fit into a layer, and its intercept into the layer's bias or its norm's mean."""
    weight: Any = layer.weight
    weight.copy_(from_columns(layer, fit.weight))
    intercept = fit.intercept.reshape(-1).to(weight.dtype)
    bias: Any = getattr(layer, "bias", None)
    if bias is not None:
        bias.copy_(intercept)
    elif norm is not None:
        norm.running_mean.sub_(intercept)
