"""Strategies side by side at equal trials: best score against trials, and what it is worth.

    python scripts/compare_search.py --network digits --budgets 0.3 0.5 --seeds 5 --out runs/compare

Composes runs of ``automl``: every strategy gets the same problem, budget and number of trials. All
trials of a network and a score go to one journal below ``--out``, so that a comparison that was cut
goes on where it stood, and strategies that ask for the same policy share its trial. Writes, for
every network, ``NAME.csv`` (a row per strategy, budget and seed), ``NAME-curves.csv`` and
``NAME.png``, and prints a Markdown table: the best validation score after so many trials, mean and
standard error over seeds; the test top-1 of the final policy, before fine-tuning.

A strategy may be named with settings (``amc:acting=0,credit=false``). With ``--finalists``, the
best trials of every search are scored again under the settings after ``--final`` (all validation
images, more images for the repair) before one is chosen, and tested as these settings make it.

Test images are looked at once per final policy, by no strategy. For CIFAR checkpoints, which have
seen all training images, validation is half of the test images and test is the other half.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml

from automl.commands.build import Bench
from automl.commands.compose import compose
from automl.cost import standard_costs
from automl.finalists import choose, finalists
from automl.journal import Journal
from automl.problem import Problem, Trial
from automl.strategies import load
from automl.types import InputError, Strategy

#: Strategies that find the same policy whatever the seed.
FIXED = ("uniform", "deep", "shallow")
MARKS = (25, 50, 100, 200)


@dataclass(frozen=True, eq=False)
class Contest:
    """One network under one score."""

    args: argparse.Namespace

    @cached_property
    def overrides(self) -> list[str]:
        """The configuration, less the budget."""
        args = self.args
        chosen = [f"model={args.network}", f"scoring.score={args.score}", *args.set]
        if args.validation_size:
            chosen.append(f"data.validation_size={args.validation_size}")
        return chosen

    @cached_property
    def bench(self) -> Bench:
        """Network, data, pruner and scorers of the search."""
        return Bench(compose(self.overrides))

    @cached_property
    def final_bench(self) -> Bench:
        """The same for the last round."""
        final = self.args.final
        return Bench(compose([*self.overrides, *final])) if final else self.bench

    @property
    def name(self) -> str:
        """What files are called."""
        return f"{self.args.network}-{self.args.score}"

    def problem(self, budget: float, journal: Journal, bench: Bench) -> Problem:
        """The problem that all strategies get, or that of the last round."""
        config = compose([*self.overrides, f"budget.{self.args.resource}={budget}"])
        return Problem(
            bench.trace.plan,
            bench.pruner,
            bench.scorer,
            config["budget"],
            standard_costs(bench.trace.plan),
            rounding=config["granularity"]["rounding"],
            min_keep=config["granularity"]["min_keep"],
            journal=journal,
            prepare=bench.pruner.for_inference,
        )

    def runs(self, journal: Journal) -> Iterator[dict[str, Any]]:
        """One row per budget, seed and strategy."""
        tested: dict[str, float] = {}
        for budget in self.args.budgets:
            for seed in range(self.args.seeds):
                for name in self.args.strategies:
                    if seed == 0 or name not in FIXED:
                        yield self._run(journal, budget, seed, name, tested)

    def _run(
        self, journal: Journal, budget: float, seed: int, name: str, tested: dict[str, float]
    ) -> dict[str, Any]:
        problem = self.problem(budget, journal, self.bench)
        result = parse_strategy(name).search(problem, self.args.trials, seed)
        careful = self.problem(budget, journal, self.final_bench)
        found = choose(finalists(result, problem, self.args.finalists), careful)
        key = found.policy.key
        if key not in tested:
            tested[key] = self.test_top1(found.policy)
        assert found.measurement is not None  # a result was scored
        print(
            f"{self.name} {self.args.resource} {budget} seed {seed} {name}: score "
            f"{found.score:.4f}, test top-1 {100 * tested[key]:.2f} %",
            file=sys.stderr,
            flush=True,
        )
        return {
            "strategy": name,
            "budget": budget,
            "seed": seed,
            "score": found.score,
            "validation_top1": found.measurement.metrics.get("top1"),
            "test_top1": tested[key],
            "kept": found.policy.kept(careful.targets).tolist(),
            "curve": best_so_far(problem, result.trials, self.args.trials),
        }

    def test_top1(self, policy: Any) -> float:
        """Top-1 on the test images, once per policy."""
        bench = self.final_bench
        network = bench.pruner.for_inference(bench.pruner.prune(policy))
        return float(bench.test_scorer(network)[0])

    def dense_test_top1(self) -> float:
        """Top-1 of the dense network on the test images."""
        return float(self.bench.test_scorer(self.bench.loaded.model)[0])


def parse_strategy(text: str) -> Strategy:
    """A strategy from ``name`` or ``name:key=value,key=value``."""
    name, _, settings = text.partition(":")
    pairs = [pair.partition("=") for pair in settings.split(",") if pair]
    return load(name, **{key: yaml.safe_load(value) for key, _, value in pairs})


def best_so_far(problem: Problem, trials: Sequence[Trial], count: int) -> list[float]:
    """The best score within the budget after every trial.

    A strategy that ended early stays where it was; trials that only learn cost, and score nothing.
    """
    within = problem.within(np.array([trial.policy.kept(problem.targets) for trial in trials]))
    scores = np.where(within, [trial.score for trial in trials], -np.inf)
    curve = np.maximum.accumulate(scores)
    return [float(score) for score in np.concatenate([curve, [curve[-1]] * (count - len(curve))])]


def summary(rows: pd.DataFrame, trials: int) -> pd.DataFrame:
    """A row per budget and strategy: scores at the marks and test top-1, as mean +- error."""
    marks = [mark for mark in (*MARKS, trials) if mark <= trials]
    lines = []
    for (budget, strategy), group in rows.groupby(["budget", "strategy"], sort=False):
        curves = np.stack(group["curve"].to_list())
        line: dict[str, Any] = {"budget": budget, "strategy": strategy, "seeds": len(group)}
        line |= {f"{mark} trials": spread(curves[:, mark - 1], 4) for mark in dict.fromkeys(marks)}
        line["test top-1 %"] = spread(100 * group["test_top1"].to_numpy(), 2)
        lines.append(line)
    return pd.DataFrame(lines)


def spread(values: np.ndarray[Any, Any], digits: int) -> str:
    """Mean and standard error."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    error = values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():.{digits}f} ± {error:.{digits}f}"


