"""Which step takes which entry of a permute-ELL matrix; see ``pell.py`` for the terms."""

from __future__ import annotations

from typing import Any

import numpy as np

from automl.executors.kernels.options import kernel

_NONE = np.int64(2**62)


@kernel
def _ends(rows: Any, position: Any, starts: Any, columns: Any, limit: int, end: Any) -> None:
    """Finds where each lane's entries of a tile end."""
    for lane in range(16):
        row, entry = rows[lane], 0
        if row >= 0:
            entry = position[row]
            while entry < starts[row + 1] and columns[entry] < limit:
                entry += 1
        end[lane] = entry


@kernel
def _behind(rows: Any, position: Any, end: Any, columns: Any) -> Any:
    """The smallest column that a lane waits for, ``_NONE`` where all are done."""
    behind = _NONE
    for lane in range(16):
        row = rows[lane]
        if row >= 0 and position[row] < end[lane]:
            behind = min(behind, np.int64(columns[position[row]]))
    return behind


@kernel
def _take(
    row: int,
    last: int,
    limit: int,
    depth: int,
    base: int,
    step: int,
    columns: Any,
    position: Any,
    step_of: Any,
    rank_of: Any,
    offset_of: Any,
) -> None:
    """Lets one row take what it has in the window."""
    rank = 0
    while rank < depth and position[row] < last and columns[position[row]] < limit:
        entry = position[row]
        step_of[entry] = step
        rank_of[entry] = rank
        offset_of[entry] = columns[entry] - base
        position[row] += 1
        rank += 1


@kernel
def schedule(
    starts: Any,
    columns: Any,
    lanes: Any,
    tile: int,
    tiles: int,
    unit: int,
    window: int,
    depth: int,
    steps: Any,
    advance: Any,
    step_of: Any,
    rank_of: Any,
    offset_of: Any,
) -> int:
    """Assigns every entry of a sparse matrix to a step, laggards first.

    A window may not move beyond the next entry of any lane, and moving it less would serve
    nobody: so each step moves it to the column of the lane that is furthest behind, and every
    lane takes what it has in the window. No schedule has fewer steps.

    Args:
        starts: First entry of every row and the end, shape (rows + 1).
        columns: Column of every entry, ascending within a row.
        lanes: Row of every lane, 16 of a group together, -1 for none.
        tile: Columns of a tile.
        tiles: How many tiles there are.
        unit: Windows start at multiples of this many columns of the tile.
        window: Columns of a window.
        depth: Entries of one row that a step takes.
        steps: Filled with the number of steps of each segment, tiles outermost.
        advance: Filled with the units by which each step moves the window; one byte each, so
            wide gaps cost steps that take nothing.
        step_of: Filled with the step of every entry, counted over all segments.
        rank_of: Filled with the entry's place among those of its row in that step.
        offset_of: Filled with the entry's column less that of the window.

    Returns:
        How many steps there are.
    """
    groups = lanes.shape[0] // 16
    position, end = starts[:-1].copy(), np.empty(16, np.int64)
    total = 0
    for segment in range(groups * tiles):
        first = total
        rows = lanes[16 * (segment % groups) : 16 * (segment % groups) + 16]
        base = (segment // groups) * tile
        _ends(rows, position, starts, columns, base + tile, end)
        while True:
            behind = _behind(rows, position, end, columns)
            if behind == _NONE:
                break
            units = (behind - base) // unit
            advance[total] = min(units, 255)
            base += unit * min(units, 255)
            if units <= 255:
                for lane in range(16):
                    if rows[lane] >= 0:
                        _take(
                            rows[lane], end[lane], base + window, depth, base, total,
                            columns, position, step_of, rank_of, offset_of,
                        )  # fmt: skip
            total += 1
        steps[segment] = total - first
    return total
