"""Trials that start from what a network like theirs has computed, against trials from the start.

    python scripts/bench_reuse.py
    python scripts/bench_reuse.py --near 0.7 model=resnet20 repair=lookup

Candidates each have one target pruned by half beside a network that keeps a fraction ``--near`` of
every target: the dense network (1.0), as in a sensitivity analysis, or a pruned one, as in
NetAdapt. The same candidates are evaluated both ways, in turns of as many as an iteration has, in
CPU seconds of one thread; what a turn computes for all of them is part of its time. Scores have to
be the same to the bit.
"""

from __future__ import annotations

import argparse
import sys
import time
from statistics import median

import numpy as np
from bench_timing import about

from automl.commands.build import Bench
from automl.commands.compose import compose
from automl.commands.settings import set_up_process
from automl.policy import Policy
from automl.problem import Problem
from automl.types import InputError

JOB = ("model=resnet56", "data=cifar10", "budget.macs=0.5", "scoring.images=500")


def problem(bench: Bench, reuse: bool) -> Problem:
    """A problem that has scored nothing."""
    budget = bench.config["budget"]
    return Problem(
        bench.plan,
        bench.trial_pruner,
        bench.scorer,
        budget,
        bench.costs_for(budget),
        prepare=bench.pruner.for_inference,
        reuse=reuse,
    )


def turns(bench: Bench, share: float, every: int) -> tuple[Policy, list[Policy]]:
    """A network and candidates beside it: of every so many targets, one that is smaller."""
    made = problem(bench, False)
    kept = np.maximum((made.space.units * share).astype(int), 1)
    candidates = []
    for target in range(0, len(kept), every):
        smaller = kept.copy()
        smaller[target] = max(1, smaller[target] // 2)
        candidates.append(made.policy(smaller))
    return made.policy(kept), candidates


def timed(bench: Bench, reuse: bool, near: Policy, policies: list[Policy]) -> tuple[float, list]:
    """CPU seconds a trial, and the scores."""
    made = problem(bench, reuse)
    start = time.process_time()
    trials = made.evaluate_many(policies, allow_over_budget=True, near=near)
    seconds = (time.process_time() - start) / len(policies)
    return seconds, [(trial.score, trial.error) for trial in trials]


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--near", type=float, nargs="+", default=[1.0, 0.7])
    parser.add_argument("--every", type=int, default=1, help="one target of so many")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    args = parser.parse_args()
    try:
        config = compose([*JOB, *args.overrides])
        set_up_process(config)
        bench = Bench(config)
        bench.scorer.prepare()
        print(about(), end="\n\n")
        print(
            "| beside a network of | candidates | from the start, s | reused, s | times as fast |"
        )
        print("|---|---|---|---|---|")
        same = True
        for share in args.near:
            near, policies = turns(bench, share, args.every)
            timed(bench, False, near, policies[:1])  # what is done once for all
            rows = []
            for _ in range(args.rounds):
                apart, expected = timed(bench, False, near, policies)
                reused, found = timed(bench, True, near, policies)
                same &= found == expected
                rows.append((apart, reused))
            apart, reused = (median(row[i] for row in rows) for i in range(2))
            print(
                f"| {share:g} | {len(policies)} | {apart:.3f} | {reused:.3f} "
                f"| {apart / reused:.2f} |",
                flush=True,
            )
        print(f"\nscores {'are the same to the bit' if same else 'DIFFER'}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
