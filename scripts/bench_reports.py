"""How long ``compare`` and ``report`` take over many runs, and how much memory they need.

    python scripts/bench_reports.py --runs 100 --trials 400 --out runs/many

Makes run folders with the product's own writers (settings, journal, Parquet, policies, result): the
policies and their costs are those of the digits network, scores are made up. Then times the two
verbs, each in a process of its own, and prints a Markdown table of seconds, peak memory and bytes
written. Folders that are there are used again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from automl.commands.build import Bench
from automl.commands.compose import compose
from automl.commands.running import SearchRun
from automl.commands.table import Row
from automl.environment import environment
from automl.journal import Journal
from automl.paths import atomic_write
from automl.problem import Problem, Trial, trial_row
from automl.runs import JOURNAL, PLAN, POLICY, POLICY_UNIFORM, RESULT, TRIALS, RunFolder
from automl.types import Measurement

STRATEGIES = ("amc", "netadapt", "sensitivity", "random", "uniform")
BUDGETS = (0.2, 0.3, 0.4, 0.5)

#: Runs the command and says its own peak; what the system says of a child has its parent's in it.
_CHILD = """
import sys
from automl.cli import main
code = main(sys.argv[1:])
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(peak.split()[1], file=sys.stderr)
sys.exit(code)
"""


def main() -> None:
    """Makes the runs and measures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    runs = args.out / "runs"
    started = time.perf_counter()
    _make(runs, args.runs, args.trials)
    print(f"made {args.runs} runs x {args.trials} trials: {time.perf_counter() - started:.1f} s")
    print("\n| command | seconds | peak MB | written MB |\n|---|---|---|---|")
    page = args.out / "report.html"
    for verb, extra, written in (
        ("compare", ["--out", str(args.out / "tables")], args.out / "tables"),
        ("report", ["--out", str(page)], page),
    ):
        seconds, peak = _measured([verb, str(runs), *extra])
        print(f"| {verb} | {seconds:.1f} | {peak / 1e6:,.0f} | {_size(written) / 1e6:.2f} |")
    print(f"\nrun folders: {_size(runs) / 1e6:.1f} MB")


def _make(runs: Path, count: int, trials: int) -> None:
    bench: Bench | None = None
    pools: dict[float, tuple[Problem, list[Trial]]] = {}
    for at in range(count):
        strategy = STRATEGIES[at % len(STRATEGIES)]
        budget = BUDGETS[at // len(STRATEGIES) % len(BUDGETS)]
        seed = at // (len(STRATEGIES) * len(BUDGETS))
        folder = RunFolder(runs / f"strategy={strategy},budget.macs={budget},seed={seed}")
        if folder.is_done:
            continue
        settings = [f"strategy={strategy}", f"budget.macs={budget}", f"seed={seed}"]
        config = compose([*settings, "model=digits", f"run_dir='{folder.path}'"])
        bench = Bench(config) if bench is None else bench.sharing(config)
        if budget not in pools:
            problem = SearchRun.of(config, bench).problem()
            pools[budget] = problem, _pool(problem, trials)
        with folder.lock():
            folder.start(config, environment)
            _fill(folder, bench, *pools[budget], seed=at)


def _pool(problem: Problem, trials: int) -> list[Trial]:
    """Policies within the budget, with their costs."""
    rng = np.random.default_rng(0)
    made = []
    for index in range(trials):
        kept = problem.fit(rng.uniform(0.1, 1.0, len(problem.targets)))
        policy = problem.policy(kept)
        measured = Measurement(0.0, {"top1": 0.0, "kl": 0.0}, problem.cost(policy))
        made.append(Trial(index, policy, measured, "ok", None, 0.2, "2026-01-01T00:00:00+00:00"))
    return made


def _fill(
    folder: RunFolder, bench: Bench, problem: Problem, pool: Sequence[Trial], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    scores = -rng.exponential(0.1, len(pool))
    with Journal(folder.file(JOURNAL)) as journal:
        for trial, score in zip(pool, scores, strict=True):
            assert trial.measurement is not None
            metrics = {"top1": 1 + float(score), "kl": -float(score)}
            found = Measurement(float(score), metrics, trial.measurement.costs)
            made = Trial(trial.index, trial.policy, found, "ok", None, trial.seconds, trial.time)
            journal.append({"key": f"{seed}-{trial.index}", **trial_row(made)})
        journal.write_parquet(folder.file(TRIALS))
    best = pool[int(scores.argmax())]
    atomic_write(folder.file(PLAN), bench.plan.to_json())
    best.policy.save(folder.file(POLICY))
    pool[0].policy.save(folder.file(POLICY_UNIFORM))
    rows = [_row("dense", 0.99, dict(problem.dense_costs), 1.0)]
    for name, trial in (("uniform", pool[0]), ("found", best)):
        assert trial.measurement is not None
        costs = {str(key): value for key, value in trial.measurement.costs.items()}
        rows.append(_row(name, float(rng.uniform(0.8, 0.98)), costs, float(rng.uniform(0.4, 0.9))))
    result = {
        "schema": "prunepilot/result", "version": 1, "model": bench.loaded.name, "data": "made up",
        "score": "kl", "budget": str(problem.budget), "limits": problem.limits,
        "trials": len(pool), "failed": 0, "search_seconds": 80.0, "wall_seconds": 85.0,
        "form": "modules", "device": "cpu", "search_images": 400, "finalists": 1,
        "validation_images": 400, "test_images": 400, "latency_promise": None,
        "rows": [asdict(row) for row in rows],
    }  # fmt: skip
    folder.write_json(RESULT, result)


def _row(name: str, top1: float, costs: dict[str, float], ratio: float) -> Row:
    macs, params = int(costs["macs"]), int(costs["params"])
    return Row(name, macs, params, top1 - 1, top1, top1, 0.5 * ratio, ratio, costs)


def _measured(arguments: Sequence[str]) -> tuple[float, int]:
    """Seconds, and bytes of memory at most, of a command."""
    started = time.perf_counter()
    command = [sys.executable, "-c", _CHILD, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"failed: {' '.join(arguments)}: {done.stderr.strip()}")
    return seconds, int(done.stderr.split()[-1]) * 1024


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
    return sum(file.stat().st_size for file in files)


if __name__ == "__main__":
    main()
