"""How a search shows where it is: a bar on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, Self, TextIO

#: Columns of a terminal that has room for a long bar.
_WIDE = 120

_HIDDEN = ContextVar("hidden", default=False)


@contextmanager
def hidden(are: bool = True) -> Iterator[None]:
    """Within it searches show no progress, because someone else does; ``are``: or they do."""
    before = _HIDDEN.set(are)
    try:
        yield
    finally:
        _HIDDEN.reset(before)


class Progress(Protocol):
    """Shows how many trials are done and the best so far; a context manager."""

    def __enter__(self) -> Self:
        """Starts showing."""

    def __exit__(self, *_: object) -> None:
        """Leaves the last state in view."""

    def update(self, done: int, best: str) -> None:
        """Shows that ``done`` trials are finished and describes the best of them."""


def progress(total: int, title: str, stream: TextIO | None = None) -> Progress:
    """The form that suits where the output goes.

    Args:
        total: Trials planned.
        title: What is running.
        stream: Where to show it, standard error by default (so that pipes get results only).
    """
    if _HIDDEN.get():
        return Nothing()
    stream = sys.stderr if stream is None else stream
    return Bar(total, title, stream) if stream.isatty() else Lines(total, title, stream)


class Nothing:
    """Shows nothing."""

    def __enter__(self) -> Self:
        """See :class:`Progress`."""
        return self

    def __exit__(self, *_: object) -> None:
        """See :class:`Progress`."""

    def update(self, done: int, best: str) -> None:
        """See :class:`Progress`."""


class Bar:
    """A rich progress bar."""

    def __init__(self, total: int, title: str, stream: TextIO) -> None:
        """See :func:`progress`."""
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress
        from rich.table import Column

        console = Console(file=stream)
        count, best = "{task.completed}/{task.total}", "{task.fields[best]}"

        def whole(text: str) -> Column:
            return Column(no_wrap=True, min_width=len(text))

        self._bar = RichProgress(
            TextColumn("{task.description}", table_column=whole(title), markup=False),
            BarColumn(40 if console.width >= _WIDE else 8),
            TextColumn(count, table_column=whole(f"{total}/{total}")),
            TimeRemainingColumn(table_column=whole("0:00:00")),
            # Cut short where there is no room.
            TextColumn(best, table_column=Column(no_wrap=True), markup=False),
            console=console,
        )
        self._task = self._bar.add_task(title, total=total, best="")

    def __enter__(self) -> Self:
        """Starts drawing."""
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves the bar as it stands."""
        self._bar.stop()

    def update(self, done: int, best: str) -> None:
        """See :class:`Progress`."""
        self._bar.update(self._task, completed=done, best=best)


class Lines:
    """One line at the start, at most one every few seconds, one at the end."""

    def __init__(self, total: int, title: str, stream: TextIO, every_s: float = 5.0) -> None:
        """See :func:`progress`; ``every_s`` seconds at least lie between two lines."""
        self._total, self._title, self._stream, self._every_s = total, title, stream, every_s
        self._done, self._best = 0, ""
        self._shown_done, self._shown_at = -1, float("-inf")

    def __enter__(self) -> Self:
        """Says what starts."""
        self._show()
        return self

    def __exit__(self, *_: object) -> None:
        """Shows the last state, if it has not been shown yet."""
        if self._done != self._shown_done:
            self._show()

    def update(self, done: int, best: str) -> None:
        """See :class:`Progress`."""
        self._done, self._best = done, best
        if time.monotonic() - self._shown_at >= self._every_s:
            self._show()

    def _show(self) -> None:
        best = f"  {self._best}" if self._best else ""
        print(f"{self._title} {self._done}/{self._total}{best}", file=self._stream, flush=True)
        self._shown_done, self._shown_at = self._done, time.monotonic()
