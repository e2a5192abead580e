"""Sparse times dense for batches: every weight is used for 16 to 64 examples at once."""

from __future__ import annotations

from typing import Any

import numpy as np

from automl.executors.kernels.blocks import (
    fma_block,
    load_block,
    prefetch_block,
    splat_at,
    splat_block,
    store_block,
    transpose,
)
from automl.executors.kernels.options import kernel
from automl.executors.kernels.vectors import (
    fma,
    load_float32x16,
    peek,
    prefetch,
    total,
    zeros_float32x16,
)

# Rows are short: a function for each, inlined or not, makes these kernels half as fast.

#: Entries fetched ahead, and listed rows whose sums are.
_ENTRIES, _ROWS = 512, 4
#: Columns of 16 examples that are turned before those of the next 16: the memory is read and
#: written best in long runs. Columns that are fetched ahead.
_RUN, _COLUMNS = 256, 128


@kernel
def to_panel(x: Any, first: int, width: int, panel: Any, fast: bool) -> bool:
    """Turns examples into lanes: panel[column, i] = x[first + i, column], zero beyond the batch.

    ``width`` is a multiple of 16; ``fast``: whether to use vector instructions.

    Returns:
        Whether no number read is NaN or infinite.
    """
    flat, columns = x.reshape(-1), x.shape[1]
    zero, other = zeros_float32x16(), np.float32(0)
    doubt = zero
    for left in range(0, columns, _RUN):
        right = min(left + _RUN, columns)
        for group in range(0, width, 16):
            whole = right & ~15 if fast and first + group + 16 <= x.shape[0] else left
            for start in range(left, whole, 16):
                source, goal = (first + group) * columns + start, start * width + group
                for example in range(16):
                    prefetch(flat, source + example * columns + _COLUMNS)
                transpose(flat, source, columns, panel, goal, width)
                for column in range(16):
                    doubt = fma(load_float32x16(panel, goal + column * width), zero, doubt)
            for example in range(group, group + 16):
                if first + example < x.shape[0]:
                    for column in range(whole, right):
                        number = x[first + example, column]
                        other += number * np.float32(0)
                        panel[column * width + example] = number
                else:
                    for column in range(whole, right):
                        panel[column * width + example] = 0
    # Zero times NaN or infinity is NaN, and all else adds up to zero.
    return bool(total(doubt) + other == 0)


@kernel
def from_panel(
    panel: Any, first: int, width: int, y: Any, begin: int, end: int, fast: bool
) -> None:
    """Turns the lanes of rows from ``begin`` to before ``end`` back into columns of examples."""
    flat, columns = y.reshape(-1), y.shape[1]
    for left in range(begin, end, _RUN):
        right = min(left + _RUN, end)
        for group in range(0, min(width, y.shape[0] - first), 16):
            now = min(16, y.shape[0] - first - group)
            whole = left + (right - left & ~15) if fast and now == 16 else left
            for start in range(left, whole, 16):
                source, goal = (start - begin) * width + group, (first + group) * columns + start
                transpose(panel, source, width, flat, goal, columns)
            for example in range(now):
                for row in range(whole, right):
                    number = panel[(row - begin) * width + group + example]
                    y[first + group + example, row] = number


