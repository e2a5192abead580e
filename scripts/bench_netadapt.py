"""Where a NetAdapt search spends its time: scoring, pruning with repair, and the rest.

    python scripts/bench_netadapt.py model=resnet20 data=cifar10 data.root=... trials=60

Takes the overrides of ``prunepilot search``, searches without a run folder but with a journal, and
prints a Markdown table of CPU time, which other processes disturb least: what candidates cost to
score, to prune and to repair, and all that is left (choosing keep counts, hashes, journal).

The dense network, which is scored first, also pays for the outputs that divergences refer to; it is
shown by itself. What the repair computes once is part of the repair.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from automl.commands.build import Bench
from automl.commands.compose import compose
from automl.commands.settings import set_up_process
from automl.journal import Journal
from automl.problem import Problem
from automl.strategies.netadapt import NetAdapt


@dataclass
class Clock:
    """CPU seconds of one function, the first call by itself."""

    first: float = 0.0
    later: float = 0.0
    calls: int = 0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, which adds its time to this clock."""

        def call(*args: Any) -> Any:
            started = time.process_time()
            try:
                return function(*args)
            finally:
                spent = time.process_time() - started
                self.calls += 1
                self.first, self.later = (
                    (spent, self.later) if self.calls == 1 else (self.first, self.later + spent)
                )

        return call


@dataclass
class Timed:
    """A pruner whose pruning is timed, or a scorer whose calls are."""

    inner: Any
    clock: Clock

    def __getattr__(self, name: str) -> Any:
        """The inner attribute."""
        found = getattr(self.inner, name)
        return self.clock.timed(found) if name == "prune" else found

    def __call__(self, *args: Any) -> Any:
        """The inner call, timed."""
        return self.clock.timed(self.inner)(*args)


def main(overrides: Sequence[str]) -> None:
    """Searches and prints the table."""
    config = compose(["strategy=netadapt", *overrides])
    set_up_process(config)
    bench = Bench(config)
    strategy = bench.strategy()
    if not isinstance(strategy, NetAdapt):
        sys.exit("bench_netadapt: strategy must be netadapt or netadapt_paper")
    prune, fold, score = Clock(), Clock(), Clock()
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "trials.jsonl") as journal:
        problem = Problem(
            bench.plan,
            Timed(bench.trial_pruner, prune),
            Timed(bench.scorer, score),
            config["budget"],
            bench.costs_for(config["budget"]),
            rounding=bench.rounding,
            min_keep=config["granularity"]["min_keep"],
            journal=journal,
            prepare=fold.timed(bench.pruner.for_inference),
        )
        started, wall = time.process_time(), time.perf_counter()
        result = strategy.search(problem, config["trials"], config["seed"])
        total, wall = time.process_time() - started, time.perf_counter() - wall
    once = score.first + prune.first
    rest = total - once - score.later - prune.later - fold.first - fold.later
    iterations = len(strategy.family) - 1
    print(f"{bench.loaded.name}, {problem.budget}: {len(result.trials)} trials, ", end="")
    print(f"{iterations} iterations, {total:.1f} s of CPU time in {wall:.1f} s\n")
    print("| what | s | share % | s per iteration |")
    print("|---|---|---|---|")
    for name, seconds in (
        ("the dense network, its outputs", once),
        ("scoring", score.later),
        ("pruning and repair", prune.later),
        ("folding batch norms", fold.first + fold.later),
        ("all else: keep counts, hashes, journal", rest),
    ):
        share = 100 * seconds / total
        print(f"| {name} | {seconds:.2f} | {share:.1f} | {seconds / max(iterations, 1):.3f} |")


if __name__ == "__main__":
    main(sys.argv[1:])
