"""Prints a table whole, however narrow the terminal is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Column, Table

#: Columns are not folded narrower than this.
_LEAST = 12
#: What a column takes beside its text.
_BETWEEN = 3


def show(table: Table, piped: int = 120, lead: int = 1) -> None:
    """Prints a table, its columns in several parts below each other where they do not fit.

    Args:
        table: Any; its cells are text.
        piped: Width where there is no terminal, which has none.
        lead: So many columns say what a row is; every part begins with them.
    """
    from rich.console import Console

    # Settings of the user's are among the cells: brackets and colons in them are no markup.
    width = None if sys.stdout.isatty() else piped
    console = Console(highlight=False, markup=False, emoji=False, width=width)
    for part in parts(table, console, lead):
        console.print(part)


def parts(table: Table, console: Console, lead: int = 1) -> Iterator[Table]:
    """The table where it fits a console, else as few tables as hold its columns.

    Args:
        table: Any; its cells are text.
        console: Says how wide they may be.
        lead: As in :func:`show`.
    """
    if _fits(table, console):
        yield table
        return
    rest, title = table.columns[lead:], table.title
    first = _folded(table, table.columns[:lead], rest, console)
    while rest:
        count = len(rest)
        while count > 1 and not _fits(_with(table, [*first, *rest[:count]]), console):
            count -= 1
        part = _with(table, [*first, *rest[:count]])
        part.title, title, rest = title, None, rest[count:]
        part.caption = None if rest else table.caption
        yield part


def _folded(
    table: Table, first: list[Column], rest: list[Column], console: Console
) -> list[Column]:
    """The columns that begin every part, the longest folded until each other has room beside."""
    widest = max(rest, key=lambda column: _width(_with(table, [column]), console))
    for _ in first:
        if _fits(_with(table, [*first, widest]), console):
            break
        widths = [_width(_with(table, [column]), console) for column in first]
        at = widths.index(max(widths))
        others = [*first[:at], *first[at + 1 :], widest]
        room = console.width - _width(_with(table, others), console) - _BETWEEN
        room = max(_LEAST, min(room, console.width // 3))
        column = replace(first[at], no_wrap=False, overflow="fold", max_width=room)
        first = [*first[:at], column, *first[at + 1 :]]
    return first


def _fits(table: Table, console: Console) -> bool:
    return _width(table, console) <= console.width


def _width(table: Table, console: Console) -> int:
    from rich.measure import Measurement

    # Columns that may wrap would shrink to a letter before a table counted as too wide.
    whole = console.options.update(width=10_000)
    return Measurement.get(console, whole, table).maximum


def _with(table: Table, columns: list[Column]) -> Table:
    from rich.table import Table

    part = Table(title_justify=table.title_justify, caption_justify=table.caption_justify)
    for column in columns:
        part.add_column(
            column.header,
            justify=column.justify,
            no_wrap=column.no_wrap,
            overflow=column.overflow,
            max_width=column.max_width,
        )
    for row, cells in zip(table.rows, zip(*(c.cells for c in columns), strict=True), strict=True):
        part.add_row(*cells, end_section=row.end_section)
    return part
