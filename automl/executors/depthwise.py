"""Depthwise 3 x 3 convolutions as the first half of a pointwise one; see ``kernels.depthwise``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from automl.executors.conv_plan import Pair
from automl.executors.rows import Float32

#: Limits that limit nothing.
NO_BOUNDS = np.array([-np.inf, np.inf], np.float32)

_NO_NUMBERS = np.zeros(0, np.float32)
#: What kernels are given where there is no depthwise convolution.
NO_DEPTHWISE: tuple[Any, ...] = (
    np.zeros(4, np.int64),
    _NO_NUMBERS,
    np.zeros(0, np.uint16),
    NO_BOUNDS,
)


@dataclass(frozen=True, eq=False)
class Depthwise:
    """A depthwise convolution with one zero on each side, and limits on its output.

    Attributes:
        kernel: Nine weights and the bias of each channel, shape (channels, 10).
        stride: 1 or 2, both ways.
        bounds: Least and largest number of the output, shape (2).
    """

    kernel: Float32
    stride: int
    bounds: Float32

    @classmethod
    def of(cls, weight: Float32, bias: Float32, stride: int, bounds: Float32) -> Depthwise:
        """From a weight of shape (channels, 1, 3, 3) and a bias of shape (channels)."""
        kernel = np.concatenate([weight.reshape(len(bias), 9), bias[:, None]], 1)
        return cls(np.ascontiguousarray(kernel, np.float32), stride, bounds)

    @property
    def channels(self) -> int:
        """Of input and output."""
        return len(self.kernel)

    def output(self, size: Pair) -> Pair:
        """Height and width of the output."""
        return (size[0] - 1) // self.stride + 1, (size[1] - 1) // self.stride + 1

    def arguments(self, size: Pair, rows: int) -> tuple[Any, ...]:
        """``layout``, ``kernel``, ``masks`` and ``bounds`` of the kernel, for tiles of rows."""
        columns = self.output(size)[1]
        layout = np.array([*size, self.stride, columns])
        masks = _masks(size[1], rows) if self.stride == 1 else _masks_of_pairs(size[1], columns)
        return layout, self.kernel.reshape(-1), masks, self.bounds


def _masks(width: int, rows: int) -> NDArray[np.uint16]:
    """Stride 1: lanes whose left neighbour, self and right neighbour are in their row."""
    column = np.arange(-(-rows * width // 16) * 16).reshape(-1, 1, 16) % width
    shift = np.array([-1, 0, 1, 0])[:, None]
    return _bits((0 <= column + shift) & (column + shift < width))


def _masks_of_pairs(width: int, columns: int) -> NDArray[np.uint16]:
    """Stride 2: lanes of two vectors from the left neighbours on, two from the right ones on."""
    first = np.arange(0, columns, 16)[:, None, None]
    place = 2 * first - 1 + np.array([0, 16, 2, 18])[:, None] + np.arange(16)
    return _bits((0 <= place) & (place < width))


def _bits(lanes: NDArray[np.bool_]) -> NDArray[np.uint16]:
    bits: NDArray[np.int64] = (lanes << np.arange(16)).sum(-1)
    return bits.astype(np.uint16).reshape(-1)
