"""What an engine costs a trial, and up to how many workers searches gain.

    python scripts/bench_engines.py --items 300                  # overhead, on a busy machine too
    python scripts/bench_engines.py --workers 1 2                # trials per second, on a quiet one
    python scripts/bench_engines.py --simulate --trial 2.0       # 1 to 1,024 workers

Overhead is told in CPU time, which other work on the machine does not change much: that of this
process and that of the worker, per item that computes nothing. Trials per second are wall time and
mean something only where every worker has a core of its own.

The simulation hands out trials in order to whichever worker is free, as engines do; the parent
needs its overhead for every trial, one after the other. A round ends with its last trial. NetAdapt
has as many trials a round as groups to prune, AMC one (``engine`` helps with its analysis alone).
"""

from __future__ import annotations

import argparse
import heapq
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np

from automl.engines import Engine, load
from automl.types import InputError

#: Workers that are simulated.
WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
#: Rounds that a simulated search has.
ROUNDS = 20


def nothing(data: Any, item: Any) -> float:
    """Computes nothing; the CPU seconds of its process so far."""
    return time.process_time()


def spin(data: Any, item: float) -> float:
    """Computes for ``item`` CPU seconds."""
    end = time.process_time() + item
    while time.process_time() < end:
        pass
    return item


def _load(name: str, workers: int) -> Engine:
    """The engine; Ray on a cluster of its own, on this machine."""
    own = {"address": "local"} if name == "ray" else {}
    return load(name, n=workers, **own)


def overhead(name: str, items: int) -> tuple[float, float]:
    """CPU seconds per item of this process and of the worker, once both are warm."""
    engine = _load(name, 1)
    try:
        handle = engine.put("shared")
        list(engine.submit(nothing, range(20), handle))
        before = time.process_time()
        ends = [done.value for done in engine.submit(nothing, range(items), handle)]
        parent = (time.process_time() - before) / items
    finally:
        engine.close()
    return parent, (max(ends) - min(ends)) / (items - 1)


def rate(name: str, workers: int, items: int, seconds: float) -> float:
    """Items per second of wall time; each computes for so many seconds."""
    engine = _load(name, workers)
    try:
        handle = engine.put("shared")
        list(engine.submit(spin, [0.0] * 4 * workers, handle))
        before = time.monotonic()
        list(engine.submit(spin, [seconds] * items, handle))
        return items / (time.monotonic() - before)
    finally:
        engine.close()


def simulate(times: Sequence[float], workers: int, overhead_s: float) -> float:
    """Seconds that one round takes.

    Args:
        times: Seconds of its trials, in the order in which they are handed out.
        workers: How many run at a time.
        overhead_s: Of the parent for every trial, before it can hand out the next.
    """
    free, parent, end = [0.0] * min(workers, len(times)), 0.0, 0.0
    for seconds in times:
        start = max(heapq.heappop(free), parent)
        parent = start + overhead_s
        heapq.heappush(free, parent + seconds)
        end = max(end, parent + seconds)
    return end


def speedups(a_round: int, trial_s: float, spread: float, overhead_s: float) -> list[float]:
    """How many times as fast as one worker a search is, for all of ``WORKERS``.

    Args:
        a_round: Trials of a round.
        trial_s: Median seconds of a trial.
        spread: Standard deviation of their logarithm.
        overhead_s: See :func:`simulate`.
    """
    rng = np.random.default_rng(0)
    rounds = [(trial_s * rng.lognormal(0, spread, a_round)).tolist() for _ in range(ROUNDS)]
    took = [sum(simulate(times, n, overhead_s) for times in rounds) for n in WORKERS]
    return [took[0] / seconds for seconds in took]


def simulation(trial_s: float, spread: float, overhead_s: float) -> str:
    """The speed-ups as a Markdown table."""
    searches = {
        "NetAdapt, 19 groups": 19,
        "NetAdapt, 27 groups": 27,
        "AMC, one episode a round": 1,
        "AMC, analysis of 27 groups x 8 levels": 216,
        "random, 1,000 trials": 1000,
    }
    lines = [f"| workers | {' | '.join(map(str, WORKERS))} |", "|---" * (len(WORKERS) + 1) + "|"]
    for name, a_round in searches.items():
        found = speedups(a_round, trial_s, spread, overhead_s)
        lines.append(f"| {name} | {' | '.join(f'{times:.3g}' for times in found)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints what was asked for; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", default="process", help="process (default) or ray")
    parser.add_argument("--items", type=int, default=300, help="for the overhead (default: 300)")
    parser.add_argument("--workers", type=int, nargs="+", help="measure trials per second of these")
    parser.add_argument("--simulate", action="store_true", help="print speed-ups to 1,024 workers")
    parser.add_argument("--trial", type=float, default=2.0, help="seconds of a trial (default: 2)")
    parser.add_argument("--spread", type=float, default=0.2, help="of its logarithm (default: 0.2)")
    asked = parser.parse_args(arguments)
    try:
        _measure(asked)
    except InputError as error:
        print(f"bench_engines: {error}", file=sys.stderr)
        return 2
    return 0


def _measure(asked: argparse.Namespace) -> None:
    if asked.items < 2:
        raise InputError(f"--items must be at least 2, got {asked.items}")
    parent, worker = overhead(asked.engine, asked.items)
    print(f"{asked.engine}: {1e3 * parent:.2f} ms of CPU a trial here, {1e3 * worker:.2f} ms there")
    if asked.workers:
        turn: Callable[[int], float] = lambda n: rate(asked.engine, n, 40 * n, 0.05)  # noqa: E731
        rates = {n: median(turn(n) for _ in range(3)) for n in asked.workers}
        first = rates[asked.workers[0]]
        for n, found in rates.items():
            print(f"{n} workers: {found:.1f} trials/s, {found / first:.2f} x")
    if asked.simulate:
        print(simulation(asked.trial, asked.spread, parent + worker))


if __name__ == "__main__":
    sys.exit(main())
