"""Searches of docs/results.md on the CIFAR-10 ResNets, from one command to the table's rows.

    python scripts/reproduce_cifar.py experiment=resnet56_50
    python scripts/reproduce_cifar.py experiment=resnet20_50 --seeds 3 finetune=short
    python scripts/reproduce_cifar.py experiment=resnet20_50 --fast

Runs one sweep (``prunepilot search -m``) per experiment of conf/experiment: every strategy with the
same network, budget, score and number of trials, over seeds; strategies that no seed changes run
once. A sweep that was cut is finished by the same command. Cells share what they score, so equal
policies cost nothing twice.

Protocol: the checkpoints have seen all training images, so searches are scored on the first half of
the test images (500 of them in every trial, all 5,000 for the best five), and the other half is
looked at once per final network. Training images serve the repair, without labels, and fine-tuning.

Any setting of ``prunepilot search`` may follow the experiment. ``--policies DIR`` writes the best
policy of every strategy (by the search's score, never by test images) as JSON.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from automl.commands.options import groups
from automl.commands.sweep import run_sweep
from automl.report.comparing import cells, compare, markdown
from automl.report.loading import finals, load_runs
from automl.runs import POLICY
from automl.types import InputError

#: Strategies that find the same policy whatever the seed.
FIXED = ("uniform", "deep", "shallow")
STRATEGIES = (*FIXED, "random", "cmaes", "sensitivity", "netadapt", "amc")

#: Published test top-1 on ResNet-56, in %: dense, pruned, fine-tuned (None where not given).
PUBLISHED = {
    "resnet56_50": (
        ("uniform, in AMC's paper (arXiv 1802.03494)", 92.8, 87.5, None),
        ("AMC, in its paper", 92.8, 90.2, 91.9),
        ("DepGraph at 2.13x (arXiv 2301.12900)", 93.53, None, 93.77),
    ),
    "resnet56_40": (("DepGraph at 2.57x (arXiv 2301.12900)", 93.53, None, 93.64),),
}

#: Settings of ``--fast``: minutes instead of hours, to see that all of it works.
FAST = (
    "trials=8", "data.limit=300", "scoring.images=100", "repair.calibration_images=64",
    "repair.refine.steps=10",
    "repair.trial_images=32", "scoring.finalists=2", "latency_budget_s=0.2",
)  # fmt: skip


def experiment_of(overrides: Sequence[str]) -> str:
    """The name after ``experiment=``.

    Raises:
        InputError: There is none.
    """
    names = [text.partition("=")[2] for text in overrides if text.startswith("experiment=")]
    known = ", ".join(name for name in groups()["experiment"] if name != "none")
    if len(names) != 1 or names[0] == "none":
        raise InputError(f"name one experiment, as experiment=resnet56_50; there are {known}")
    return names[0]


def search(args: argparse.Namespace, folder: Path) -> int:
    """Runs what is missing of the sweeps; returns the highest exit code."""
    common = [*(FAST if args.fast else ()), *args.overrides]
    code = 0
    for names, seeds in (
        ([s for s in args.strategies if s in FIXED], 1),
        ([s for s in args.strategies if s not in FIXED], args.seeds),
    ):
        if names:
            varied = [f"strategy={','.join(names)}", f"seed={','.join(map(str, range(seeds)))}"]
            # A sweep of one cell calls it "only", which two sweeps cannot have in one folder.
            below = folder / names[0] if len(names) * seeds == 1 else folder
            code = max(code, run_sweep([*common, *varied, f"run_dir={below}"]))
    return code


def save_policies(runs: pd.DataFrame, name: str, folder: Path) -> list[Path]:
    """The best policy of every strategy by the score it was searched by."""
    folder.mkdir(parents=True, exist_ok=True)
    found = runs[(runs["network"] == "found") & (runs["status"] == "done")]
    sign = -1.0 if (found["score_name"] != "top1").all() else 1.0
    written = []
    for strategy, group in found.groupby("strategy"):
        best = group.loc[(sign * group["score"]).idxmax(), "run"]
        written.append(folder / f"{name}-{strategy}.json")
        shutil.copyfile(Path(str(best)) / POLICY, written[-1])
    return written


def table(runs: pd.DataFrame, name: str) -> str:
    """The Markdown of docs/results.md for one experiment."""
    dense = runs[(runs["network"] == "dense") & (runs["status"] == "done")].iloc[0]
    headings, rows = cells(compare(finals(runs)))
    lines = [
        f"dense: test top-1 {100 * dense['test_top1']:.2f} %, {dense['macs'] / 1e6:.1f} M MACs, "
        f"{dense['params'] / 1e3:.0f} K parameters",
        "",
        markdown(headings, rows),
    ]
    for title, before, pruned, tuned in PUBLISHED.get(name, ()):
        without = "not given" if pruned is None else f"{pruned} %"
        after = "not given" if tuned is None else f"{tuned} %"
        lines.append(f"- {title}: dense {before} %, pruned {without}, fine-tuned {after}")
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="+", metavar="KEY=VALUE", help="experiment=NAME, ...")
    parser.add_argument(
        "--strategies", type=lambda text: text.split(","), default=list(STRATEGIES),
        metavar="NAME,NAME", help=f"default: {','.join(STRATEGIES)}",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--fast", action="store_true", help="a few minutes, figures mean nothing")
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce"))
    parser.add_argument("--policies", type=Path, help="folder for the best policies")
    return parser.parse_intermixed_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs, prints and writes; returns the exit code."""
    args = parse(arguments)
    try:
        name = experiment_of(args.overrides)
        folder = args.out / (f"{name}-fast" if args.fast else name)
        code = search(args, folder)
        runs = load_runs(folder)
    except InputError as error:
        print(f"reproduce_cifar: {error}", file=sys.stderr)
        return 2
    if code == 130 or not (runs["status"] == "done").any():
        return code or 1
    text = table(runs, name)
    (folder / "results.md").write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}\n\nwrote {folder / 'results.md'}")
    if args.policies is not None:
        for path in save_policies(runs, name, args.policies):
            print(f"wrote {path}")
    return code


if __name__ == "__main__":
    sys.exit(main())