def markdown(table: pd.DataFrame) -> str:
    """A Markdown table."""
    rows = [list(table.columns), ["---"] * len(table.columns), *table.astype(str).to_numpy()]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def plot(rows: pd.DataFrame, path: Path, title: str) -> None:
    """Best validation score against number of trials, a panel per budget."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    budgets = list(dict.fromkeys(rows["budget"]))
    figure, axes = pyplot.subplots(1, len(budgets), figsize=(6 * len(budgets), 4), squeeze=False)
    for axis, budget in zip(axes[0], budgets, strict=True):
        for strategy, group in rows[rows["budget"] == budget].groupby("strategy", sort=False):
            curves = np.stack(group["curve"].to_list())
            at, mean = np.arange(1, curves.shape[1] + 1), curves.mean(axis=0)
            error = curves.std(axis=0, ddof=min(1, len(curves) - 1)) / np.sqrt(len(curves))
            style = "--" if strategy in FIXED else "-"
            (line,) = axis.plot(at, mean, style, label=strategy)
            axis.fill_between(at, mean - error, mean + error, color=line.get_color(), alpha=0.2)
        axis.set(title=f"{title}, budget {budget:g}", xlabel="trials", ylabel="best score")
        low = rows[(rows["budget"] == budget)]["curve"].map(lambda curve: curve[-1]).min()
        high = rows[(rows["budget"] == budget)]["curve"].map(max).max()
        axis.set_ylim(low - 0.3 * (high - low) - 1e-9, high + 0.05 * (high - low) + 1e-9)
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="digits", help="an option of conf/model")
    parser.add_argument("--resource", default="macs", help="what the budget limits")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.3, 0.5])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=200)
    everything = ["uniform", "deep", "shallow", "random", "amc", "amc_paper", "cmaes", "tpe"]
    parser.add_argument("--strategies", nargs="+", default=everything)
    parser.add_argument("--score", default="kl", choices=["top1", "loss", "kl"])
    parser.add_argument("--validation-size", type=int, default=None)
    parser.add_argument("--set", nargs="*", default=[], help="more settings, as in prunepilot")
    parser.add_argument("--finalists", type=int, default=1, help="trials to score once more")
    parser.add_argument("--final", nargs="*", default=[], help="settings of the last round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/compare"))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs, prints and writes; returns the exit code."""
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    try:
        contest = Contest(args)
        with Journal(args.out / f"{contest.name}.jsonl") as journal:
            rows = pd.DataFrame(list(contest.runs(journal)))
        dense = contest.dense_test_top1()
    except InputError as error:
        print(f"compare_search: {error}", file=sys.stderr)
        return 2
    table = summary(rows, args.trials)
    print(f"dense test top-1 {100 * dense:.2f} %; score = {args.score}, best so far\n")
    print(markdown(table))
    rows.drop(columns="curve").to_csv(args.out / f"{contest.name}.csv", index=False)
    curves = rows[["strategy", "budget", "seed", "curve"]].explode("curve")
    curves["trial"] = curves.groupby(["strategy", "budget", "seed"]).cumcount() + 1
    curves.to_csv(args.out / f"{contest.name}-curves.csv", index=False)
    plot(rows, args.out / f"{contest.name}.png", contest.name)
    print(f"\nwrote {args.out / contest.name}.csv, -curves.csv and .png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
