"""Concatenation, stacking, splitting and padding."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from automl.graph.export import concrete
from automl.graph.labels import varies, varying_dims
from automl.graph.ops.step import Labels, Step, handles


@handles("cat", "concat", "concatenate")
def cat(step: Step) -> Labels:
    """Labels side by side; channels that run across the seam are tied."""
    nodes = step.args["tensors"]
    dim = int(step.args.get("dim", 0)) % len(step.out_shape)
    parts = [step.labels_of(node) for node in nodes]
    parts = [part for part in parts if part.dim() == len(step.out_shape)]
    across = sorted({d for part in parts for d in varying_dims(part) if d != dim})
    if not across:  # only the joined dimension is worth laying out
        thin = [part.movedim(dim, 0).reshape(part.shape[dim], -1)[:, 0] for part in parts]
        return step.output_like(torch.cat(thin), dim)
    if any(varies(part, dim) for part in parts) and not _is_parameter_only(step, nodes, dim):
        for part in parts:
            step.space.freeze(part, step.where, "joined along one of two varying dimensions")
        return torch.cat(parts, dim)
    flat = [step.space.merge(part, [dim], step.where).narrow(dim, 0, 1) for part in parts]
    simplest = min(flat, key=lambda part: len(varying_dims(part)) or 9)
    for part in flat:
        step.space.tie(simplest, part, step.where)
    return simplest.expand(step.out_shape)


def _is_parameter_only(step: Step, nodes: list[Any], dim: int) -> bool:
    """Whether only per-element labelled parameters vary along the seam (class tokens)."""
    return not any(
        varies(step.labels_of(node), dim) and not step.is_named_tensor(node) for node in nodes
    )


@handles("stack")
def stack(step: Step) -> Labels:
    """Equal shapes, so equal channels: tied."""
    parts = [step.labels_of(node) for node in step.args["tensors"]]
    for part in parts[1:]:
        step.space.tie(parts[0], part, step.where)
    dim = int(step.args.get("dim", 0)) % len(step.out_shape)
    return parts[0].unsqueeze(dim).expand(step.out_shape)


@handles("split", "split_with_sizes", "chunk", "tensor_split")
def split(step: Step) -> Labels:
    """Pieces along a dimension; their sizes follow the channels in them."""
    labels = step.labels("self")
    dim = int(step.value("dim")) % labels.dim()
    sizes = [concrete(tuple(part.shape))[dim] for part in step.node.meta["val"]]
    parts: list[Tensor] = list(torch.split(labels, sizes, dim))
    if varies(labels, dim):
        for index, part in enumerate(parts):
            step.rewrite(("split_sizes", index), part, dim)
    return parts


@handles("pad", "constant_pad_nd")
def pad(step: Step) -> Labels:
    """Padding along channels adds new positions; along other dimensions it changes nothing."""
    labels = step.labels("self")
    amounts = list(step.value("pad"))
    before = [0] * labels.dim()
    after = [0] * labels.dim()
    for place in range(len(amounts) // 2):
        before[-1 - place], after[-1 - place] = amounts[2 * place], amounts[2 * place + 1]
    touched = [d for d in varying_dims(labels) if before[d] or after[d]]
    if not touched:
        narrow = labels
        for dim in range(labels.dim()):
            if before[dim] or after[dim]:
                narrow = narrow.narrow(dim, 0, 1)
        return narrow.expand(step.out_shape)
    constant = step.args.get("mode", "constant") == "constant"
    if len(touched) > 1 or not constant or min(amounts) < 0:
        return step.give_up("padding that depends on the channels")
    return _pad_channels(step, labels, touched[0], before[touched[0]], after[touched[0]])


def _pad_channels(step: Step, labels: Tensor, dim: int, before: int, after: int) -> Tensor:
    channels = step.only_channels(labels, dim)
    left, right = step.space.fresh(before), step.space.fresh(after)
    place = 2 * (labels.dim() - 1 - dim)
    if before:
        step.rewrite(("pad", place), left, 0)
    if after:
        step.rewrite(("pad", place + 1), right, 0)
    return step.output_like(torch.cat([left, channels, right]), dim)


@handles("glu")
def glu(step: Step) -> Labels:
    """One half gates the other, channel by channel."""
    labels, dim = step.labels("self"), int(step.value("dim")) % len(step.out_shape)
    value, gate = labels.chunk(2, dim)
    step.space.tie(value, gate, step.where)
    return value


@handles("col2im")
def col2im(step: Step) -> Labels:
    """Each block of channels becomes one."""
    channels = step.only_channels(step.labels("self"), 1)
    blocks = step.space.merge(channels.view(step.out_shape[1], -1), [1], step.where)
    return step.output_like(blocks[:, 0], 1)


@handles("pixel_unshuffle", "im2col")
def pixel_unshuffle(step: Step) -> Labels:
    """Each channel becomes a block of channels that live and die with it."""
    labels = step.labels("self")
    channels = step.only_channels(labels, 1)
    block = math.prod(step.out_shape[1:2]) // len(channels)
    return step.output_like(channels.repeat_interleave(block), 1)
