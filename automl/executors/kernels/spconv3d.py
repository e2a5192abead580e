"""Convolution of the occupied places of a grid: gather, multiply and add in one.

A kernel map lists, for every offset of the kernel, pairs of a row that is read and a row that is
added to. Targets are cut into blocks whose rows stay in the cache while all offsets add to them.
"""

from __future__ import annotations

from typing import Any

from numba.misc.special import literally

from automl.executors.kernels.options import kernel
from automl.executors.kernels.row_tiles import add_products


@kernel
def convolve(
    x: Any,
    y: Any,
    source: Any,
    target: Any,
    bounds: Any,
    order: Any,
    block: int,
    bias: Any,
    weight: Any,
    starts: Any,
    channels: Any,
    firsts: Any,
) -> None:
    """Writes the rows of ``y`` that are a target, by vector instructions.

    Args:
        x: float32, shape (rows, in_channels), contiguous.
        y: Filled in the rows of ``order``; float32, shape (rows, columns), contiguous, columns a
            multiple of 16.
        source: Rows of ``x``, int32, offset by offset, with 16 more behind the last.
        target: Rows of ``y`` likewise.
        bounds: First pair of every offset in every block and the end, shape (offsets, blocks + 1).
        order: Rows of ``y``, block by block.
        block: Rows of a block.
        bias: What each row starts with, shape (columns).
        weight: Of every panel of up to 64 columns and every offset, the weights of its channels,
            channel by channel.
        starts: Where in ``weight`` those begin, shape (panels, offsets).
        channels: Channels that have weights, int32, of every panel and offset.
        firsts: Where in ``channels`` those begin, and the end, shape (panels * offsets + 1).
    """
    offsets, blocks = bounds.shape
    flat_x, flat_y = x.reshape(-1), y.reshape(-1)
    columns = y.shape[1]
    for number in range(blocks - 1):
        for rank in range(number * block, min(number * block + block, order.shape[0])):
            y[order[rank]] = bias
        for panel in range(starts.shape[0]):
            column = 64 * panel
            width = min(columns - column, 64)
            for offset in range(offsets):
                listed = panel * offsets + offset
                count = firsts[listed + 1] - firsts[listed]
                if count > 0:
                    _panel(
                        width, flat_x, source, flat_y, target, bounds[offset, number],
                        bounds[offset, number + 1], x.shape[1], columns, column, weight,
                        starts[panel, offset], channels, firsts[listed], count,
                    )  # fmt: skip


@kernel
def _offset(
    vectors: Any, x: Any, source: Any, y: Any, target: Any, at: int, end: int, x_stride: int,
    y_stride: int, column: int, weight: Any, start: int, channels: Any, first: int, count: int,
) -> None:  # fmt: skip
    """The pairs of one offset in one block, six at a time, then one at a time."""
    literally(vectors)  # Compiled once for every number of vectors.
    while at + 6 <= end:
        add_products(
            6, vectors, x, source, y, target, at, x_stride, y_stride, column, weight, start,
            channels, first, count,
        )  # fmt: skip
        at += 6
    while at < end:
        add_products(
            1, vectors, x, source, y, target, at, x_stride, y_stride, column, weight, start,
            channels, first, count,
        )  # fmt: skip
        at += 1


@kernel
def _panel(
    width: int, x: Any, source: Any, y: Any, target: Any, at: int, end: int, x_stride: int,
    y_stride: int, column: int, weight: Any, start: int, channels: Any, first: int, count: int,
) -> None:  # fmt: skip
    """The same for a width that is known only now."""
    if width == 64:
        _offset(4, x, source, y, target, at, end, x_stride, y_stride, column, weight, start,
                channels, first, count)  # fmt: skip
    elif width == 48:
        _offset(3, x, source, y, target, at, end, x_stride, y_stride, column, weight, start,
                channels, first, count)  # fmt: skip
    elif width == 32:
        _offset(2, x, source, y, target, at, end, x_stride, y_stride, column, weight, start,
                channels, first, count)  # fmt: skip
    else:
        _offset(1, x, source, y, target, at, end, x_stride, y_stride, column, weight, start,
                channels, first, count)  # fmt: skip


@kernel
def gather(x: Any, rows: Any, panel: Any) -> None:
    """panel[i] = x[rows[i]]; rows of the panel behind the last become zero."""
    for i in range(rows.shape[0]):
        source = x[rows[i]]
        for column in range(x.shape[1]):
            panel[i, column] = source[column]
    panel[rows.shape[0] :] = 0


@kernel
def scatter_add(panel: Any, rows: Any, y: Any) -> None:
    """y[rows[i]] += panel[i]."""
    for i in range(rows.shape[0]):
        sums = y[rows[i]]
        for column in range(y.shape[1]):
            sums[column] += panel[i, column]
