"""Depthwise 3 x 3 convolutions as the first half of a pointwise one; see ``kernels.depthwise``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from automl.executors.conv_plan import Geometry, Pair
from automl.executors.rows import Float32

#: Limits that limit nothing.
NO_BOUNDS = np.array([-np.inf, np.inf], np.float32)

_NO_NUMBERS = np.zeros(0, np.float32)
#: What kernels are given where there is no depthwise convolution.
NO_DEPTHWISE: tuple[Any, ...] = (
    np.zeros(6, np.int64),
    _NO_NUMBERS,
    np.zeros(0, np.uint16),
    NO_BOUNDS,
)


@dataclass(frozen=True, eq=False)
class Depthwise:
    """A depthwise convolution with zeros as padding, and limits on its output.

    Attributes:
        kernel: Nine weights and the bias of each channel, shape (channels, 10).
        stride: 1 or 2, both ways.
        padding: Zeros above and below, to the left and right.
        bounds: Least and largest number of the output, shape (2).
    """

    kernel: Float32
    stride: int
    padding: Pair
    bounds: Float32

    @classmethod
    def of(
        cls, weight: Float32, bias: Float32, stride: int, padding: Pair, bounds: Float32
    ) -> Depthwise:
        """From a weight of shape (channels, 1, 3, 3) and a bias of shape (channels)."""
        kernel = np.concatenate([weight.reshape(len(bias), 9), bias[:, None]], 1)
        return cls(np.ascontiguousarray(kernel, np.float32), stride, padding, bounds)

    @property
    def channels(self) -> int:
        """Of input and output."""
        return len(self.kernel)

    def output(self, size: Pair) -> Pair:
        """Height and width of the output.

        Raises:
            ValueError: The image is smaller than the kernel.
        """
        return Geometry(self.channels, (3, 3), (self.stride,) * 2, self.padding, (1, 1)).output(
            size
        )

    def arguments(self, size: Pair) -> tuple[Any, ...]:
        """``layout``, ``kernel``, ``masks`` and ``bounds`` of the kernel."""
        columns = self.output(size)[1]
        layout = np.array([*size, self.stride, *self.padding, columns])
        masks = _masks(size[1], self.stride, self.padding[1], columns)
        return layout, self.kernel.reshape(-1), masks, self.bounds


def _masks(width: int, stride: int, padding: int, columns: int) -> NDArray[np.uint16]:
    """Lanes to read of up to four vectors, and lanes to write, for every 16 columns.

    With stride 1 the vectors are the image shifted by the columns of the kernel; with stride 2
    they are the first and second 16 numbers from the first column of the kernel on, and from the
    last.
    """
    shifts = (0, 1, 2, 0) if stride == 1 else (0, 16, 2, 18)
    lanes = np.arange(16)
    rows = []
    for first in range(0, columns, 16):
        places = [stride * first - padding + shift + lanes for shift in shifts]
        inside = [(0 <= place) & (place < width) for place in places]
        rows.append([*inside, first + lanes < columns])
    bits: NDArray[np.int64] = (np.array(rows) << lanes).sum(-1)
    return bits.astype(np.uint16).reshape(-1)
