"""Products with matrices stored by columns: zero activations are skipped with their columns."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from automl.executors.kernels.options import OPTIONS
from automl.executors.kernels.vectors import peek, prefetch

#: Columns are fetched this many active columns ahead.
_AHEAD = 4


@njit(**OPTIONS)
def active_columns(x: Any, columns: Any, values: Any) -> int:
    """Lists the activations that are not zero; returns how many there are."""
    count = 0
    for column in range(x.shape[0]):
        columns[count] = column
        values[count] = x[column]
        count += int(x[column] != 0)
    return count


@njit(**OPTIONS)
def csc_float32(
    columns: Any, x: Any, count: int, starts: Any, rows: Any, value: Any, y: Any
) -> None:
    """Adds the active columns to y.

    Args:
        columns: Active columns, shape (at least count).
        x: Their activations.
        count: How many there are.
        starts: First entry of every column and the end.
        rows: Row of every entry.
        value: Weight of every entry.
        y: Sums, shape (out_features).
    """
    for n in range(count):
        if n + _AHEAD < count:
            ahead = peek(columns, n + _AHEAD)
            first, last = peek(starts, ahead), peek(starts, ahead + 1)
            for at in range(first, last, 16):
                prefetch(value, at)
            for at in range(first, last, 32):
                prefetch(rows, at)
        column, activation = peek(columns, n), peek(x, n)
        at, last = peek(starts, column), peek(starts, column + 1)
        while at + 4 <= last:
            # Rows of a column differ, so all four are read before any is written.
            a, b = np.uint64(peek(rows, at)), np.uint64(peek(rows, at + 1))
            c, d = np.uint64(peek(rows, at + 2)), np.uint64(peek(rows, at + 3))
            ya = y[a] + peek(value, at) * activation
            yb = y[b] + peek(value, at + 1) * activation
            yc = y[c] + peek(value, at + 2) * activation
            yd = y[d] + peek(value, at + 3) * activation
            y[a], y[b], y[c], y[d] = ya, yb, yc, yd
            at += 4
        while at < last:
            y[np.uint64(peek(rows, at))] += peek(value, at) * activation
            at += 1


@njit(**OPTIONS)
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


@njit(**OPTIONS)
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
