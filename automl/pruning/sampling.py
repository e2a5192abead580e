"""Which outputs of a layer it is fitted on, and the inputs that they are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

#: More samples than these are not used; part of the journal's key, as they change results.
SAMPLES_PER_FEATURE, LEAST_SAMPLES = 256, 2048


def channel_dim(layer: nn.Module) -> int:
    """Where a layer's outputs have their channels: behind the batch, or last."""
    return -1 if isinstance(layer, nn.Linear) else 1


def sample(
    value: Tensor, channels: int, points: int, images: int, generator: torch.Generator
) -> Tensor:
    """Random positions (samples, 1 + spatial dims): image first; ``channels`` is left out.

    Args:
        value: What a layer puts out.
        channels: The dimension they lie in.
        points: How many for each image.
        images: How many there are. Attention may have tokens first: each then gets so many
            positions that there are as many in all.
        generator: Chooses them.
    """
    spatial = value.movedim(channels, -1).shape[1:-1]
    each = max(points, -(-points * images // max(value.shape[0], 1)))
    count = min(each, int(np.prod(spatial, dtype=np.int64)))
    first = torch.arange(value.shape[0]).repeat_interleave(count)
    columns = [first]
    columns += [torch.randint(size, (len(first),), generator=generator) for size in spatial]
    return torch.stack(columns, dim=1).to(value.device)


def thinned(positions: Tensor, features: int) -> Tensor:
    """Evenly spaced positions, as many as a fit of so many features can use.

    The error that a least-squares fit adds for want of samples is features / samples of the
    residual, so that beyond ``SAMPLES_PER_FEATURE`` more of them cost time and change nothing. A
    filter of a depthwise convolution has 9 features and would get tens of thousands.
    """
    step = max(1, len(positions) // max(LEAST_SAMPLES, features * SAMPLES_PER_FEATURE))
    return positions[::step]


def gather(value: Tensor, channels: int, positions: Tensor) -> Tensor:
    """Values at positions, shape (samples, channels); ``channels`` is the dimension they lie in."""
    return value.movedim(channels, -1)[tuple(positions.unbind(1))]


def features(layer: Any) -> int:
    """How many inputs go into one output of a layer."""
    weight: Tensor = layer.weight
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        return weight[:, 0].numel() // layer.groups
    return weight[0].numel()


def patches(data: Tensor, layer: Any, positions: Tensor, padded: bool = False) -> Tensor:
    """Inputs of the sampled outputs, shape (groups, samples, features of a group).

    Args:
        data: What the layer reads, channels in dimension 1 (the last one of linear layers).
        layer: A linear layer or a convolution, transposed ones too.
        positions: Of :func:`sample`.
        padded: Whether ``data`` is padded already.
    """
    if isinstance(layer, nn.Linear):
        return gather(data, channel_dim(layer), positions)[None]
    images, *places = positions.unbind(1)
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        taken = _read_by_transposed(data, layer, images, places)
    else:
        taken = _read_by_convolution(data, layer, images, places, padded)
    samples, channels = len(taken), taken.shape[-1]
    grouped = taken.reshape(samples, -1, layer.groups, channels // layer.groups)
    if layer.groups > 1:  # sums over samples run along memory, however small the groups are
        together = grouped.permute(2, 3, 1, 0).reshape(layer.groups, -1, samples)
        return together.transpose(1, 2)
    return grouped.permute(2, 0, 3, 1).reshape(layer.groups, samples, -1)


def _read_by_convolution(
    data: Tensor, layer: Any, images: Tensor, places: list[Tensor], padded: bool
) -> Tensor:
    """Shape (samples, *kernel, channels)."""
    pad = [] if padded else _padding(layer)
    if any(pad):
        data = nn.functional.pad(data, pad)
    index = [
        place[:, None] * stride + _offsets(size, dilation, place)
        for place, size, stride, dilation in zip(
            places, layer.kernel_size, layer.stride, layer.dilation, strict=True
        )
    ]
    return data.movedim(1, -1)[_crossed(images, index)]


def _padding(layer: Any) -> list[int]:
    """As ``torch.nn.functional.pad`` takes it: last dimension first, both ends of each."""
    if layer.padding == "valid":
        return []
    if layer.padding == "same":
        sizes = zip(layer.kernel_size, layer.dilation, strict=True)
        spans = [dilation * (size - 1) for size, dilation in sizes]
        return [end for span in reversed(spans) for end in (span // 2, span - span // 2)]
    return [size for size in reversed(layer.padding) for _ in range(2)]


def _read_by_transposed(data: Tensor, layer: Any, images: Tensor, places: list[Tensor]) -> Tensor:
    """Shape (samples, *kernel, channels): zero where a part of the kernel meets no input."""
    index, there = [], []
    settings = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, data.shape[2:])
    for place, size, stride, padding, dilation, length in zip(places, *settings, strict=True):
        steps = place[:, None] + padding - _offsets(size, dilation, place)
        read = torch.div(steps, stride, rounding_mode="floor")
        there.append((steps % stride == 0) & (read >= 0) & (read < length))
        index.append(read.clamp(0, length - 1))
    taken = data.movedim(1, -1)[_crossed(images, index)]
    meets = torch.ones((), dtype=torch.bool, device=data.device)
    for dim, one in enumerate(there):
        meets = meets & _along(one, dim, len(there))
    return taken * meets[..., None]


def _crossed(images: Tensor, index: list[Tensor]) -> tuple[Tensor, ...]:
    """Indices that broadcast to (samples, *kernel)."""
    ones = [1] * len(index)
    crossed = [_along(one, dim, len(index)) for dim, one in enumerate(index)]
    return (images.view(-1, *ones), *crossed)


def _along(values: Tensor, dim: int, dims: int) -> Tensor:
    """(samples, size) as (samples, 1, ..., size, ..., 1)."""
    shape = [1] * dims
    shape[dim] = values.shape[1]
    return values.view(len(values), *shape)


def layout(images: Tensor) -> torch.memory_format:
    """Channels last for images: convolutions then need no reordering."""
    return torch.channels_last if images.dim() == 4 else torch.contiguous_format


def _offsets(size: int, dilation: int, like: Tensor) -> Tensor:
    return torch.arange(0, size * dilation, dilation, device=like.device)
