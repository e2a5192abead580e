"""Depthwise 3 x 3 convolutions that leave their output where the next convolution reads it.

Columns of an output row are the lanes of vectors. With stride 1 the three rows of the kernel are
applied to an input row at once, and what they give waits for the next rows, so that every input
row is read once. With stride 2 every other number of two vectors is picked.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from automl.executors.kernels.blocks import load_some, store_some
from automl.executors.kernels.options import OPTIONS
from automl.executors.kernels.vectors import (
    add,
    clamp,
    evens,
    fma,
    odds,
    peek,
    pick2_float32x16,
    splat,
    total,
    zeros_float32x16,
)


@njit(**OPTIONS)
def depthwise(
    x: Any, layout: Any, kernel: Any, masks: Any, bounds: Any, top: int, rows: int, plane: int,
    panel: Any, fast: bool,
) -> bool:  # fmt: skip
    """Convolves rows of an image, channel by channel.

    Args:
        x: One image, shape (channels, pixels).
        layout: Height and width of the image, stride (1 or 2, both ways), zeros above and to the
            left, columns of the output.
        kernel: For each channel nine weights, row by row, and the bias; shape (channels * 10).
        masks: For every 16 columns of the output: lanes to read of up to four vectors, and lanes
            to write, shape (vectors * 5), uint16; see ``automl.executors.depthwise``.
        bounds: Least and largest number of the output.
        top: First output row.
        rows: Output rows.
        plane: Floats from one channel of the panel to the next.
        panel: Filled with rows that follow each other.
        fast: Whether to use vector instructions.

    Returns:
        Whether all sums are finite.
    """
    flat, doubt, rest = x.reshape(-1), zeros_float32x16(), np.float32(0)
    for channel in range(x.shape[0]):
        arguments = (flat, channel * x.shape[1], layout, kernel, bounds, top, rows)
        at = channel * plane
        if not fast:
            rest += _plain(*arguments, 10 * channel, panel, at)
        elif layout[2] == 1:
            doubt = add(doubt, _every_column(*arguments, 10 * channel, masks, panel, at))
        else:
            doubt = add(doubt, _every_other(*arguments, 10 * channel, masks, panel, at))
    return bool(total(doubt) + rest == 0)


@njit(**OPTIONS)
def _every_column(
    flat: Any, image: int, layout: Any, kernel: Any, bounds: Any, top: int, rows: int, own: int,
    masks: Any, panel: Any, at: int,
) -> Any:  # fmt: skip
    """One channel with stride 1: zero times the sums."""
    a, b, c = splat(peek(kernel, own)), splat(peek(kernel, own + 1)), splat(peek(kernel, own + 2))
    d, e = splat(peek(kernel, own + 3)), splat(peek(kernel, own + 4))
    f, g = splat(peek(kernel, own + 5)), splat(peek(kernel, own + 6))
    h, i = splat(peek(kernel, own + 7)), splat(peek(kernel, own + 8))
    bias, low, high = splat(peek(kernel, own + 9)), splat(bounds[0]), splat(bounds[1])
    zero = zeros_float32x16()
    doubt, height, width, columns = zero, layout[0], layout[1], layout[5]
    for lane in range(0, columns, 16):
        mask = 5 * (lane >> 4)
        left, middle = peek(masks, mask), peek(masks, mask + 1)
        right, written = peek(masks, mask + 2), peek(masks, mask + 4)
        start = image + lane - layout[4]
        one, two = bias, bias  # Sums that wait for two rows more, and for one.
        for step in range(rows + 2):
            y = top - layout[3] + step
            done = two
            two, one = one, bias
            if 0 <= y < height:
                place = start + y * width
                p = load_some(flat, place, left)
                q = load_some(flat, place + 1, middle)
                r = load_some(flat, place + 2, right)
                # Added to what waits at last, so that rows do not wait for each other.
                done = add(done, fma(g, p, fma(h, q, fma(i, r, zero))))
                two = add(two, fma(d, p, fma(e, q, fma(f, r, zero))))
                one = fma(a, p, fma(b, q, fma(c, r, bias)))
            if step >= 2:
                doubt = fma(done, zero, doubt)
                goal = at + (step - 2) * columns + lane
                store_some(panel, goal, clamp(done, low, high), written)
    return doubt


@njit(**OPTIONS)
def _every_other(
    flat: Any, image: int, layout: Any, kernel: Any, bounds: Any, top: int, rows: int, own: int,
    masks: Any, panel: Any, at: int,
) -> Any:  # fmt: skip
    """One channel with stride 2: zero times the sums."""
    bias, low, high = splat(peek(kernel, own + 9)), splat(bounds[0]), splat(bounds[1])
    zero, even, odd = zeros_float32x16(), evens(), odds()
    doubt, height, width, columns = zero, layout[0], layout[1], layout[5]
    for lane in range(0, columns, 16):
        mask = 5 * (lane >> 4)
        first, second = peek(masks, mask), peek(masks, mask + 1)
        third, fourth = peek(masks, mask + 2), peek(masks, mask + 3)
        written = peek(masks, mask + 4)
        start = image + 2 * lane - layout[4]
        for row in range(rows):
            done = bias
            for line in range(3):
                y = 2 * (top + row) - layout[3] + line
                if 0 <= y < height:
                    place, weight = start + y * width, own + 3 * line
                    p = load_some(flat, place, first)
                    q = load_some(flat, place + 16, second)
                    r = load_some(flat, place + 2, third)
                    s = load_some(flat, place + 18, fourth)
                    left, middle = pick2_float32x16(p, even, q), pick2_float32x16(p, odd, q)
                    right = pick2_float32x16(r, even, s)
                    done = fma(splat(peek(kernel, weight)), left, done)
                    done = fma(splat(peek(kernel, weight + 1)), middle, done)
                    done = fma(splat(peek(kernel, weight + 2)), right, done)
            doubt = fma(done, zero, doubt)
            store_some(panel, at + row * columns + lane, clamp(done, low, high), written)
    return doubt


@njit(**OPTIONS)
def _plain(
    flat: Any, image: int, layout: Any, kernel: Any, bounds: Any, top: int, rows: int, own: int,
    panel: Any, at: int,
) -> Any:  # fmt: skip
    """One channel without vector instructions of our own: zero times the sums."""
    height, width, stride, columns = layout[0], layout[1], layout[2], layout[5]
    doubt = np.float32(0)
    for row in range(rows):
        for column in range(columns):
            done = kernel[own + 9]
            for line in range(3):
                for tap in range(3):
                    y = stride * (top + row) - layout[3] + line
                    x = stride * column - layout[4] + tap
                    if 0 <= y < height and 0 <= x < width:
                        done += kernel[own + 3 * line + tap] * flat[image + y * width + x]
            doubt += done * np.float32(0)
            panel[at + row * columns + column] = min(max(done, bounds[0]), bounds[1])
    return doubt
