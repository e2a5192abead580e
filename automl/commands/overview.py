"""What a sweep shows while it runs: a line per finished cell and, on a terminal, a live table."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TextIO

from automl.commands.standing import Standing, duration

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.table import Table

#: With more settings than this beside strategy and seed, one column shows the best of all.
_COLUMNS = 4
#: So many of the cells that run are named.
_NAMED = 6
_PER_SECOND = 2


def overview(standing: Standing, stream: TextIO | None = None) -> Overview:
    """The form that suits where the output goes.

    Args:
        standing: What is shown.
        stream: Where to show it, standard output by default.
    """
    from rich.console import Console

    stream = sys.stdout if stream is None else stream
    console = Console(file=stream, highlight=False, markup=False, emoji=False)
    live = console.is_terminal and not console.is_dumb_terminal
    return LiveOverview(standing, console) if live else Overview(standing, stream)


class Overview:
    """A line per finished cell.

    Attributes:
        live: Whether it shows the running cells too, so that they need not show themselves.
    """

    live = False

    def __init__(self, standing: Standing, stream: TextIO) -> None:
        """See :func:`overview`."""
        self._standing, self._stream = standing, stream

    def __enter__(self) -> Self:
        """Starts showing."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves the last state in view."""

    def add(self, name: str, status: str, text: str, seconds: float, top1: float | None) -> None:
        """Shows a finished cell and how long the others may take.

        Args:
            name: Of the cell.
            status: ``done``, ``failed`` or ``elsewhere``.
            text: The result, or the reason.
            seconds: How long it took.
            top1: Test top-1 of what it found.
        """
        standing = self._standing
        standing.add(name, status, top1)
        mark = "FAILED: " if status == "failed" else ""
        took = duration(seconds) if self.live else f"{duration(seconds)}{_left(standing)}"
        self._line(f"[{standing.ended}/{standing.total}] {name}: {mark}{text} ({took})")

    def _line(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class LiveOverview(Overview):
    """The same lines, and below them a table that is drawn again and again in its place."""

    live = True

    def __init__(self, standing: Standing, console: Console) -> None:
        """See :func:`overview`."""
        from rich.live import Live

        super().__init__(standing, console.file)  # type: ignore[arg-type]  # rich's IO[str]
        self._console = console
        self._live = Live(
            console=console, get_renderable=self._drawn, refresh_per_second=_PER_SECOND
        )

    def __enter__(self) -> Self:
        """Starts drawing."""
        self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves the table as it stands at the end."""
        self._live.stop()

    def _line(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)

    def _drawn(self) -> Group:
        from rich.console import Group
        from rich.text import Text

        running = self._standing.running()
        lines: list[Any] = [
            Text(f"running: {entry.name}, trial {min(count, entry.trials)} of {entry.trials}")
            for entry, count in running[:_NAMED]
        ]
        if len(running) > _NAMED:
            lines.append(Text(f"... and {_cells(len(running) - _NAMED, 'more ')}"))
        return Group(_table(self._standing), *lines)


def _table(standing: Standing) -> Table:
    """Cells and the best test top-1, by strategy and by what else was varied."""
    from rich.table import Table

    passed = duration(time.monotonic() - standing.started)
    finished = standing.ended - standing.elsewhere
    state = f"{finished} of {_cells(standing.total)} finished, {standing.failed} failed"
    if standing.elsewhere:
        state += f", {standing.elsewhere} left to another command"
    title = f"{state}, {passed} so far{_left(standing)}"
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("best test top-1 %")
    table.add_column("cells", justify="right")
    settings: list[str | None] = [*standing.settings]
    if len(settings) > _COLUMNS:
        settings = [None]
    for setting in settings:
        table.add_column(setting or "all", justify="right")
    for strategy in standing.strategies:
        ended, there = standing.cells(strategy)
        best = [_percent(standing.best(strategy, setting)) for setting in settings]
        table.add_row(strategy, f"{ended}/{there}", *best)
    return table


def _left(standing: Standing) -> str:
    left = standing.seconds_left() if standing.ended < standing.total else None
    return "" if left is None else f", about {duration(left)} left"


def _cells(count: int, which: str = "") -> str:
    return f"{count} {which}{'cell' if count == 1 else 'cells'}"


def _percent(top1: float | None) -> str:
    return "-" if top1 is None else f"{100 * top1:.2f}"


def show_end(standing: Standing, folder: Path) -> None:
    """Shows the comparison, and says what to do next."""
    from automl.commands import compare

    if standing.failed + standing.elsewhere < standing.total:
        compare.show([folder])
    if standing.failed:
        print(f"{_cells(standing.failed)} failed (failed.json says why); run the command again")
    if standing.elsewhere:
        left = _cells(standing.elsewhere)
        print(f"{left} left to another command; run this one again when that has ended")
