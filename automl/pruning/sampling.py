"""Which outputs of a layer it is fitted on, and the inputs that they are made of."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

#: More samples than these are not used; part of the journal's key, as they change results.
SAMPLES_PER_FEATURE, LEAST_SAMPLES = 256, 2048


def channel_dim(layer: nn.Module) -> int:
    """Where a layer's outputs have their channels: behind the batch, or last."""
    return -1 if isinstance(layer, nn.Linear) else 1


def sample(value: Tensor, channels: int, points: int, generator: torch.Generator) -> Tensor:
    """Random positions (samples, 1 + spatial dims): image first; ``channels`` is left out."""
    spatial = value.movedim(channels, -1).shape[1:-1]
    count = min(points, int(np.prod(spatial, dtype=np.int64)))
    images = torch.arange(value.shape[0]).repeat_interleave(count)
    columns = [images]
    columns += [torch.randint(size, (len(images),), generator=generator) for size in spatial]
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


def patches(data: Tensor, layer: nn.Module, positions: Tensor) -> Tensor:
    """Inputs of the sampled outputs, shape (groups, samples, features of a group)."""
    if isinstance(layer, nn.Linear):
        return gather(data, channel_dim(layer), positions)[None]
    assert isinstance(layer, nn.Conv2d) and not isinstance(layer.padding, str)
    rows, columns = layer.kernel_size
    pad = (layer.padding[1], layer.padding[1], layer.padding[0], layer.padding[0])
    padded = nn.functional.pad(data, pad) if any(pad) else data
    image, y, x = positions.unbind(1)
    ys = (y * layer.stride[0])[:, None, None] + _offsets(rows, layer.dilation[0], y)[None, :, None]
    xs = (x * layer.stride[1])[:, None, None] + _offsets(columns, layer.dilation[1], x)[None, None]
    # (samples, rows, columns, channels)
    taken = padded.movedim(1, -1)[image[:, None, None], ys, xs]
    samples, channels = len(taken), taken.shape[-1]
    if layer.groups > 1:  # sums over samples run along memory, however small the groups are
        features = taken.reshape(samples, rows * columns, layer.groups, channels // layer.groups)
        together = features.permute(2, 3, 1, 0).reshape(layer.groups, -1, samples)
        return together.transpose(1, 2)
    grouped = taken.reshape(samples, rows * columns, layer.groups, channels // layer.groups)
    return grouped.permute(2, 0, 3, 1).reshape(layer.groups, samples, -1)


def layout(images: Tensor) -> torch.memory_format:
    """Channels last for images: convolutions then need no reordering."""
    return torch.channels_last if images.dim() == 4 else torch.contiguous_format


def _offsets(size: int, dilation: int, like: Tensor) -> Tensor:
    return torch.arange(0, size * dilation, dilation, device=like.device)
