"""Where the time of a trial goes, in CPU seconds of one thread.

    python scripts/bench_search.py model=mobilenet_v1_32 repair.calibration_images=3000
    python scripts/bench_search.py --trials 6 model=resnet56 budget.macs=0.5 scoring.images=500

Random policies within the budget, each made, repaired, folded and scored as in a search. The last
line tells forward passes and solves apart by the names of torch's operators, profiled on a trial of
its own; sums of the solves that go by the name of a layer's operator count as forward.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from automl.commands.build import Bench
from automl.commands.compose import compose
from automl.policy import Policy
from automl.problem import Problem
from automl.strategies.random import Random
from automl.types import InputError

#: What layers run on, and what least squares is made of; everything else is moving data about.
FORWARD = ("convolution", "addmm", "relu", "clamp_min", "batch_norm", "mean", "add", "softmax")
SOLVE = ("bmm", "::mm", "cholesky", "matmul")


def timed(step: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """What a step returns, and the CPU seconds of this process that it took."""
    begin = time.process_time()
    result = step(*arguments)
    return result, time.process_time() - begin


def trial(bench: Bench, policy: Policy) -> dict[str, float]:
    """CPU seconds of the steps of one trial."""
    pruner, kept = bench.pruner, policy.kept(bench.plan.targets)
    units = pruner.units_of(policy)
    slim, cut = timed(pruner.materialise.module_form, units)
    _, repair = timed(pruner.repair, slim, kept, units)
    network, finish = timed(pruner.materialise.finish, slim, kept)
    folded, fold = timed(pruner.for_inference, network)
    _, score = timed(bench.scorer, folded)
    return {"materialise": cut + finish, "repair": repair, "fold": fold, "score": score}


def shares(bench: Bench, policy: Policy) -> dict[str, float]:
    """Shares of a trial's time in the forward passes, in solves, and elsewhere."""
    with profile(activities=[ProfilerActivity.CPU]) as record:
        trial(bench, policy)
    found = {"forward": 0.0, "solve": 0.0, "rest": 0.0}
    for event in record.key_averages():
        kind = "rest"
        if any(name in event.key for name in SOLVE):
            kind = "solve"
        elif any(name in event.key for name in FORWARD):
            kind = "forward"
        found[kind] += event.self_cpu_time_total
    total = sum(found.values())
    return {name: value / total for name, value in found.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=4, help="timed trials (default 4)")
    parser.add_argument("--seed", type=int, default=0, help="of the policies (default 0)")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="as for prunepilot search"
    )
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        if args.trials < 1:
            raise InputError(f"--trials must be at least 1, got {args.trials}")
        report(compose(args.overrides), args.trials, args.seed)
    except InputError as error:
        print(f"bench_search: {error}", file=sys.stderr)
        return 2
    return 0


def report(config: Any, trials: int, seed: int) -> None:
    """Prints the table."""
    bench = Bench(config)
    if bench.plan is not bench.trace.plan:
        raise InputError("the steps are those of granularity=channel")
    costs = bench.costs_for(config["budget"])
    problem = Problem(bench.plan, bench.pruner, bench.scorer, config["budget"], costs)
    bench.scorer.prepare()
    rng, draw = np.random.default_rng(seed), Random().draw
    policies = [problem.policy(draw(problem, rng)) for _ in range(trials + 1)]
    first = sum(trial(bench, policies[0]).values())  # with what is done once for all
    rows = [trial(bench, policy) for policy in policies[1:]]
    whole = median(sum(row.values()) for row in rows)
    print(f"{bench.loaded.name}, {len(bench.scorer)} validation images, first trial {first:.2f} s")
    print("| step | CPU s | % |\n|---|---|---|")
    for name in rows[0]:
        seconds = median(row[name] for row in rows)
        print(f"| {name} | {seconds:.4f} | {100 * seconds / whole:.1f} |")
    print(f"| trial | {whole:.3f} | {1 / whole:.2f} trials/s |")
    parts = shares(bench, policies[1])
    print(", ".join(f"{name} {100 * value:.1f} %" for name, value in parts.items()))


if __name__ == "__main__":
    sys.exit(main())
