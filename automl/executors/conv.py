"""Sparse convolution: the sparse product for batches, with output positions in place of examples.

64 neighbouring positions of the output are the lanes of vectors, and every non-zero weight is four
fused multiply-adds. With stride 1 the inputs that meet one weight are neighbours as well, once the
image lies between zeros, and are read where they are; positions are then counted through the
padded rows, and those that are in the padding are thrown away. With other strides the inputs are
gathered into a panel first. Groups are rows that have no weights outside of their channels, so
they cost nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from automl.executors.kernels import conv, cpu, spmm
from automl.executors.packed import aligned_zeros, all_finite
from automl.executors.rows import Float32
from automl.executors.spmm import Spmm, SpmmLinear

Pair = tuple[int, int]

_PANEL, _LINE = 64, 16


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
    """

    matrix: SpmmLinear
    shape: tuple[int, int, int, int]
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    #: As ``automl.compile`` calls it.
    name = "conv"

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return self.shape[1] * self.groups

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return self.matrix.nbytes

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
        if x.dtype != np.float32:
            raise TypeError(f"SparseConv2d.x must be float32, got {x.dtype}")
        if x.ndim not in (3, 4) or x.shape[-3] != self.in_channels:
            rule = f"(batch, {self.in_channels}, height, width)"
            raise ValueError(f"SparseConv2d.x must be {rule}, got {x.shape}")
        images = np.ascontiguousarray(x).reshape(-1, *x.shape[-3:])
        if not all_finite(images.reshape(-1)):
            y = self._convolve_densely(images)
        else:
            height, width = self._output(x.shape[-2:])
            y = np.empty((len(images), self.shape[0], height, width), np.float32)
            for image, output in zip(images, y, strict=True):
                self._convolve(image, output)
        return y.reshape(*x.shape[:-3], *y.shape[1:])

    def _output(self, size: tuple[int, ...]) -> Pair:
        spans = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.shape[2:], strict=True)]
        room = [n + 2 * p - s for n, p, s in zip(size, self.padding, spans, strict=True)]
        if min(room) < 0:
            raise ValueError(f"SparseConv2d.x must be as large as the kernel, got {size}")
        return room[0] // self.stride[0] + 1, room[1] // self.stride[1] + 1

    def _convolve(self, x: Float32, y: Float32) -> None:
        if self.stride == (1, 1):
            self._convolve_in_place(x, y)
            return
        flat, done = y.reshape(len(y), -1), 0
        while done < flat.shape[1]:
            width = 64 if flat.shape[1] - done > 32 else 16
            self._panel(x, (y.shape[1], y.shape[2]), done, width, flat)
            done += width

    def _convolve_in_place(self, x: Float32, y: Float32) -> None:
        """Stride 1: the inputs of neighbouring positions are neighbours in the padded image."""
        if self.shape[2:] == (1, 1) and self.padding == (0, 0):
            # Rows follow each other without a seam.
            x, y = x.reshape(len(x), 1, -1), y.reshape(len(y), 1, -1)
        channels, height, width = x.shape
        rows, pitch = height + 2 * self.padding[0], width + 2 * self.padding[1]
        # An odd number of cache lines: channels at multiples of a page would share few sets.
        plane = (-(-rows * pitch // _LINE) | 1) * _LINE
        image = aligned_zeros(channels * plane + _PANEL, np.float32)
        conv.pad(x, self.padding, pitch, plane, image)
        matrix, arrays = self.matrix, self._arrays()
        offsets = self._offsets(plane, pitch)
        sums = aligned_zeros(matrix.out_features * _PANEL, np.float32)
        multiply = conv.multiply_64 if cpu.supports(cpu.FLOATS) else conv.multiply_64_plain
        for first in range(0, (y.shape[1] - 1) * pitch + y.shape[2], _PANEL):
            spmm.fill(matrix.bias, _PANEL, sums)
            multiply(image, offsets, *arrays, first, sums)
            conv.scatter_rows(sums, first, pitch, y)

    def _offsets(self, plane: int, pitch: int) -> NDArray[np.int64]:
        """Where each column of the matrix has the first position in the padded image."""
        _, _, height, width = self.shape
        channel = plane * np.arange(self.in_channels)[:, None, None]
        ky = pitch * self.dilation[0] * np.arange(height)[:, None]
        kx = self.dilation[1] * np.arange(width)
        return (channel + ky + kx).reshape(-1)

    def _arrays(self) -> tuple[Any, ...]:
        matrix = self.matrix
        lists = (matrix.tiles, matrix.rows, matrix.starts, matrix.index, matrix.value)
        return (matrix.tile, *lists)

    def _panel(self, x: Float32, output: Pair, first: int, width: int, y: Float32) -> None:
        matrix, arrays = self.matrix, self._arrays()
        lanes = aligned_zeros(matrix.in_features * width, np.float32)
        sums = aligned_zeros(matrix.out_features * width, np.float32)
        geometry = (self.shape[2:], self.stride, self.padding, self.dilation, output)
        conv.gather(x, *geometry, first, width, lanes)
        spmm.fill(matrix.bias, width, sums)
        if not cpu.supports(cpu.FLOATS):
            spmm.multiply_plain(lanes, *arrays, width, sums)
        elif width == _PANEL:
            spmm.multiply_64(lanes, *arrays, sums)
        else:
            spmm.multiply_16(lanes, *arrays, sums)
        conv.scatter(sums, first, width, y)

    def _convolve_densely(self, x: Float32) -> Float32:
        weight, bias = torch.from_numpy(self.to_dense()), torch.from_numpy(self.matrix.bias)
        settings = (self.stride, self.padding, self.dilation, self.groups)
        with torch.inference_mode():
            y = torch.nn.functional.conv2d(torch.from_numpy(x), weight, bias, *settings)
        return np.asarray(y)


def pack_conv2d(
    weight: NDArray[np.floating],
    bias: ArrayLike | None = None,
    *,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    tile: int = 256,
) -> SparseConv2d:
    """Packs a convolution; zero weights are left out.

    Args:
        weight: Shape (out_channels, in_channels / groups, height, width), floating point.
        bias: Shape (out_channels).
        stride: Vertical and horizontal; likewise the next two.
        padding: Zeros on each side.
        dilation: Distance of what the kernel reads.
        groups: Groups of channels.
        tile: See ``Spmm``.

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
    matrix = Spmm(tile).pack(whole.reshape(len(weight), -1), bias)
    out_channels, inputs, height, width = weight.shape
    shape = (out_channels, inputs, height, width)
    return SparseConv2d(matrix, shape, stride, padding, dilation, groups)
