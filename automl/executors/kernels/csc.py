"""Products with matrices stored by columns: zero activations are skipped with their columns."""

from __future__ import annotations

from typing import Any

import numpy as np

from automl.executors.kernels.checks import all_finite
from automl.executors.kernels.options import kernel
from automl.executors.kernels.vectors import (
    add,
    expand,
    fma,
    load_float32x16,
    ones,
    peek,
    peek_uint64,
    prefetch,
    splat,
    store,
    zeros_float32x16,
)

#: Columns are fetched this many active columns ahead.
_AHEAD = 4


@kernel
def active_columns(x: Any, columns: Any, values: Any) -> int:
    """Lists the activations that are not zero; returns how many there are."""
    count = 0
    for column in range(x.shape[0]):
        columns[count] = column
        values[count] = x[column]
        count += int(x[column] != 0)
    return count


@kernel
def csc_float32(
    columns: Any, x: Any, count: int, ahead: int, starts: Any, stream: Any, y: Any
) -> None:
    """Adds the active columns to y.

    Args:
        columns: Active columns, shape (at least count).
        x: Their activations.
        count: How many there are.
        ahead: Columns are fetched this many active columns before they are used, line by line:
            all at once they would wait for each other.
        starts: First word of every column and the end.
        stream: Words: the 16-bit rows of four entries, then their weights.
        y: Sums, with one more for the entries that fill up columns.
    """
    mask = np.uint64(0xFFFF)
    values = stream.view(np.float32)
    for n in range(count):
        column, activation = peek(columns, n), peek(x, n)
        first = peek(starts, column)
        distance = peek(starts, peek(columns, min(n + ahead, count - 1))) - first
        for at in range(first, peek(starts, column + 1), 6):
            prefetch(stream, at + distance)
            four = peek_uint64(stream, at)
            a, b = four & mask, four >> np.uint64(16) & mask
            c, d = four >> np.uint64(32) & mask, four >> np.uint64(48)
            # Rows of a column differ, so all four are read before any is written.
            ya = y[a] + peek(values, at + 2) * activation
            yb = y[b] + peek(values, at + 3) * activation
            yc = y[c] + peek(values, at + 4) * activation
            yd = y[d] + peek(values, at + 5) * activation
            y[a], y[b], y[c], y[d] = ya, yb, yc, yd


@kernel
def csc_float32_wide(
    columns: Any, x: Any, count: int, ahead: int, starts: Any, stream: Any, y: Any
) -> None:
    """The same for rows of 32 bits."""
    values = stream.view(np.float32)
    for n in range(count):
        column, activation = columns[n], x[n]
        distance = starts[columns[min(n + ahead, count - 1)]] - starts[column]
        for at in range(starts[column], starts[column + 1], 8):
            prefetch(stream, at + distance)
            for i in range(4):
                y[np.uint64(stream[at + i])] += values[at + 4 + i] * activation


@kernel
def bitmap_float32(
    columns: Any, x: Any, count: int, ahead: int, starts: Any, masks: Any, value: Any, y: Any
) -> None:
    """Adds the active columns to y, 16 rows at a time.

    Args:
        columns: Active columns, shape (at least count).
        x: Their activations.
        count: How many there are.
        ahead: Columns are fetched this many active columns before they are used.
        starts: First entry of every column and the end.
        masks: Which of each 16 rows a column has entries in, shape (columns, blocks).
        value: Weight of every entry, and 16 more.
        y: Sums, shape (16 blocks).
    """
    blocks = masks.shape[1]
    for n in range(count):
        column, activation = peek(columns, n), splat(peek(x, n))
        later = peek(columns, min(n + ahead, count - 1))
        for block in range(0, blocks, 32):
            prefetch(masks, later * blocks + block)
        at, zero = peek(starts, column), zeros_float32x16()
        distance = peek(starts, later) - at
        for block in range(blocks):
            prefetch(value, at + distance)
            mask = peek(masks, column * blocks + block)
            # Spread out after the product: straight from memory that takes four times as long.
            spread = expand(mask, fma(load_float32x16(value, at), activation, zero))
            store(y, 16 * block, add(spread, load_float32x16(y, 16 * block)))
            at += ones(mask)