@kernel
def multiply(
    panel: Any, tiles: Any, rows: Any, starts: Any, index: Any, value: Any, bias: Any,
    steps: Any, part: Any, sums: Any, like: Any,
) -> None:  # fmt: skip
    """Sums up the products of as many vectors of lanes as ``like`` is long.

    Two rows with equally many entries go side by side, so that their additions need not wait for
    each other; rows are sorted by their entries, and most have such a neighbour.

    Args:
        panel: Activations.
        tiles: First listed row of every tile of columns and the end.
        rows: Rows that have entries in a tile, those with equally many together; all rows in the
            first tile.
        starts: First entry of every listed row and the end.
        index: Place of an entry's column in its tile.
        value: Weight of every entry.
        bias: What each row starts with.
        steps: Numbers of the panel from one place to the next, and from one tile to the next.
        part: First tile and the last behind it, first row, first lane, lanes of a row.
        sums: Filled, shape (rows, lanes).
        like: See ``blocks.py``.
    """
    scale, step = steps
    begin_tile, end_tile, origin, lane, lanes = part
    for t in range(begin_tile, end_tile):
        base = lane + (t - begin_tile) * step
        following = base + step
        listed, last = peek(tiles, t), peek(tiles, t + 1)
        while listed < last:
            begin, end = peek(starts, listed), peek(starts, listed + 1)
            count = end - begin
            prefetch(index, begin + _ENTRIES)
            prefetch(value, begin + _ENTRIES)
            if count > 8:
                prefetch(value, begin + _ENTRIES + 16)
            if count > 16:
                prefetch(value, begin + _ENTRIES + 32)
                prefetch(value, begin + _ENTRIES + 48)
            if step:
                prefetch(panel, following)
                prefetch(panel, following + 16)
                following += 32
            row = peek(rows, listed)
            at = (row - origin) * lanes + lane
            soon = peek(rows, min(listed + _ROWS, last - 1)) - origin
            prefetch_block(sums, soon * lanes + lane, like)
            soon = peek(rows, min(listed + _ROWS + 1, last - 1)) - origin
            prefetch_block(sums, soon * lanes + lane, like)
            if t > begin_tile:
                a = load_block(sums, at, like)
            else:
                a = splat_block(peek(bias, row), like)
            if listed + 1 < last and peek(starts, listed + 2) - end == count:
                row = peek(rows, listed + 1)
                other = (row - origin) * lanes + lane
                more = t > begin_tile
                b = load_block(sums, other, like) if more else splat_block(peek(bias, row), like)
                for n in range(begin, end):
                    place = base + scale * peek(index, n)
                    a = fma_block(splat_at(value, n), panel, place, a)
                    place = base + scale * peek(index, n + count)
                    b = fma_block(splat_at(value, n + count), panel, place, b)
                store_block(sums, other, b)
                listed += 2
            else:
                for n in range(begin, end):
                    place = base + scale * peek(index, n)
                    a = fma_block(splat_at(value, n), panel, place, a)
                listed += 1
            store_block(sums, at, a)


@kernel
def multiply_plain(
    panel: Any, tiles: Any, rows: Any, starts: Any, index: Any, value: Any, bias: Any,
    steps: Any, part: Any, sums: Any,
) -> None:  # fmt: skip
    """The same for all lanes of a row, without vector instructions of our own."""
    scale, step = steps
    begin_tile, end_tile, origin, lane, lanes = part
    for t in range(begin_tile, end_tile):
        base = lane + (t - begin_tile) * step
        for listed in range(tiles[t], tiles[t + 1]):
            row = rows[listed]
            own = sums[(row - origin) * lanes : (row - origin + 1) * lanes]
            if t == begin_tile:
                own[:] = bias[row]
            for n in range(starts[listed], starts[listed + 1]):
                place = base + scale * index[n]
                inputs = panel[place : place + lanes]
                for number in range(lanes):
                    own[number] += value[n] * inputs[number]


@kernel
def multiply_batch(
    x: Any, y: Any, first: int, memory: Any, tile: int, block: int, tiles: Any, rows: Any,
    starts: Any, index: Any, value: Any, bias: Any, width: int, like: Any,
) -> bool:  # fmt: skip
    """The layer's output for ``width`` examples from ``first`` on.

    Args:
        x: Shape (batch, in_features).
        y: Filled from example ``first`` on, shape (batch, out_features).
        first: First example.
        memory: At least ``(in_features + block) * width`` floats.
        tile: Columns of a tile.
        block: Rows of a block, whose tiles follow each other.
        tiles: See ``multiply``, with the five that follow; tiles of the first block come first.
        rows: See there.
        starts: See there.
        index: See there.
        value: See there.
        bias: See there.
        width: Examples, a multiple of 16.
        like: As many numbers as vectors of examples, or None for plain loops.

    Returns:
        Whether all activations are finite; if not, ``y`` is not to be used.
    """
    fast, used = like is not None, x.shape[1] * width
    panel, sums = memory[:used], memory[used:]
    if not to_panel(x, first, width, panel, fast):
        return False
    count = (x.shape[1] + tile - 1) // tile
    steps, entries = (width, width * tile), (panel, tiles, rows, starts, index, value, bias)
    for begin in range(0, y.shape[1], block):
        from_tile = begin // block * count
        part = (from_tile, from_tile + count, begin, 0, width)
        if like is None:
            multiply_plain(*entries, steps, part, sums)
        else:
            multiply(*entries, steps, part, sums, like)
        from_panel(sums, first, width, y, begin, min(begin + block, y.shape[1]), fast)
    return True
