"""Pooling, in plain loops that the compiler turns into vectors."""

from __future__ import annotations

from typing import Any

import numpy as np

from automl.executors.kernels.options import kernel


@kernel
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
                        # Not max(), which asks about NaN and keeps vectors away.
                        known, new = inside[column], numbers[column]
                        inside[column] = new if new > known else known
                out = y[image, channel, row]
                if wide == 3:
                    # The usual window, without a loop for it.
                    for column in range(out.shape[0]):
                        a, b = line[column * right], line[column * right + 1]
                        c = line[column * right + 2]
                        larger = a if a > b else b
                        out[column] = larger if larger > c else c
                    continue
                for column in range(out.shape[0]):
                    largest = line[column * right]
                    for place in range(column * right + 1, column * right + wide):
                        largest = line[place] if line[place] > largest else largest
                    out[column] = largest


@kernel
def mean_pool(x: Any, y: Any) -> None:
    """The mean of every row.

    Args:
        x: Shape (rows, pixels).
        y: Filled, shape (rows).
    """
    pixels = x.shape[1]
    sums = np.empty(16, np.float32)
    for row in range(x.shape[0]):
        # 16 sums side by side, added at last.
        sums[:] = 0
        whole = pixels & ~15
        for start in range(0, whole, 16):
            for lane in range(16):
                sums[lane] += x[row, start + lane]
        for place in range(whole, pixels):
            sums[place - whole] += x[row, place]
        y[row] = sums.sum() / np.float32(pixels)