@kernel
def bitmap_float32_plain(
    columns: Any, x: Any, count: int, ahead: int, starts: Any, masks: Any, value: Any, y: Any
) -> None:
    """The same without vector instructions."""
    for n in range(count):
        at = starts[columns[n]]
        for block in range(masks.shape[1]):
            mask = masks[columns[n], block]
            row = 16 * block
            while mask:
                if mask & np.uint16(1):
                    y[row] += value[at] * x[n]
                    at += 1
                mask >>= np.uint16(1)
                row += 1


@kernel
def csc_call(
    x: Any, y: Any, wide: bool, ahead: int, starts: Any, stream: Any, bias: Any
) -> bool:  # fmt: skip
    """A whole product: fills y for one example; whether all its activations are finite.

    One call of compiled code, because what Python does around it takes as long as a small layer.
    """
    if not all_finite(x.view(np.uint32)):
        return False
    columns, values = np.empty(x.shape[0] + 1, np.int64), np.empty(x.shape[0] + 1, np.float32)
    count = active_columns(x, columns, values)
    sums = np.empty(bias.shape[0] + 1, np.float32)
    sums[:-1] = bias
    sums[-1] = 0
    if wide:
        csc_float32_wide(columns, values, count, ahead, starts, stream, sums)
    else:
        csc_float32(columns, values, count, ahead, starts, stream, sums)
    y[:] = sums[:-1]
    return True


@kernel
def bitmap_call(
    x: Any, y: Any, ahead: int, starts: Any, masks: Any, value: Any, bias: Any, fast: Any
) -> bool:  # fmt: skip
    """The same for bitmaps, without vector instructions where ``fast`` is None."""
    if not all_finite(x.view(np.uint32)):
        return False
    columns, values = np.empty(x.shape[0] + 1, np.int64), np.empty(x.shape[0] + 1, np.float32)
    count = active_columns(x, columns, values)
    sums = np.zeros(16 * masks.shape[1], np.float32)
    sums[: bias.shape[0]] = bias
    if fast is None:
        bitmap_float32_plain(columns, values, count, ahead, starts, masks, value, sums)
    else:
        bitmap_float32(columns, values, count, ahead, starts, masks, value, sums)
    y[:] = sums[: bias.shape[0]]
    return True


@kernel
def eie(
    columns: Any, x: Any, count: int, starts: Any, entries: Any, codebook: Any, base: int, y: Any
) -> None:
    """Adds the active columns of one processing element to its rows of y.

    An entry is 4 bits of zeros before it and 4 bits of code. The 16 products of an activation with
    the shared weights are made once per column.

    Args:
        columns: Active columns.
        x: Their activations.
        count: How many there are.
        starts: First entry of every column of the element, and the end.
        entries: Entries of all elements.
        codebook: Shared weights, zero at code 0.
        base: Where the element's rows start in y.
        y: Sums, the rows of an element together.
    """
    products = np.empty(16, np.float32)
    for n in range(count):
        if n + _AHEAD < count:
            ahead = peek(columns, n + _AHEAD)
            for at in range(peek(starts, ahead), peek(starts, ahead + 1), 64):
                prefetch(entries, at)
        column = peek(columns, n)
        for code in range(16):
            products[code] = codebook[code] * x[n]
        row = np.uint64(base - 1)
        for at in range(peek(starts, column), peek(starts, column + 1)):
            entry = peek(entries, at)
            row += np.uint64(entry >> np.uint8(4)) + np.uint64(1)
            y[row] += products[entry & np.uint8(15)]


@kernel
def encode(starts: Any, rows: Any, codes: Any, entries: Any, entry_starts: Any) -> int:
    """Writes columns as EIE entries; see ``eie.py``.

    Args:
        starts: First non-zero of every column and the end.
        rows: Their rows, ascending within a column.
        codes: Their codes.
        entries: Filled; large enough for all padding.
        entry_starts: Filled with the first entry of every column and the end.

    Returns:
        How many entries there are.
    """
    count = 0
    for column in range(starts.shape[0] - 1):
        entry_starts[column] = count
        previous = -1
        for at in range(starts[column], starts[column + 1]):
            zeros = rows[at] - previous - 1
            while zeros > 15:
                entries[count] = np.uint8(15 << 4)
                count += 1
                zeros -= 16
            entries[count] = np.uint8(zeros << 4 | codes[at])
            count += 1
            previous = rows[at]
    entry_starts[starts.shape[0] - 1] = count
    return count
