"""What AMC's environment and agent cost beside their trials, and how that grows with depth.

    python scripts/bench_amc.py --networks resnet20 resnet56 resnet110 --validation-size 5000

Runs real episodes (prune, repair, score) on CIFAR-10 and divides the CPU time of the process: in
trials, and in everything else (wall, features, candidates, credit model, actor and critic updates).
Only episodes after the warm-up count, in which the agent thinks and learns. One thread.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from statistics import median

import torch

from automl.commands.build import Bench
from automl.commands.compose import compose
from automl.cost import standard_costs
from automl.policy import Policy
from automl.problem import Problem, Trial
from automl.strategies import load
from automl.types import InputError

HEADER = ("network", "targets", "episode s", "agent s", "share %", "agent ms/target")


class Clocked(Problem):
    """A problem that notes when its trials begin and end, in CPU seconds."""

    def evaluate(self, policy: Policy, *, allow_over_budget: bool = False) -> Trial:
        """As ``Problem``."""
        begin = time.process_time()
        trial = super().evaluate(policy, allow_over_budget=allow_over_budget)
        self.spans.append((begin, time.process_time()))
        return trial

    @property
    def spans(self) -> list[tuple[float, float]]:
        """Begin and end of every trial."""
        return self.__dict__.setdefault("_spans", [])


def measure(network: str, args: argparse.Namespace) -> tuple[int, float, float]:
    """Targets, CPU seconds of a whole episode, and of it those outside of the trial; medians."""
    settings = [f"model={network}", *args.set]
    if args.validation_size:
        settings.append(f"data.validation_size={args.validation_size}")
    config = compose([*settings, "budget.macs=0.5"])
    bench = Bench(config)
    problem = Clocked(
        bench.trace.plan,
        bench.pruner,
        bench.scorer,
        config["budget"],
        standard_costs(bench.trace.plan),
        prepare=bench.pruner.for_inference,
    )
    _ = problem.dense
    warmup = 4
    count = warmup + args.episodes
    load(args.strategy, warmup=warmup / count).search(problem, count, 0)
    spans = problem.spans[warmup - 1 :]
    outside = [begin - end for (_, end), (begin, _) in pairwise(spans)]
    inside = [end - begin for begin, end in spans[1:]]
    return len(problem.targets), median(inside) + median(outside), median(outside)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=["resnet20", "resnet56", "resnet110"])
    parser.add_argument("--strategy", default="amc")
    parser.add_argument("--validation-size", type=int, default=None)
    parser.add_argument("--episodes", type=int, default=8)
    parser.add_argument("--set", nargs="*", default=[], help="more settings, as in prunepilot")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print("| " + " | ".join(HEADER) + " |\n" + "|---" * len(HEADER) + "|")
    for network in args.networks:
        try:
            targets, episode, agent = measure(network, args)
        except InputError as error:
            print(f"bench_amc: {error}", file=sys.stderr)
            return 2
        figures = f"{episode:.2f} | {agent:.3f} | {100 * agent / episode:.1f}"
        print(f"| {network} | {targets} | {figures} | {1e3 * agent / targets:.1f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
