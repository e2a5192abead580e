"""Convolutions as sparse products: 64 or 16 output positions are lanes.

With stride 1 their inputs are neighbours too, in a padded image, and are read where they are;
otherwise they are gathered first.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from automl.executors.kernels.options import OPTIONS
from automl.executors.kernels.vectors import (
    fma,
    load_float32x16,
    peek,
    prefetch,
    splat,
    store,
)

#: Channels fetched ahead.
_AHEAD = 8


@njit(**OPTIONS)
def _segment(
    row: Any, first: int, count: int, stride: int, offset: int, panel: Any, at: int
) -> None:
    """Positions ``first``.. of one output row, from one input row; zeros outside of it."""
    for i in range(count):
        column = (first + i) * stride + offset
        panel[at + i] = row[column] if 0 <= column < row.shape[0] else 0


@njit(**OPTIONS)
def _inside(row: Any, first: int, count: int, panel: Any, at: int) -> None:
    """The same for neighbours that all lie inside."""
    for i in range(count):
        panel[at + i] = row[first + i]


@njit(**OPTIONS)
def gather(
    x: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, output: Any, first: int,
    width: int, panel: Any,
) -> None:  # fmt: skip
    """panel[(channel, ky, kx), lane] = what the output position ``first + lane`` reads there.

    Args:
        x: One example, shape (channels, height, width).
        kernel: Height and width of the kernel; likewise the four that follow.
        stride: Steps of the kernel.
        padding: Zeros on each side.
        dilation: Distance of what the kernel reads.
        output: Height and width of the output.
        first: First output position, row by row.
        width: Lanes of the panel; those behind the last position become zero.
        panel: Filled.
    """
    above, left = divmod(first, output[1])
    flat, size = x.reshape(-1), x.shape[1] * x.shape[2]
    top = max(above * stride[0] - padding[0], 0) * x.shape[2]
    begin = top + max(left * stride[1] - padding[1], 0)
    at = 0
    for channel in range(x.shape[0]):
        # Channels lie far apart, so that nothing else would fetch the next ones.
        ahead = (channel + _AHEAD) * size + begin
        for line in range(0, width * stride[1] + 16, 16):
            prefetch(flat, ahead + line)
        for ky in range(kernel[0]):
            for kx in range(kernel[1]):
                lane, oy, ox = 0, above, left
                offset = kx * dilation[1] - padding[1]
                while lane < width and oy < output[0]:
                    count = min(output[1] - ox, width - lane)
                    iy = oy * stride[0] - padding[0] + ky * dilation[0]
                    start = ox + offset
                    if not 0 <= iy < x.shape[1]:
                        panel[at + lane : at + lane + count] = 0
                    elif stride[1] == 1 and start >= 0 and start + count <= x.shape[2]:
                        _inside(x[channel, iy], start, count, panel, at + lane)
                    else:
                        _segment(x[channel, iy], ox, count, stride[1], offset, panel, at + lane)
                    lane, oy, ox = lane + count, oy + 1, 0
                if lane < width:
                    panel[at + lane : at + width] = 0
                at += width


@njit(**OPTIONS)
def scatter(panel: Any, first: int, width: int, y: Any) -> None:
    """y[channel, first + lane] = panel[channel, lane] for the positions that there are."""
    count = min(width, y.shape[1] - first)
    flat, size = y.reshape(-1), y.shape[1]
    for channel in range(y.shape[0]):
        for line in range(0, width + 16, 16):
            prefetch(flat, (channel + _AHEAD) * size + first + line)
        for lane in range(count):
            y[channel, first + lane] = panel[channel * width + lane]


@njit(**OPTIONS)
def pad(x: Any, padding: Any, width: int, pitch: int, image: Any) -> None:
    """Copies an image between zeros.

    Args:
        x: One example, shape (channels, height, width).
        padding: Zeros above and to the left.
        width: Of the padded image.
        pitch: From one channel to the next.
        image: Filled where the example goes; zeros elsewhere.
    """
    for channel in range(x.shape[0]):
        for row in range(x.shape[1]):
            at = channel * pitch + (row + padding[0]) * width + padding[1]
            for column in range(x.shape[2]):
                image[at + column] = x[channel, row, column]


@njit(**OPTIONS)
def multiply_64(
    image: Any,
    offsets: Any,
    tile: int,
    tiles: Any,
    rows: Any,
    starts: Any,
    index: Any,
    value: Any,
    first: int,
    y: Any,
) -> None:
    """Adds the products of 64 neighbouring positions, read where they are.

    Args:
        image: Padded image, with 64 zeros behind it.
        offsets: Where in the image each column of the matrix has its first position.
        tile: As in ``spmm.multiply_64``, with the five that follow.
        tiles: See there.
        rows: See there.
        starts: See there.
        index: See there.
        value: See there.
        first: First position.
        y: Panel of sums, shape (out_channels * 64).
    """
    for t in range(tiles.shape[0] - 1):
        column = tile * t
        for listed in range(peek(tiles, t), peek(tiles, t + 1)):
            row = 64 * peek(rows, listed)
            a, b = load_float32x16(y, row), load_float32x16(y, row + 16)
            c, d = load_float32x16(y, row + 32), load_float32x16(y, row + 48)
            for at in range(peek(starts, listed), peek(starts, listed + 1)):
                weight = splat(peek(value, at))
                place = first + peek(offsets, column + peek(index, at))
                a = fma(weight, load_float32x16(image, place), a)
                b = fma(weight, load_float32x16(image, place + 16), b)
                c = fma(weight, load_float32x16(image, place + 32), c)
                d = fma(weight, load_float32x16(image, place + 48), d)
            store(y, row, a)
            store(y, row + 16, b)
            store(y, row + 32, c)
            store(y, row + 48, d)


@njit(**OPTIONS)
def multiply_64_plain(
    image: Any,
    offsets: Any,
    tile: int,
    tiles: Any,
    rows: Any,
    starts: Any,
    index: Any,
    value: Any,
    first: int,
    y: Any,
) -> None:
    """The same without vector instructions of our own."""
    for t in range(tiles.shape[0] - 1):
        for listed in range(tiles[t], tiles[t + 1]):
            sums = y[64 * rows[listed] : 64 * rows[listed] + 64]
            for at in range(starts[listed], starts[listed + 1]):
                place = first + offsets[tile * t + index[at]]
                inputs = image[place : place + 64]
                for lane in range(64):
                    sums[lane] += value[at] * inputs[lane]


@njit(**OPTIONS)
def scatter_rows(panel: Any, first: int, pitch: int, y: Any) -> None:
    """Takes 64 positions of a padded image to the output, leaving out those that are none.

    Args:
        panel: Sums, shape (channels * 64).
        first: First position.
        pitch: From one row of the padded image to the next.
        y: Output, shape (channels, height, width).
    """
    _, height, width = y.shape
    flat, size = y.reshape(-1), height * width
    top, left = divmod(first, pitch)
    for channel in range(y.shape[0]):
        begin = (channel + _AHEAD) * size + top * width + left
        for line in range(0, 80, 16):
            prefetch(flat, begin + line)
        lane, row, column = 0, top, left
        while lane < 64 and row < height:
            count = min(pitch - column, 64 - lane)
            at, sums = channel * size + row * width + column, 64 * channel + lane
            for i in range(min(width - column, count)):
                flat[at + i] = panel[sums + i]
            lane, row, column = lane + count, row + 1, 0
