"""What engines have in common whose functions run in other processes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from automl.engines import Done, Function
from automl.engines.errors import cannot_send, lost, require_handle, require_open
from automl.engines.packing import Packed, pack
from automl.types import is_whole

Block = TypeVar("Block")


@dataclass(eq=False)
class Job:
    """One item on its way.

    Attributes:
        index: Its position among the items submitted.
        payload: The item, pickled.
        attempts: How often it was started.
        since: When it was started last, in seconds of the monotonic clock.
    """

    index: int
    payload: bytes
    attempts: int = 0
    since: float = 0.0


class Isolated(ABC, Generic[Block]):
    """Keeps shared data by handle, and makes jobs of items; ``Block`` is how data are kept."""

    isolated = True

    def __init__(self, timeout_s: float | None, retries: int, threads: int | None) -> None:
        """Checks and holds what all have.

        Args:
            timeout_s: Seconds after which an item's process is taken to hang; None: never.
            retries: How often an item is tried again whose process was lost.
            threads: CPU threads of each process; None: as many as torch has here.

        Raises:
            ValueError: An argument breaks its rule.
        """
        owner = type(self).__name__
        self._timeout_s = check_seconds(f"{owner}.timeout_s", timeout_s)
        self._retries = check_count(f"{owner}.retries", retries, 0) or 0
        self._threads = check_count(f"{owner}.threads", threads, 1)
        self._data: dict[Hashable, int] = {}
        self._blocks: dict[int, Block] = {}
        self._busy = self._closed = False

    def put(self, data: Hashable) -> int:
        """See ``Engine``."""
        require_open(self, self._closed)
        if data not in self._data:
            block = self._keep(pack(data, "what the trials share"))
            handle = self._data[data] = len(self._data)
            self._blocks[handle] = block
        return self._data[data]

    def submit(self, function: Function, items: Sequence[Any], handle: int) -> Iterator[Done]:
        """See ``Engine``."""
        require_open(self, self._closed)
        require_handle(self, handle, self._blocks)
        payload = pickled(function, "the function")
        jobs = deque(Job(i, pickled(item, f"item {i}")) for i, item in enumerate(items))
        return self._one_at_a_time(payload, jobs, handle)

    def _one_at_a_time(self, function: bytes, jobs: deque[Job], handle: int) -> Iterator[Done]:
        if self._busy:
            owner = type(self).__name__
            raise RuntimeError(f"{owner}.submit: another submission is still running")
        self._busy = True
        try:
            yield from self._run(function, jobs, handle)
        finally:
            self._busy = False

    def _lost(self, job: Job, waiting: deque[Job], reason: str) -> Done | None:
        """What becomes of a job whose process was lost: it waits again, or is given up."""
        if job.attempts > self._retries:
            return Done(job.index, None, lost(reason, job.attempts), attempts=job.attempts)
        waiting.appendleft(job)
        return None

    @abstractmethod
    def _keep(self, packed: Packed) -> Block:
        """Puts shared data where the processes find them."""

    @abstractmethod
    def _run(self, function: bytes, waiting: deque[Job], handle: int) -> Iterator[Done]:
        """One submission."""


def pickled(value: object, what: str) -> bytes:
    """A value as bytes; functions of ``__main__`` travel with it.

    Raises:
        InputError: It cannot be pickled.
    """
    import cloudpickle

    try:
        return bytes(cloudpickle.dumps(value))
    except Exception as error:  # pickling runs the objects' own code, which may raise anything
        raise cannot_send(what, error) from error


def check_count(name: str, value: int | None, least: int) -> int | None:
    """A whole number or None.

    Raises:
        ValueError: It is below ``least`` or no whole number.
    """
    if value is None:
        return None
    if is_whole(value, least):
        return int(value)
    raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}")


def check_seconds(name: str, value: float | None) -> float | None:
    """A positive number of seconds, or None.

    Raises:
        ValueError: It is none.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise ValueError(f"{name} must be null or > 0, got {value!r}")
    return float(value)
