"""Prints a table whole, however narrow the terminal is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Column, Table


def show(table: Table, piped: int = 120, lead: int = 1) -> None:
    """Prints a table, its columns in several parts below each other where they do not fit.

    Args:
        table: Any; its cells are text.
        piped: Width where there is no terminal, which has none.
        lead: So many columns say what a row is; every part begins with them.
    """
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else piped)
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
    first, rest, title = table.columns[:lead], table.columns[lead:], table.title
    while rest:
        count = len(rest)
        while count > 1 and not _fits(_with(table, [*first, *rest[:count]]), console):
            count -= 1
        part = _with(table, [*first, *rest[:count]])
        part.title, title, rest = title, None, rest[count:]
        part.caption = None if rest else table.caption
        yield part


def _fits(table: Table, console: Console) -> bool:
    from rich.measure import Measurement

    # Columns that may wrap would shrink to a letter before a table counted as too wide.
    whole = console.options.update(width=10_000)
    return Measurement.get(console, whole, table).maximum <= console.width


def _with(table: Table, columns: list[Column]) -> Table:
    from rich.table import Table

    part = Table(title_justify=table.title_justify, caption_justify=table.caption_justify)
    for column in columns:
        part.add_column(column.header, justify=column.justify, no_wrap=column.no_wrap)
    for row, cells in zip(table.rows, zip(*(c.cells for c in columns), strict=True), strict=True):
        part.add_row(*cells, end_section=row.end_section)
    return part
