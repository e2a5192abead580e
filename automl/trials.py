"""Trials: a policy and what became of it, in memory and as rows of a journal."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, takewhile
from types import NoneType
from typing import Literal, Protocol

from automl.journal import Row
from automl.policy import Policy
from automl.types import InputError, Measurement

Status = Literal["ok", "discarded", "failed"]

#: So many failed trials in a row stop a search, unless it is told otherwise.
_USUAL = 3

#: How errors begin, or what they say, whose cause is the machine and not the policy. Workers are
#: lost to the system's lack of memory above all, or to a time limit that no result depends on.
_OUTSIDE = re.compile(
    r"^(MemoryError|OutOfMemoryError|WorkerLost|OSError|PermissionError|BlockingIOError"
    r"|BrokenPipeError|Connection\w*Error)\b"
    r"|can't allocate memory|cannot allocate memory|out of memory|_ALLOC_FAILED",
    re.IGNORECASE,
)


#: What a row says besides its key and policy.
_FIELDS: Mapping[str, type | tuple[type, ...]] = {
    "index": int,
    "status": str,
    "score": (int, float, NoneType),
    "metrics": (dict, NoneType),
    "seconds": (int, float),
    "time": str,
    "error": (str, NoneType),
}


class TrialLog(Protocol):
    """Where finished trials are written; ``automl.journal.Journal``, or a list to forget them."""

    def __iter__(self) -> Iterator[Row]:
        """All rows in the order written."""

    def append(self, row: Row, /) -> None:
        """Writes a row."""


class SearchStopped(RuntimeError):
    """Several trials in a row failed: the fault is not in the policies."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One policy and what became of it.

    Attributes:
        index: Position among the distinct policies that the problem was asked for, from 0;
            -1 for the dense network.
        policy: What was tried.
        measurement: What was measured, for a discarded trial estimated from the examples it saw
            (the metric ``examples`` says how many); None where the trial failed.
        status: ``ok``; ``discarded``, where it fell behind in a race (``automl.racing``), so that
            strategies may learn from it but never return it; or ``failed``.
        error: Why it failed, one line.
        seconds: How long pruning and scoring took; like ``time``, not part of equality.
        time: When it was done, UTC, in ISO 8601.
        cached: Whether it was answered without scoring; not part of equality.
    """

    index: int
    policy: Policy
    measurement: Measurement | None
    status: Status
    error: str | None
    seconds: float = field(compare=False)
    time: str = field(compare=False, default="")
    cached: bool = field(compare=False, default=False)

    @property
    def score(self) -> float:
        """The score, or its estimate; minus infinity where the trial failed."""
        return -math.inf if self.measurement is None else self.measurement.score


def best(trials: Sequence[Trial]) -> Trial:
    """The trial with the highest score, the earliest of equals; discarded ones do not count.

    Raises:
        SearchStopped: No trial succeeded.
    """
    succeeded = [trial for trial in trials if trial.status == "ok"]
    if not succeeded:
        reason = f": {trials[-1].error}" if trials else ""
        raise SearchStopped(f"no trial succeeded{reason}")
    return max(succeeded, key=lambda trial: trial.score)


def trial_row(trial: Trial) -> Row:
    """A trial as plain data, for journals and tables."""
    found = trial.measurement
    return {
        "index": trial.index,
        "status": trial.status,
        "score": None if found is None else found.score,
        "metrics": None if found is None else dict(found.metrics),
        "costs": None if found is None else dict(found.costs),
        "seconds": trial.seconds,
        "time": trial.time,
        "kept": [decision.kept for decision in trial.policy.decisions],
        "policy": trial.policy.key,
        "error": trial.error,
    }


def check_row(row: Row) -> Row:
    """A journal's row itself, where it is one that :func:`trial_row` makes.

    Raises:
        InputError: A field is missing, or of another type.
    """
    kinds = dict(_FIELDS)
    if row.get("status") in ("ok", "discarded"):
        kinds |= {"score": (int, float), "metrics": dict}
    for name, kind in kinds.items():
        if name not in row or not isinstance(row[name], kind):
            raise InputError(
                f"the journal's line with the key {row['key']:.80} is damaged ({name}); remove it "
                "to score its trial again"
            )
    return row


def trial_of(row: Row, index: int, policy: Policy, costs: Mapping[str, float]) -> Trial:
    """The trial that a journal's row is of.

    Args:
        row: From the journal.
        index: The trial's.
        policy: What the row is of.
        costs: Of the policy, by resource.
    """
    measurement = None
    if row["status"] in ("ok", "discarded"):
        measurement = Measurement(row["score"], row["metrics"], costs)
    rest = (row["status"], row["error"], row["seconds"], row["time"])
    return Trial(index, policy, measurement, *rest, cached=True)


class KnownRows:
    """What a journal answers.

    A policy may have several rows: those of races in which it fell behind, each against another
    bar, and one for which it was scored on everything, because somebody asked for that later.
    """

    def __init__(self, journal: TrialLog | None, max_failures: int) -> None:
        """Reads the journal; see ``_answering`` for what is left out.

        Raises:
            InputError: A row is damaged.
        """
        self._rows: dict[str, Row] = {}
        self._races: dict[tuple[str, str | None], Row] = {}
        for row in _answering(journal, max_failures):
            self.add(row)

    def add(self, row: Row) -> None:
        """Takes another row."""
        if row["status"] == "discarded":
            self._races[row["key"], row.get("bar")] = row
        else:
            self._rows[row["key"]] = row

    def get(self, key: str) -> Row | None:
        """The row of a trial that was scored on everything."""
        return self._rows.get(key)

    def race(self, key: str, bar: str | None) -> Row | None:
        """The row of a trial that may race.

        A race says nothing of one against another bar. Rows that name none, of journals that did
        not yet, answer all the same.

        Args:
            key: Of the trial.
            bar: Names what it would race against (``Leaders.bar_name``); None for nothing yet.
        """
        row = self._races.get((key, bar)) or self._races.get((key, None))
        return row or self._rows.get(key)


def _answering(journal: TrialLog | None, max_failures: int) -> list[Row]:
    """The rows that count.

    The failures that stopped an earlier run are left out: whoever resumes has mended their cause,
    and answered from the journal they would stop this run at the same place. In the journal they
    are the last rows of an attempt, unless other trials ran beside them; by index they are in a
    row anyway. The earlier run may have stopped at fewer than this one would, so that last rows
    count from the usual number.
    Failures that were not the policy's fault (no memory, a lost worker, a full disk) are left out
    too: scored again, the run comes to the result that it would have had without them. They count
    among those that stopped it.
    """
    rows = list(map(check_row, journal or ()))
    stopped: set[int] = set()
    for search in _searches(rows):
        for part in (search, *_attempts(search)):
            by_index = sorted(part, key=lambda row: int(row["index"]))
            last = list(takewhile(lambda row: row["status"] == "failed", reversed(part)))
            stopped |= {id(row) for row in _in_a_row(by_index, max_failures)}
            stopped |= {id(row) for row in last if len(last) >= min(max_failures, _USUAL)}
    return [row for row in rows if id(row) not in stopped and not _was_outside(row)]


def _attempts(search: Sequence[Row]) -> list[list[Row]]:
    """The rows of one search by the runs that wrote them: what is scored again begins the next."""
    found: list[list[Row]] = [[]]
    seen: set[int] = set()
    for row in search:
        if row["index"] in seen:
            found.append([])
            seen = set()
        found[-1].append(row)
        seen.add(row["index"])
    return found


def _searches(rows: Iterable[Row]) -> list[list[Row]]:
    """The rows of several searches apart, each in the order written.

    Every search counts its trials from 0: an index that comes again with another policy is the
    next search's.
    """
    found: list[list[Row]] = [[]]
    keys: dict[int, str] = {}
    for row in rows:
        if keys.get(row["index"], row["key"]) != row["key"]:
            found.append([])
            keys = {}
        found[-1].append(row)
        keys[row["index"]] = row["key"]
    return found


def _was_outside(row: Row) -> bool:
    """Whether a trial failed for what the machine lacked at the time."""
    return row["status"] == "failed" and bool(_OUTSIDE.search(row["error"] or ""))


def _in_a_row(rows: Sequence[Row], least: int) -> list[Row]:
    """Failures with at least ``least - 1`` others right before or after them."""
    found: list[Row] = []
    for failed, some in groupby(rows, key=lambda row: bool(row["status"] == "failed")):
        group = list(some)
        if failed and len(group) >= least:
            found += group
    return found
