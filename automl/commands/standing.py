"""Where a sweep stands: how many cells are done, the best of every strategy, the time left."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from automl.runs import JOURNAL

#: How done a cell counts at most while it runs: after its trials, networks are tuned and measured.
_MOST = 0.9


@dataclass(frozen=True, slots=True)
class Entry:
    """A cell as the overview sees it.

    Attributes:
        name: What was varied.
        strategy: Its strategy.
        setting: What was varied besides strategy and seed, as ``budget.macs=0.3``; may be empty.
        folder: The run folder.
        trials: How many it may take.
    """

    name: str
    strategy: str
    setting: str
    folder: Path
    trials: int


class Standing:
    """Counts cells as they finish, and watches the journals of those that run.

    Attributes:
        failed: How many cells failed.
        elsewhere: How many were left to another command that runs them.
        started: When this began, on the monotonic clock.
    """

    def __init__(self, entries: Sequence[Entry], done: Sequence[str] = ()) -> None:
        """Nothing has run yet.

        Args:
            entries: All cells of the sweep.
            done: Names of those that were done before.
        """
        self.entries = {entry.name: entry for entry in entries}
        self.failed = self.elsewhere = 0
        self.started = time.monotonic()
        self._before = len(done)
        self._ended = set(done)
        self._best: dict[tuple[str, str], float] = {}
        # What cells that were cut have left; they run once there is more than that.
        self._counters = {entry.name: _Lines(entry.folder / JOURNAL) for entry in self._open()}
        self._lines = {name: counter.count() for name, counter in self._counters.items()}

    @property
    def total(self) -> int:
        """Cells of the sweep."""
        return len(self.entries)

    @property
    def ended(self) -> int:
        """Cells that are done, failed or left to others, those of before included."""
        return len(self._ended)

    def add(self, name: str, status: str, top1: float | None) -> None:
        """Counts a cell that has ended.

        Args:
            name: Of the cell.
            status: ``done``, ``failed`` or ``elsewhere``.
            top1: Test top-1 of what it found.
        """
        self._ended.add(name)
        self.failed += status == "failed"
        self.elsewhere += status == "elsewhere"
        self.known(name, top1)

    def known(self, name: str, top1: float | None) -> None:
        """Takes a result into account, one of before included."""
        if top1 is not None:
            key = self.entries[name].strategy, self.entries[name].setting
            self._best[key] = max(top1, self._best.get(key, 0.0))

    @property
    def strategies(self) -> list[str]:
        """In the order of the cells."""
        return list(dict.fromkeys(entry.strategy for entry in self.entries.values()))

    @property
    def settings(self) -> list[str]:
        """In the order of the cells."""
        return list(dict.fromkeys(entry.setting for entry in self.entries.values()))

    def cells(self, strategy: str) -> tuple[int, int]:
        """How many cells of a strategy have ended, and how many there are."""
        names = [name for name, entry in self.entries.items() if entry.strategy == strategy]
        return sum(name in self._ended for name in names), len(names)

    def best(self, strategy: str, setting: str | None = None) -> float | None:
        """Highest test top-1 of a strategy under a setting (None: under any)."""
        keys = [(strategy, one) for one in self.settings if setting in (None, one)]
        return max((self._best[key] for key in keys if key in self._best), default=None)

    def running(self) -> list[tuple[Entry, int]]:
        """Cells whose journals have grown, and how many trials those hold."""
        counts = [(entry, self._counters[entry.name].count()) for entry in self._open()]
        return [(entry, count) for entry, count in counts if count > self._lines[entry.name]]

    def seconds_left(self) -> float | None:
        """How long the rest may take; None where nothing tells yet."""
        parts = sum(min(count / entry.trials, _MOST) for entry, count in self.running())
        finished = self.ended - self._before + parts
        if not finished:
            return None
        elapsed = time.monotonic() - self.started
        return max(self.total - self.ended - parts, 0.0) * elapsed / finished

    def _open(self) -> Iterator[Entry]:
        return (entry for name, entry in self.entries.items() if name not in self._ended)


class _Lines:
    """Counts the lines of a journal that grows, and reads no part of it twice."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read, self._found = 0, 0

    def count(self) -> int:
        """Lines so far; 0 where there is no file."""
        with contextlib.suppress(OSError), self._path.open("rb") as file:
            if file.seek(0, os.SEEK_END) < self._read:  # cut, or written anew
                self._read = self._found = 0
            file.seek(self._read)
            more = file.read()
            self._read += len(more)
            self._found += more.count(b"\n")
            return self._found
        return 0


def duration(seconds: float) -> str:
    """As ``12 s``, ``5 min`` or ``1.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
