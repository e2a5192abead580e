"""Sparse convolution: the sparse product for batches, with output positions in place of examples.

Neighbouring positions of the output are the lanes of vectors, and every non-zero weight is a fused
multiply-add for each vector; ``conv_plan.py`` says how that comes about for any stride. Groups are
rows that have no weights outside of their channels, so they cost nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from automl.executors.conv_plan import Geometry, Pair, Plan, plan
from automl.executors.depthwise import NO_BOUNDS, NO_DEPTHWISE, Depthwise
from automl.executors.kernels import conv, cpu
from automl.executors.packed import FLOAT32, scratch
from automl.executors.rows import Float32
from automl.executors.spmm import Spmm, SpmmLinear

#: Added to an output: nothing.
_NOTHING = np.zeros(0, np.float32)
#: Sizes of images for which a layer remembers how they are convolved.
_MOST_PLANS = 8


@dataclass(frozen=True, eq=False)
class SparseConv2d:
    """A packed convolution with zeros as padding, exact.

    Attributes:
        matrix: Rows are output channels, columns input channels by places of the kernel.
        shape: Of the weight: (out_channels, in_channels / groups, height, width).
        stride: Vertical and horizontal; likewise the next two.
        padding: Zeros on each side.
        dilation: Distance of what the kernel reads.
        groups: Groups of channels.
        plans: How images of the sizes met so far are convolved.
    """

    matrix: SpmmLinear
    shape: tuple[int, int, int, int]
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    plans: dict[tuple[int, ...], tuple[Plan, tuple[Any, ...]]] = field(
        default_factory=dict, init=False, repr=False
    )

    #: As ``automl.compile`` calls it.
    name = "conv"

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return self.shape[1] * self.groups

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, with the offsets for every image size met, or for the first one."""
        offsets = 4 * len(self.matrix.value)
        return self.matrix.nbytes + offsets * max(len(self.plans), 1)

    def to_dense(self) -> Float32:
        """The weight that is multiplied with, of ``shape``."""
        out_channels, inputs, *kernel = self.shape
        each = out_channels // self.groups
        whole = self.matrix.to_dense().reshape(self.groups, each, self.groups, inputs, *kernel)
        own = [whole[group, :, group] for group in range(self.groups)]
        return np.concatenate(own).reshape(self.shape)

    def __call__(self, x: Float32) -> Float32:
        """Convolves, as ``torch.nn.functional.conv2d`` does.

        Args:
            x: float32, shape (batch, in_channels, height, width) or without the batch.

        Returns:
            New array of shape (batch, out_channels, height, width) of the output.

        Raises:
            TypeError: The input is not float32.
            ValueError: It has another shape, or is smaller than the kernel.
        """
        if x.dtype != FLOAT32:
            raise TypeError(f"SparseConv2d.x must be float32, got {x.dtype}")
        shape = x.shape
        if x.ndim not in (3, 4) or shape[-3] != self.in_channels:
            rule = f"(batch, {self.in_channels}, height, width)"
            raise ValueError(f"SparseConv2d.x must be {rule}, got {shape}")
        if x.ndim == 3:
            return np.asarray(self(x[None])[0])
        # Little Python: after a layer that filled the caches, each line of it takes 10 us.
        plan, arguments = self._bound(shape[2:])
        images = np.ascontiguousarray(x)
        y = np.empty((shape[0], self.shape[0], *plan.output), FLOAT32)
        memory = scratch(plan.floats)
        if not conv.convolve(images, y, _NOTHING, NO_BOUNDS, memory, *arguments):
            return self._convolve_densely(images)
        return y

    def _bound(self, size: tuple[int, ...]) -> tuple[Plan, tuple[Any, ...]]:
        """How images of a size are convolved, and the kernel's arguments, made once for each."""
        key = (*size, cpu.supports(cpu.FLOATS))
        found = self.plans.get(key)
        if found is None:
            while len(self.plans) >= _MOST_PLANS:  # each holds a place for every weight
                self.plans.pop(next(iter(self.plans)), None)
            found = self.plans[key] = self.bind((size[0], size[1]), None)
        return found

    def bind(self, size: Pair, before: Depthwise | None) -> tuple[Plan, tuple[Any, ...]]:
        """How images of a size are convolved, and the kernel's arguments from the layout on.

        Args:
            size: Height and width of the image.
            before: A depthwise convolution whose output is convolved, without being written;
                only for convolutions of every pixel by itself (1 x 1, stride 1, no padding).

        Raises:
            ValueError: The image is smaller than the kernel, or this cannot follow ``before``.
        """
        form = (self.shape[2:], self.stride, self.padding, self.dilation)
        geometry, matrix = Geometry(self.in_channels, *form), self.matrix
        if before is not None:
            if not geometry.seamless or before.channels != self.in_channels:
                raise ValueError("SparseConv2d.bind: this cannot follow a depthwise convolution")
            made = plan(matrix, geometry, before.output(size), whole_rows=True)
        else:
            made = plan(matrix, geometry, size)
        arrays = (made.layout, made.planes, made.offsets, matrix.tiles, matrix.rows)
        entries = (matrix.starts, matrix.value, matrix.bias)
        first = NO_DEPTHWISE if before is None else before.arguments(size, int(made.layout[7]))
        like = (0,) * made.vectors if cpu.supports(cpu.FLOATS) else None
        return made, (*arrays, *entries, first, like)

    def _convolve_densely(self, x: Float32) -> Float32:
        weight, bias = map(torch.from_numpy, (self.to_dense(), self.matrix.bias))
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        return np.asarray(torch.conv2d(torch.from_numpy(x), weight, bias, *geometry))


def pack_conv2d(
    weight: NDArray[np.floating],
    bias: ArrayLike | None = None,
    *,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    tile: int | None = None,
) -> SparseConv2d:
    """Packs a convolution; zero weights are left out.

    Args:
        weight: Shape (out_channels, in_channels / groups, height, width), floating point.
        bias: Shape (out_channels).
        stride: Vertical and horizontal; likewise the next two.
        padding: Zeros on each side.
        dilation: Distance of what the kernel reads.
        groups: Groups of channels.
        tile: See ``Spmm``; chosen by the density if None.

    Raises:
        TypeError: An argument does not hold floating-point numbers.
        ValueError: Shapes are wrong, or the groups do not divide the output channels.
    """
    if weight.ndim != 4 or 0 in weight.shape:
        raise ValueError(f"pack_conv2d.weight must have four dimensions, got {weight.shape}")
    if groups < 1 or len(weight) % groups:
        raise ValueError(f"pack_conv2d.groups must divide {len(weight)} channels, got {groups}")
    each = len(weight) // groups
    whole = np.zeros((groups, each, groups, weight[0].size), weight.dtype)
    for group in range(groups):
        whole[group, :, group] = weight[group * each : (group + 1) * each].reshape(each, -1)
    tile = tile or _tile(weight)
    matrix = Spmm(tile).pack(whole.reshape(len(weight), -1), bias)
    out_channels, inputs, height, width = weight.shape
    shape = (out_channels, inputs, height, width)
    return SparseConv2d(matrix, shape, stride, padding, dilation, groups)


def _tile(weight: NDArray[Any]) -> int:
    """Columns of a tile: the sparser, the more, so that a row has some entries in each.

    Measured for densities from 5 to 20 %; planes serve a wide kernel for several columns.
    """
    density = max(np.count_nonzero(weight) / weight.size, 1e-3)
    factor = 45 if weight[0, 0].size == 1 else 55
    return min(max(round(factor / math.sqrt(density)), 64), 256)
