"""What a sweep shows while it runs: a line per finished cell, and on a terminal where it stands."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path


class Overview:
    """A line per finished cell, the state of all of them on a terminal, and the end."""

    def __init__(self, total: int, done: int, strategies: Mapping[str, str] | None = None) -> None:
        """Nothing is shown yet.

        Args:
            total: Cells of the sweep.
            done: Of them, done before.
            strategies: Name of a cell -> its strategy.
        """
        self.failed = 0
        self._total, self._done, self._before = total, done, done
        self._strategies = strategies or {}
        self._best: dict[str, tuple[float, str]] = {}
        self._finished: Counter[str] = Counter()
        self._started = time.monotonic()

    def add(self, name: str, status: str, text: str, seconds: float, top1: float | None) -> None:
        """Shows a finished cell and how long the others may take.

        Args:
            name: Of the cell.
            status: ``done`` or ``failed``.
            text: The result, or the reason.
            seconds: How long it took.
            top1: Test top-1 of what it found.
        """
        self._done += 1
        self.failed += status == "failed"
        mark = "FAILED: " if status == "failed" else ""
        left = f", about {self._left()} left" if self._done < self._total else ""
        line = f"[{self._done}/{self._total}] {name}: {mark}{text} ({_duration(seconds)}{left})"
        print(line, flush=True)
        strategy = self._strategies.get(name, "?")
        self._finished[strategy] += status == "done"
        if top1 is not None and top1 > self._best.get(strategy, (-1.0, ""))[0]:
            self._best[strategy] = top1, name
        if sys.stdout.isatty() and self._done < self._total:
            self._table()

    def _left(self) -> str:
        elapsed = time.monotonic() - self._started
        return _duration((self._total - self._done) * elapsed / (self._done - self._before))

    def _table(self) -> None:
        """Where the sweep stands, by strategy.

        It is printed, not redrawn: below it the searches draw bars of their own.
        """
        from rich.console import Console
        from rich.table import Table

        cells = Counter(self._strategies.values())
        state = f"{self._done} of {self._total} cells finished, {self.failed} failed"
        table = Table(title=f"{state}, about {self._left()} left", title_justify="left")
        for heading in ("strategy", "done now", "cells", "best test top-1 %", "by"):
            table.add_column(heading)
        for strategy, count in cells.items():
            best, name = self._best.get(strategy, (None, "-"))
            shown = "-" if best is None else f"{100 * best:.2f}"
            table.add_row(strategy, str(self._finished[strategy]), str(count), shown, name)
        Console(highlight=False).print(table)

    def end(self, folder: Path) -> None:
        """Says what to do next, and shows the comparison."""
        from automl.commands import compare

        if self.failed < self._total:
            compare.show([folder])
        if self.failed:
            print(f"{self.failed} cells failed (failed.json says why); run the command again")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
