"""How many threads torch's own operators take, for a while."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Sets torch's threads to ``count``, and back afterwards; nothing where it is that already."""
    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


#: Seconds: coarser clocks cannot time a layer.
_FINE = 1e-6


def clock(threads: int) -> Callable[[], float]:
    """What to time work of so many threads by, in seconds.

    One thread is timed by its own processor time, which does not count what other processes take
    of the core in turn; several by the clock on the wall, as they wait for each other. So is one
    where the system counts processor time coarsely.
    """
    fine = time.get_clock_info("thread_time").resolution <= _FINE
    return time.thread_time if threads == 1 and fine else time.perf_counter


def available() -> int:
    """Processors that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # Not Linux.
        return os.cpu_count() or 1
