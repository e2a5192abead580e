"""Sparse times dense for batches: every weight is used for 64 or 16 examples at once."""

from __future__ import annotations

from typing import Any

from numba import njit

from automl.executors.kernels.blocks import transpose
from automl.executors.kernels.options import OPTIONS
from automl.executors.kernels.vectors import (
    fma,
    load_float32x16,
    peek,
    prefetch,
    splat,
    store,
)


@njit(**OPTIONS)
def to_panel(x: Any, first: int, width: int, panel: Any, fast: bool) -> None:
    """Turns examples into lanes: panel[column, i] = x[first + i, column], zero beyond the batch.

    ``width`` is a multiple of 16; ``fast``: whether to use vector instructions.
    """
    flat, columns = x.reshape(-1), x.shape[1]
    for start in range(0, columns, 16):
        stop = min(start + 16, columns)
        for group in range(0, width, 16):
            if fast and stop - start == 16 and first + group + 16 <= x.shape[0]:
                source = (first + group) * columns + start
                transpose(flat, source, columns, panel, start * width + group, width)
                continue
            for example in range(group, group + 16):
                if first + example < x.shape[0]:
                    for column in range(start, stop):
                        panel[column * width + example] = x[first + example, column]
                else:
                    for column in range(start, stop):
                        panel[column * width + example] = 0


@njit(**OPTIONS)
def from_panel(panel: Any, first: int, width: int, y: Any, fast: bool) -> None:
    """Turns lanes back into examples."""
    flat, columns = y.reshape(-1), y.shape[1]
    for start in range(0, columns, 16):
        stop = min(start + 16, columns)
        for group in range(0, min(width, y.shape[0] - first), 16):
            if fast and stop - start == 16 and first + group + 16 <= y.shape[0]:
                goal = (first + group) * columns + start
                transpose(panel, start * width + group, width, flat, goal, columns)
                continue
            for example in range(group, min(group + 16, y.shape[0] - first)):
                for row in range(start, stop):
                    y[first + example, row] = panel[row * width + example]


@njit(**OPTIONS)
def fill(bias: Any, width: int, panel: Any) -> None:
    """Starts every sum with its row's bias."""
    for row in range(bias.shape[0]):
        for lane in range(width):
            panel[row * width + lane] = bias[row]


@njit(**OPTIONS)
def multiply_64(
    x: Any, tile: int, tiles: Any, rows: Any, starts: Any, index: Any, value: Any, y: Any
) -> None:
    """Adds the products of 64 examples.

    Args:
        x: Panel of activations, shape (in_features * 64).
        tile: Columns of a tile.
        tiles: First listed row of every tile and the end.
        rows: Rows that have entries in a tile, those with equally many together.
        starts: First entry of every listed row and the end.
        index: Column in the tile of every entry.
        value: Weight of every entry.
        y: Panel of sums, shape (out_features * 64).
    """
    for t in range(tiles.shape[0] - 1):
        base = 64 * tile * t
        for listed in range(peek(tiles, t), peek(tiles, t + 1)):
            row = 64 * peek(rows, listed)
            first, last = peek(starts, listed), peek(starts, listed + 1)
            prefetch(value, first + 512)
            prefetch(index, first + 512)
            a, b = load_float32x16(y, row), load_float32x16(y, row + 16)
            c, d = load_float32x16(y, row + 32), load_float32x16(y, row + 48)
            for at in range(first, last):
                weight, column = splat(peek(value, at)), base + 64 * peek(index, at)
                a = fma(weight, load_float32x16(x, column), a)
                b = fma(weight, load_float32x16(x, column + 16), b)
                c = fma(weight, load_float32x16(x, column + 32), c)
                d = fma(weight, load_float32x16(x, column + 48), d)
            store(y, row, a)
            store(y, row + 16, b)
            store(y, row + 32, c)
            store(y, row + 48, d)


@njit(**OPTIONS)
def multiply_16(
    x: Any, tile: int, tiles: Any, rows: Any, starts: Any, index: Any, value: Any, y: Any
) -> None:
    """The same for 16 examples."""
    for t in range(tiles.shape[0] - 1):
        base = 16 * tile * t
        for listed in range(peek(tiles, t), peek(tiles, t + 1)):
            row = 16 * peek(rows, listed)
            total = load_float32x16(y, row)
            for at in range(peek(starts, listed), peek(starts, listed + 1)):
                column = base + 16 * peek(index, at)
                total = fma(splat(peek(value, at)), load_float32x16(x, column), total)
            store(y, row, total)


@njit(**OPTIONS)
def multiply_plain(
    x: Any,
    tile: int,
    tiles: Any,
    rows: Any,
    starts: Any,
    index: Any,
    value: Any,
    width: int,
    y: Any,
) -> None:
    """The same for any number of examples, without vector instructions of our own."""
    for t in range(tiles.shape[0] - 1):
        for listed in range(tiles[t], tiles[t + 1]):
            sums = y[rows[listed] * width : rows[listed] * width + width]
            for at in range(starts[listed], starts[listed + 1]):
                column = tile * t + index[at]
                activations = x[column * width : column * width + width]
                for lane in range(width):
                    sums[lane] += value[at] * activations[lane]
