"""Times operators one by one, as they run inside a network.

Operators are run round robin in the order of the network, each with tensors of its own, so that
they find data and code in the caches as they do behind the layers ahead. Where an operator that
nobody asked about belongs between two others, it runs too, untimed. What else a machine does can
only slow a run down: runs are spread over several passes, some time apart, and the faster half of
them counts. Wall time stands beside the thread's CPU time: where the two disagree, or the quartiles
lie too far apart, an operator is measured again.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch

from automl.cost.lut.entry import Entry
from automl.cost.lut.signature import Signature
from automl.executors.latency_replay import Replay, replay
from automl.executors.threads import torch_threads

#: Operators ahead in the network that run, untimed, before one that is timed.
_AHEAD = 2
#: Operators that take turns; oneDNN keeps about a thousand compiled kernels.
_TURN = 128
#: Bytes of tensors that take turns, at most.
_TURN_BYTES = 256 * 2**20
#: Turns between which passes go round.
_TURNS_A_CHUNK = 8
_PASSES = 6
_WARM_UP = 2

Step = tuple[Signature, bool]
Found = list[tuple[Signature, Entry]]


@dataclass(frozen=True, slots=True)
class Effort:
    """How hard to measure.

    Attributes:
        repeats: Runs of each operator.
        retries: Times an operator that is too noisy is measured again.
        spread: Interquartile range, as a share of the median, above which it is.
        waited: Share of wall time without the CPU above which it is.
    """

    repeats: int = 24
    retries: int = 1
    spread: float = 0.1
    waited: float = 0.1

    def __post_init__(self) -> None:
        """Checks the numbers.

        Raises:
            ValueError: One is out of range.
        """
        if self.repeats < 3:
            raise ValueError(f"Effort.repeats must be >= 3, got {self.repeats}")
        if self.retries < 0:
            raise ValueError(f"Effort.retries must be >= 0, got {self.retries}")

    def noisy(self, entry: Entry) -> bool:
        """Whether an operator should be measured again."""
        # Two microseconds are what the clock and the interpreter scatter by.
        wide = entry.iqr_us > max(self.spread * entry.median_us, 2.0)
        return wide or self.disagrees(entry)

    def disagrees(self, entry: Entry) -> bool:
        """Whether the thread waited for the CPU for longer than it should."""
        return entry.waited > self.waited and entry.median_us - entry.cpu_us > 2.0


class Meter(Protocol):
    """Times operators on one device."""

    def __call__(
        self, wanted: Iterable[Signature], network: Sequence[Signature]
    ) -> Iterator[Found]:
        """Times operators, yielding what is done some at a time.

        Args:
            wanted: Which, each once.
            network: The operators of a network in order, between which they belong.
        """


def laps(wanted: Iterable[Signature], network: Sequence[Signature]) -> Iterator[list[Step]]:
    """Rounds through a network in which wanted operators stand at their places.

    Args:
        wanted: What is to be timed, each once.
        network: The operators of a network in order.

    Yields:
        Operators of one round in order, and whether each is timed; the others are the network's
        own, those right ahead of a wanted one.
    """
    waiting: dict[tuple[Any, ...], deque[Signature]] = {}
    for signature in wanted:
        waiting.setdefault(_place(signature), deque()).append(signature)
    places = [_place(signature) for signature in network]
    strangers = deque(s for place, some in waiting.items() if place not in places for s in some)
    while any(waiting.get(place) for place in places) or strangers:
        lap: list[Step] = []
        last = -1
        for index, place in enumerate(places):
            if waiting.get(place):
                lap += [(network[i], False) for i in range(max(last + 1, index - _AHEAD), index)]
                lap.append((waiting[place].popleft(), True))
                last = index
        if strangers:
            lap.append((strangers.popleft(), True))
        yield lap


def _place(signature: Signature) -> tuple[Any, ...]:
    """What stays when an operator is pruned, roughly."""
    s = signature
    return (s.kind, s.kernel, s.stride, s.groups > 1, s.height, s.width, s.fused, s.layout)


@dataclass(frozen=True)
class CpuMeter:
    """Times operators on the CPU.

    Attributes:
        threads: CPU threads.
        effort: How hard to measure.
    """

    threads: int = 1
    effort: Effort = field(default_factory=Effort)

    def __call__(
        self, wanted: Iterable[Signature], network: Sequence[Signature]
    ) -> Iterator[Found]:
        """Times operators, yielding what is done some at a time; see :class:`Meter`."""
        with _prepared(self.threads):
            turns = _turns(laps(wanted, network), torch.device("cpu"))
            while chunk := list(islice(turns, _TURNS_A_CHUNK)):
                yield self._measure(chunk)

    def _measure(self, chunk: Sequence[list[tuple[Replay, bool]]]) -> Found:
        found = self._passes(chunk)
        for _ in range(self.effort.retries):
            again = {sig for sig, entry in found.items() if self.effort.noisy(entry)}
            worth = [turn for turn in chunk if any(one.signature in again for one, _ in turn)]
            if not worth:
                break
            # All take part again: alone, an operator would find its weights in the caches.
            for signature, entry in self._passes(worth).items():
                if signature in again and entry.spread < found[signature].spread:
                    found[signature] = entry
        return list(found.items())

    def _passes(self, chunk: Sequence[list[tuple[Replay, bool]]]) -> dict[Signature, Entry]:
        wall: dict[Signature, list[int]] = {}
        cpu: dict[Signature, list[int]] = {}
        for runs in _shares(self.effort.repeats, _PASSES):
            for turn in chunk:
                for one, _ in turn:
                    for _ in range(_WARM_UP):
                        one.call()
                for _ in range(runs):
                    _run(turn, wall, cpu)
        single = self.threads == 1
        return {
            signature: Entry.of(
                np.array(times) / 1e3, np.array(cpu[signature]) / 1e3 if single else None
            )
            for signature, times in wall.items()
        }


def _shares(total: int, parts: int) -> list[int]:
    """``total`` runs in about equal parts."""
    return [total * (i + 1) // parts - total * i // parts for i in range(parts)]


def _run(
    turn: Sequence[tuple[Replay, bool]],
    wall: dict[Signature, list[int]],
    cpu: dict[Signature, list[int]],
) -> None:
    for one, is_timed in turn:
        if not is_timed:
            one.call()
            continue
        wall_ns, cpu_ns = _timed(one.call)
        wall.setdefault(one.signature, []).append(wall_ns)
        cpu.setdefault(one.signature, []).append(cpu_ns)


def _timed(call: Callable[[], object]) -> tuple[int, int]:
    """Wall and CPU nanoseconds of one call."""
    cpu = time.thread_time_ns()
    wall = time.perf_counter_ns()
    call()
    return time.perf_counter_ns() - wall, time.thread_time_ns() - cpu


def _turns(
    rounds: Iterable[list[Step]], device: torch.device
) -> Iterator[list[tuple[Replay, bool]]]:
    """Operators that take turns, made just before they do."""
    turn: list[tuple[Replay, bool]] = []
    size = 0
    for step in (step for lap in rounds for step in lap):
        one = replay(step[0], device)
        if turn and (len(turn) >= _TURN or size + one.size_bytes > _TURN_BYTES):
            yield turn
            turn, size = [], 0
        turn.append((one, step[1]))
        size += one.size_bytes
    if turn:
        yield turn


@contextmanager
def _prepared(threads: int) -> Iterator[None]:
    """Threads set, no gradients, no garbage collector."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        with torch.inference_mode(), torch_threads(threads):
            yield
    finally:
        if collecting:
            gc.enable()
