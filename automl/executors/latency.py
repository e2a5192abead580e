"""Latency of several networks side by side, so that what disturbs one disturbs all."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from automl.executors.threads import torch_threads

_WARM_UP = 5
_MIN_ROUNDS = 15
_MAX_ROUNDS = 300


@dataclass(frozen=True, slots=True)
class Latency:
    """Time of one forward pass.

    Attributes:
        median_ms: Median wall time.
        undisturbed_ms: The tenth percentile of wall times: what it takes where nothing else that
            the machine does slows it down.
        ratio: Median over rounds of this network's time to the first network's in the same
            round: below 1 is faster than the first.
        rounds: How many passes the medians stand on.
        iqr_ms: Distance between the quartiles of the wall times.
        ratio_iqr: Distance between the quartiles of the rounds' ratios.
    """

    median_ms: float
    undisturbed_ms: float
    ratio: float
    rounds: int
    iqr_ms: float = 0.0
    ratio_iqr: float = 0.0


def measure_latency(
    networks: Mapping[str, nn.Module],
    example: Tensor | Sequence[Any],
    *,
    budget_s: float = 3.0,
    threads: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Latency]:
    """Times networks round robin: every round runs each of them twice and times the second pass.

    The first pass brings the network's own weights back into the caches, from which the others
    have driven them: a deployed network runs alone.

    Args:
        networks: Name -> network in eval mode on the device of ``example``; ratios refer to
            the first.
        example: One input, shape (batch, ...), or the arguments of ``forward``.
        budget_s: Stop after about this time (at least 15 rounds, at most 300 are run).
        threads: CPU threads while measuring.
        clock: Counts seconds; ``time.thread_time`` leaves out what other processes take of a busy
            processor, where everything runs on one thread.

    Returns:
        Name -> its latency.

    Raises:
        ValueError: There is no network.
    """
    if not networks:
        raise ValueError("measure_latency.networks must hold a network, got none")
    inputs = (example,) if isinstance(example, Tensor) else tuple(example)
    with torch.inference_mode(), torch_threads(threads), _no_garbage_collector():
        calls = {name: _call(network, inputs, clock) for name, network in networks.items()}
        for call in calls.values():
            for _ in range(_WARM_UP):
                call()
        times = _rounds(calls, budget_s)
    first = next(iter(times.values()))
    return {name: _summary(own, first) for name, own in times.items()}


def described(device: str, examples: int = 1, threads: int = 1) -> str:
    """What was timed, in words."""
    size = "one example" if examples == 1 else f"{examples} examples at once"
    return f"{size} on {device}, {'one thread' if threads == 1 else f'{threads} threads'}"


def _summary(own: Sequence[float], first: Sequence[float]) -> Latency:
    ratios = [t / base for t, base in zip(own, first, strict=True)]
    low, _, high = statistics.quantiles(own, n=4)
    ratio_low, ratio, ratio_high = statistics.quantiles(ratios, n=4)
    return Latency(
        median_ms=1e3 * statistics.median(own),
        undisturbed_ms=1e3 * statistics.quantiles(own, n=10)[0],
        ratio=ratio,
        rounds=len(own),
        iqr_ms=1e3 * (high - low),
        ratio_iqr=ratio_high - ratio_low,
    )


def _rounds(calls: Mapping[str, Callable[[], float]], budget_s: float) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + budget_s
    for index in range(_MAX_ROUNDS):
        if index >= _MIN_ROUNDS and time.perf_counter() > end:
            break
        for name, call in calls.items():
            call()
            times[name].append(call())
    return times


def _call(
    network: nn.Module, inputs: Sequence[Any], clock: Callable[[], float]
) -> Callable[[], float]:
    """A function that runs the network once and returns the seconds it took."""
    device = next((v.device for v in inputs if isinstance(v, Tensor) and v.is_cuda), None)

    def timed() -> float:
        start = clock()
        network(*inputs)
        if device is not None:
            torch.cuda.synchronize(device)
        return clock() - start

    return timed


@contextmanager
def _no_garbage_collector() -> Iterator[None]:
    """Keeps the collector from running inside what is timed."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
