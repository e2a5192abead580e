"""What the benchmarks of executors share: clocks, calls that take turns, errors."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from automl.environment import cpu_name

Array = NDArray[np.float32]
Calls = Sequence[Callable[[], object]]
Clock = Callable[[], float]

CLOCKS: dict[str, Clock] = {"processor": time.thread_time, "wall": time.perf_counter}


def about() -> str:
    """Processor, torch and date."""
    return f"{cpu_name()}, torch {torch.__version__}, one thread; {time.strftime('%Y-%m-%d')}"


def error(y: NDArray[Any], exact: NDArray[np.float64]) -> float:
    """Largest error to the largest output."""
    return float(np.abs(y - exact).max() / np.abs(exact).max())


def interleaved(
    calls: Mapping[str, Calls],
    seconds: float,
    clock: Clock,
    least: int = 15,
    *,
    before: Callable[[str], object] | None = None,
) -> dict[str, list[float]]:
    """Seconds of each call, in rounds that run each once; two rounds to warm up.

    ``before`` is called, untimed, with the name of each call right before it is timed.
    """
    times: dict[str, list[float]] = {}
    with torch.inference_mode():
        end, index = 0.0, -2
        while index < least or time.perf_counter() < end:
            if index <= 0:
                times = {name: [] for name in calls}
                end = time.perf_counter() + seconds
            for name, copies in calls.items():
                call = copies[index % len(copies)]
                if before is not None:
                    before(name)
                start = clock()
                call()
                times[name].append(clock() - start)
            index += 1
    return times
