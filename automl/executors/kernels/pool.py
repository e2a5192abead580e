"""Maximum pooling, in plain loops that the compiler turns into vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from automl.executors.kernels.options import OPTIONS


@njit(**OPTIONS)
def max_pool(
    x: Any, y: Any, high: int, wide: int, down: int, right: int, above: int, left: int
) -> None:
    """The largest number in every window.

    Args:
        x: Finite numbers, shape (batch, channels, height, width).
        y: Filled, likewise.
        high: Rows of a window.
        wide: Columns of a window.
        down: Rows from one window to the next.
        right: Columns from one window to the next.
        above: Rows of the first window that are outside; fewer than ``high``.
        left: Columns of the first window that are outside; fewer than ``wide``.
    """
    height, width = x.shape[2], x.shape[3]
    line = np.full(width + 2 * wide, -np.inf, np.float32)
    inside = line[left : left + width]
    for image in range(x.shape[0]):
        for channel in range(x.shape[1]):
            plane = x[image, channel]
            for row in range(y.shape[2]):
                first = row * down - above
                begin = max(first, 0)
                inside[:] = plane[begin]
                for other in range(begin + 1, min(first + high, height)):
                    numbers = plane[other]
                    for column in range(width):
                        inside[column] = max(inside[column], numbers[column])
                for column in range(y.shape[3]):
                    largest = line[column * right]
                    for place in range(column * right + 1, column * right + wide):
                        largest = max(largest, line[place])
                    y[image, channel, row, column] = largest
