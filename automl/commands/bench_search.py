"""``prunepilot bench-search``: where the time of a trial goes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from automl.commands.options import add_override_arguments

if TYPE_CHECKING:
    from automl.commands.build import Bench
    from automl.policy import Policy

SUMMARY = "measure where a trial's time goes, and how many trials a second there are"
EXAMPLE = "prunepilot bench-search model=resnet20 data=cifar10 budget.macs=0.5 --trials 6"

#: What layers run on, and what least squares is made of; everything else moves data about.
FORWARD = ("convolution", "addmm", "relu", "clamp_min", "batch_norm", "mean", "add", "softmax")
SOLVE = ("bmm", "::mm", "cholesky", "matmul")

Seconds = Mapping[str, float]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's options."""
    parser.add_argument("--trials", type=int, default=4, help="timed trials (default: 4)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    add_override_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Measures and prints."""
    import json

    from automl.commands.build import Bench
    from automl.commands.compose import compose
    from automl.commands.settings import seed_of, set_up_process
    from automl.types import InputError

    if args.trials < 1:
        raise InputError(f"--trials must be at least 1, got {args.trials}")
    config = compose(args.overrides)
    set_up_process(config)
    bench = Bench(config)
    policies = random_policies(bench, args.trials + 2, seed_of(config))
    first = sum(trial(bench, policies[0]).values())  # with what is done once for all
    rows = [trial(bench, policy) for policy in policies[1:-1]]
    found = summary(rows, first, shares(bench, policies[-1]))  # new to look-ups, too
    title = f"{bench.loaded.name}, {len(bench.scorer)} validation images"
    print(json.dumps(found, indent=2) if args.json else table(title, found))
    return 0


def random_policies(bench: Bench, count: int, seed: int) -> list[Policy]:
    """Random policies within the budget, with everything prepared that they have in common.

    Raises:
        InputError: The network is pruned inside its layers, or the budget is out of reach.
    """
    import numpy as np

    from automl.problem import Problem
    from automl.strategies.random import Random
    from automl.types import InputError

    if bench.plan is not bench.trace.plan:
        raise InputError("bench-search measures the steps of granularity=channel")
    budget = bench.config["budget"]
    costs = bench.costs_for(budget)
    problem = Problem(bench.plan, bench.pruner, bench.scorer, budget, costs)
    bench.scorer.prepare()
    rng, draw = np.random.default_rng(seed), Random().draw
    return [problem.policy(draw(problem, rng)) for _ in range(count)]


def trial(bench: Bench, policy: Policy) -> dict[str, float]:
    """CPU seconds of the steps of one trial, by their names."""
    pruner: Any = bench.pruner
    kept, units = policy.kept(bench.plan.targets), pruner.units_of(policy)
    slim, cut = timed(pruner.materialise.module_form, units)
    _, repair = timed(pruner.repair, slim, kept, units)
    network, finish = timed(pruner.materialise.finish, slim, kept)
    folded, fold = timed(pruner.for_inference, network)
    _, score = timed(bench.scorer, folded)
    return {"materialise": cut + finish, "repair": repair, "fold": fold, "score": score}


def timed(step: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """What a step returns, and the CPU seconds of this process that it took."""
    import time

    begin = time.process_time()
    result = step(*arguments)
    return result, time.process_time() - begin


def shares(bench: Bench, policy: Policy) -> dict[str, float]:
    """Shares of a trial's time in forward passes, in solves, and elsewhere; they sum to 1.

    Told apart by the names of torch's operators in a trial that is profiled; solves that go by the
    name of a layer's operator count as forward. What Python does between operators is not seen.
    """
    import os

    from torch.profiler import ProfilerActivity, profile

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its lines about starting mean nothing here
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


def summary(rows: Sequence[Seconds], first: float, parts: Seconds) -> dict[str, Any]:
    """Medians over trials.

    Args:
        rows: CPU seconds by step of each trial.
        first: CPU seconds of a first trial, which is none of them.
        parts: From :func:`shares`.

    Returns:
        ``first_s``, ``trial_s``, ``trials_per_second``, ``steps_s`` by step, and ``shares``.
    """
    from statistics import median

    whole = median(sum(row.values()) for row in rows)
    return {
        "first_s": first,
        "trial_s": whole,
        "trials_per_second": 1 / whole,
        "steps_s": {name: median(row[name] for row in rows) for name in rows[0]},
        "shares": dict(parts),
    }


def table(title: str, found: Mapping[str, Any]) -> str:
    """The summary as Markdown."""
    whole, parts = found["trial_s"], found["shares"]
    lines = [
        f"{title}, first trial {found['first_s']:.2f} s",
        "| step | CPU s | % |",
        "|---|---|---|",
    ]
    lines += [f"| {k} | {s:.4f} | {100 * s / whole:.1f} |" for k, s in found["steps_s"].items()]
    lines.append(f"| trial | {whole:.3f} | {found['trials_per_second']:.2f} trials/s |")
    outside = 100 * (1 - parts["forward"])
    told = ", ".join(f"{name} {100 * value:.1f} %" for name, value in parts.items())
    return "\n".join([*lines, f"{told}; outside of forward passes {outside:.1f} %"])
