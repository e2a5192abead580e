"""Depthwise 3 x 3 convolutions that leave their output where the next convolution reads it.

With stride 1 an image is one line of pixels: its 16 next ones are the lanes of a vector wherever
rows end, and lanes whose neighbour is in another row read a zero. With stride 2 lanes are columns,
and every other number of two vectors is picked. Vectors are written whole: what is too much lies
where the next pixels go, so that rows and channels are done in order.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from automl.executors.kernels.blocks import between, load_some
from automl.executors.kernels.options import kernel
from automl.executors.kernels.vectors import (
    add,
    clamp,
    evens,
    fma,
    load_float32x16,
    odds,
    peek,
    pick2_float32x16,
    prefetch,
    splat,
    store,
    total,
    zeros_float32x16,
)

#: Numbers fetched ahead, at least one channel.
_AHEAD = 512


@kernel
def depthwise(
    x: Any, layout: Any, kernel: Any, masks: Any, bounds: Any, top: int, rows: int, plane: int,
    panel: Any, fast: bool,
) -> bool:  # fmt: skip
    """Convolves rows of an image, channel by channel, with a zero on each side.

    Args:
        x: One image, shape (channels, pixels).
        layout: Height and width of the image, stride (1 or 2, both ways), columns of the output.
        kernel: For each channel nine weights, row by row, and the bias; shape (channels * 10).
        masks: Lanes to read of up to four vectors, shape (vectors * 4), uint16, for every vector
            of a tile with stride 1 and of a row with stride 2; see ``automl.executors.depthwise``.
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
    first = max(layout[2] * top - 1, 0) * layout[1]
    last = min(layout[2] * (top + rows) + 1, layout[0]) * layout[1]
    far = (1 + _AHEAD // (last - first)) * x.shape[1]
    for channel in range(x.shape[0]):
        image, at = channel * x.shape[1], channel * plane
        for place in range(first, last, 16):
            prefetch(flat, image + far + place)
        arguments = (flat, image, layout, kernel, bounds, top, rows, 10 * channel)
        if not fast:
            rest += _plain(*arguments, panel, at)
        elif layout[2] == 1:
            doubt = add(doubt, _every_pixel(*arguments, masks, panel, at))
        else:
            doubt = add(doubt, _every_other(*arguments, masks, panel, at))
    return bool(total(doubt) + rest == 0)


@kernel
def _every_pixel(
    flat: Any, image: int, layout: Any, kernel: Any, bounds: Any, top: int, rows: int, own: int,
    masks: Any, panel: Any, at: int,
) -> Any:  # fmt: skip
    """One channel with stride 1: zero times the sums."""
    a, b, c = splat(peek(kernel, own)), splat(peek(kernel, own + 1)), splat(peek(kernel, own + 2))
    d, e = splat(peek(kernel, own + 3)), splat(peek(kernel, own + 4))
    f, g = splat(peek(kernel, own + 5)), splat(peek(kernel, own + 6))
    h, i = splat(peek(kernel, own + 7)), splat(peek(kernel, own + 8))
    bias, low, high = splat(peek(kernel, own + 9)), splat(bounds[0]), splat(bounds[1])
    zero, width = zeros_float32x16(), layout[1]
    doubt, pixels, begin = zero, layout[0] * layout[1], top * layout[1]
    for lane in range(0, rows * width, 16):
        left, right = peek(masks, lane >> 2), peek(masks, (lane >> 2) + 2)
        place = begin + lane
        here, up, down = image + place, image + place - width, image + place + width
        if width <= place <= pixels - width - 16:
            one = fma(a, load_some(flat, up - 1, left), bias)
            two = fma(d, load_some(flat, here - 1, left), zero)
            three = fma(g, load_some(flat, down - 1, left), zero)
            one = fma(b, load_float32x16(flat, up), one)
            two = fma(e, load_float32x16(flat, here), two)
            three = fma(h, load_float32x16(flat, down), three)
            one = fma(c, load_some(flat, up + 1, right), one)
            two = fma(f, load_some(flat, here + 1, right), two)
            three = fma(i, load_some(flat, down + 1, right), three)
        else:
            above = between(width - place, pixels + width - place)
            inside, below = between(0, pixels - place), between(0, pixels - width - place)
            one = fma(a, load_some(flat, up - 1, left & above), bias)
            two = fma(d, load_some(flat, here - 1, left & inside), zero)
            three = fma(g, load_some(flat, down - 1, left & below), zero)
            one = fma(b, load_some(flat, up, above), one)
            two = fma(e, load_some(flat, here, inside), two)
            three = fma(h, load_some(flat, down, below), three)
            one = fma(c, load_some(flat, up + 1, right & above), one)
            two = fma(f, load_some(flat, here + 1, right & inside), two)
            three = fma(i, load_some(flat, down + 1, right & below), three)
        done = add(one, add(two, three))
        doubt = fma(done, zero, doubt)
        store(panel, at + lane, clamp(done, low, high))
    return doubt


@kernel
def _every_other(
    flat: Any, image: int, layout: Any, kernel: Any, bounds: Any, top: int, rows: int, own: int,
    masks: Any, panel: Any, at: int,
) -> Any:  # fmt: skip
    """One channel with stride 2: zero times the sums."""
    bias, low, high = splat(peek(kernel, own + 9)), splat(bounds[0]), splat(bounds[1])
    zero, even, odd = zeros_float32x16(), evens(), odds()
    doubt, height, width, columns = zero, layout[0], layout[1], layout[3]
    for row in range(rows):
        for lane in range(0, columns, 16):
            first, second = peek(masks, lane >> 2), peek(masks, (lane >> 2) + 1)
            third, fourth = peek(masks, (lane >> 2) + 2), peek(masks, (lane >> 2) + 3)
            done = bias
            for line in range(3):
                y = 2 * (top + row) - 1 + line
                if 0 <= y < height:
                    place, weight = image + y * width + 2 * lane - 1, own + 3 * line
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
            store(panel, at + row * columns + lane, clamp(done, low, high))
    return doubt


@kernel
def _plain(
    flat: Any, image: int, layout: Any, kernel: Any, bounds: Any, top: int, rows: int, own: int,
    panel: Any, at: int,
) -> Any:  # fmt: skip
    """One channel without vector instructions of our own: zero times the sums."""
    height, width, stride, columns = layout[0], layout[1], layout[2], layout[3]
    doubt = np.float32(0)
    for row in range(rows):
        for column in range(columns):
            done = kernel[own + 9]
            for line in range(3):
                for tap in range(3):
                    y = stride * (top + row) - 1 + line
                    x = stride * column - 1 + tap
                    if 0 <= y < height and 0 <= x < width:
                        done += kernel[own + 3 * line + tap] * flat[image + y * width + x]
            doubt += done * np.float32(0)
            panel[at + row * columns + column] = min(max(done, bounds[0]), bounds[1])
    return doubt
