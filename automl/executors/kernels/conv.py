"""Convolutions as sparse products: neighbouring output positions are the lanes of vectors.

``conv_plan.py`` says where things lie. Positions are counted in rows of ``pitch`` lanes, of which
the last may be unused, and are worked on in tiles of whole rows. What stands before and behind a
convolution in a network is done on the way: a depthwise convolution instead of copying its output,
and a sum with another tensor and limits (ReLU) before sums are written.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from automl.executors.kernels.blocks import between, load_some, store_some
from automl.executors.kernels.depthwise import depthwise
from automl.executors.kernels.options import kernel
from automl.executors.kernels.spmm import multiply, multiply_plain
from automl.executors.kernels.vectors import (
    add,
    clamp,
    evens,
    fma,
    load_float32x16,
    pick2_float32x16,
    prefetch,
    splat,
    store,
    total,
    zeros_float32x16,
)

# Rows are short: a function for each, inlined or not, makes these kernels half as fast.

#: Numbers fetched ahead, at least one channel.
_AHEAD = 2048


@kernel
def gather(  # noqa: C901
    x: Any, size: Any, stride: Any, planes: Any, rows: int, top: int, pitch: int, plane: int,
    panel: Any, fast: bool,
) -> bool:  # fmt: skip
    """Lays out what a tile of output rows reads.

    Args:
        x: One image, shape (channels, pixels).
        size: Height and width of the image.
        stride: Vertical and horizontal.
        planes: For each plane: row and column of the image where it starts to read, and the
            lanes of a row, first and behind the last, that are inside of the image.
        rows: Rows of a plane.
        top: First output row.
        pitch: Lanes from one row to the next.
        plane: Floats from one plane to the next.
        panel: Filled: planes by channel, then by their number.
        fast: Whether to use vector instructions.

    Returns:
        Whether no number read is NaN or infinite.
    """
    flat, pixels = x.reshape(-1), x.shape[1]
    line = rows * stride[0] * size[1]
    far = (1 + _AHEAD // line) * pixels
    zero, at = zeros_float32x16(), 0
    doubt, other = zero, np.float32(0)
    for channel in range(x.shape[0]):
        ahead = far + channel * pixels + max(top * stride[0] + planes[0, 0], 0) * size[1]
        for place in range(0, min(line, pixels), 16):
            prefetch(flat, ahead + place)
        for number in range(planes.shape[0]):
            first, last = planes[number, 2], planes[number, 3]
            y = planes[number, 0] + top * stride[0]
            start = y * size[1] + planes[number, 1]
            for row in range(rows):
                # The last row of an image that is taken as one line may be short.
                stop = min(last, pixels - start) if stride[1] == 1 else last
                stop = stop if 0 <= y < size[0] else 0
                source, goal = channel * pixels + start, at + row * pitch
                # Vectors are written whole: up to 15 zeros where the next row or plane goes.
                if fast and stride[1] == 1:
                    for lane in range(0, pitch, 16):
                        if first <= lane <= stop - 16:
                            inputs = load_float32x16(flat, source + lane)
                        else:
                            mask = between(first - lane, stop - lane)
                            inputs = load_some(flat, source + lane, mask)
                        doubt = fma(inputs, zero, doubt)
                        store(panel, goal + lane, inputs)
                elif fast and stride[1] == 2:
                    for lane in range(0, pitch, 16):
                        begin, end = 2 * (first - lane), 2 * (stop - lane) - 1
                        place = source + 2 * lane
                        if begin <= 0 and end >= 32:
                            low = load_float32x16(flat, place)
                            high = load_float32x16(flat, place + 16)
                        else:
                            low = load_some(flat, place, between(begin, end))
                            high = load_some(flat, place + 16, between(begin - 16, end - 16))
                        inputs = pick2_float32x16(low, evens(), high)
                        doubt = fma(inputs, zero, doubt)
                        store(panel, goal + lane, inputs)
                else:
                    panel[goal : goal + pitch] = 0
                    for lane in range(first, stop):
                        number_read = flat[source + stride[1] * lane]
                        other += number_read * np.float32(0)
                        panel[goal + lane] = number_read
                y, start = y + stride[0], start + stride[0] * size[1]
            at += plane
    # Zero times NaN or infinity is NaN, and all else adds up to zero.
    return bool(total(doubt) + other == 0)


@kernel
def scatter(  # noqa: C901
    sums: Any, lanes: int, first: int, rows: int, width: int, pitch: int, y: Any, other: Any,
    ahead: int, bounds: Any, fast: bool,
) -> bool:  # fmt: skip
    """Takes a tile's sums to the output.

    Args:
        sums: Shape (channels, lanes).
        lanes: Of a tile.
        first: First output position.
        rows: Output rows of a tile, of which the last tile may lack some.
        width: Positions of a row.
        pitch: Lanes from one row to the next.
        y: Output, shape (channels, pixels).
        other: Added to it: numbers in the same order, or none.
        ahead: Where of them the output's first is.
        bounds: Least and largest number written.
        fast: Whether to use vector instructions.

    Returns:
        Whether all sums are finite; if not, limits would hide what they are.
    """
    flat, pixels = y.reshape(-1), y.shape[1]
    far = (1 + _AHEAD // (rows * width)) * pixels
    adds = other.shape[0] > 0
    low, high = splat(bounds[0]), splat(bounds[1])
    zero = zeros_float32x16()
    doubt, rest = zero, np.float32(0)
    for channel in range(y.shape[0]):
        for place in range(0, rows * width, 16):
            prefetch(flat, far + channel * pixels + first + place)
        for row in range(rows):
            begin = first + row * width
            count = min(width, pixels - begin)
            at, source = channel * pixels + begin, channel * lanes + row * pitch
            if fast:
                whole = max(count, 0) & ~15
                for lane in range(0, whole, 16):
                    found = load_float32x16(sums, source + lane)
                    if adds:
                        found = add(found, load_float32x16(other, ahead + at + lane))
                    doubt = fma(found, zero, doubt)
                    store(flat, at + lane, clamp(found, low, high))
                if whole < count:
                    mask = between(0, count - whole)
                    found = load_some(sums, source + whole, mask)
                    if adds:
                        found = add(found, load_some(other, ahead + at + whole, mask))
                    doubt = fma(found, zero, doubt)
                    store_some(flat, at + whole, clamp(found, low, high), mask)
            else:
                for lane in range(count):
                    number = sums[source + lane]
                    if adds:
                        number += other[ahead + at + lane]
                    rest += number * np.float32(0)
                    flat[at + lane] = min(max(number, bounds[0]), bounds[1])
    return bool(total(doubt) + rest == 0)


@kernel
def convolve(
    x: Any, y: Any, other: Any, bounds: Any, memory: Any, layout: Any, planes: Any, offsets: Any,
    tiles: Any, rows: Any, starts: Any, value: Any, bias: Any, before: Any, like: Any,
) -> bool:  # fmt: skip
    """Convolves images one after the other, in one call: a call costs microseconds.

    Args:
        x: Shape (batch, channels, height, width).
        y: Filled, likewise.
        other: Added to the output: as many numbers in the same order, or none.
        bounds: Least and largest number of the output, float32.
        memory: At least as many floats as planes and sums take.
        layout: Height and width of the image as it is cut, strides, output rows as they are cut,
            columns of these, pitch, rows of a tile, rows of a plane, floats of a plane, lanes of
            a tile, where in the memory sums start, tiles of a block of rows of the matrix.
        planes: See ``gather``.
        offsets: Where in the panel the activations of an entry's column start.
        tiles: See ``spmm.multiply``, with the four that follow.
        rows: See there.
        starts: See there.
        value: See there.
        bias: See there.
        before: A depthwise convolution whose output is convolved: its arguments (``layout``,
            ``kernel``, ``masks``, ``bounds``) as in ``depthwise``. The kernel is empty for none.
        like: See ``blocks.py``: positions worked on at once. None for plain loops.

    Returns:
        Whether all that was met is finite; if not, ``y`` is not to be used.
    """
    size, stride = (layout[0], layout[1]), (layout[2], layout[3])
    height, width, pitch, high = layout[4], layout[5], layout[6], layout[7]
    deep, plane, lanes = layout[8], layout[9], layout[10]
    panel, sums, fast = memory, memory[layout[11] :], like is not None
    # Rows without gaps are one row.
    lines, line = (1, high * width) if pitch == width else (high, width)
    for image in range(x.shape[0]):
        inputs, outputs = x[image].reshape(x.shape[1], -1), y[image].reshape(y.shape[1], -1)
        for top in range(0, height, high):
            if before[1].shape[0]:
                now = min(high, height - top)
                fine = depthwise(inputs, *before, top, now, plane, panel, fast)
            else:
                fine = gather(inputs, size, stride, planes, deep, top, pitch, plane, panel, fast)
            if not fine:
                return False
            # Offsets are those of the whole panel, so that tiles have none of their own.
            entries, steps = (panel, tiles, rows, starts, offsets, value, bias), (1, 0)
            step = lanes if like is None else 16 * len(like)
            for first in range(0, lanes, step):
                for tile in range(0, tiles.shape[0] - 1, layout[12]):
                    part = (tile, tile + layout[12], 0, first, lanes)
                    if like is None:
                        multiply_plain(*entries, steps, part, sums)
                    else:
                        multiply(*entries, steps, part, sums, like)
            place = (top * width, lines, line, pitch)
            if not scatter(sums, lanes, *place, outputs, other, image * y[0].size, bounds, fast):
                return False
    return True
