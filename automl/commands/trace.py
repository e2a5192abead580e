"""``prunepilot trace``: what a network is made of, what can be pruned, and what cannot and why."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from automl.commands.options import add_override_arguments

if TYPE_CHECKING:
    from automl.pruning.masked_plan import MaskedPlan

SUMMARY = "show a network's layers, groups and frozen parts, with MACs and parameters"
EXAMPLE = (
    "prunepilot trace model=torchvision:resnet18 exclude=[fc] --out plan.json\n"
    "  prunepilot trace model=resnet20 granularity=nm:4"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's options."""
    parser.add_argument(
        "--out", metavar="FILE", type=Path, help="also write the structure as JSON (a new file)"
    )
    add_override_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Traces the model and prints its summary."""
    from automl.commands.compose import compose
    from automl.commands.out import check_file
    from automl.paths import atomic_write
    from automl.types import InputError

    config = compose(args.overrides)
    if args.out is not None:
        check_file(args.out, new=True)

    from automl.commands.build import Bench
    from automl.commands.settings import set_up_process
    from automl.pruning.masked_plan import MaskedPlan

    set_up_process(config)
    bench = Bench(config)
    trace = bench.trace
    print(trace.summary())
    if isinstance(bench.plan, MaskedPlan):
        print(f"\n{_inside(bench.plan)}")
    if args.out is not None:
        try:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(args.out, trace.plan.to_json())
        except OSError as error:
            raise InputError(f"--out {args.out} cannot be written: {error.strerror}") from error
        print(f"wrote {args.out}")
    return 0


def _inside(plan: MaskedPlan) -> str:
    """What can be pruned inside layers, by which grain, and what cannot and why."""
    from automl.graph.summary import text_table

    rows = [
        (w.name, w.granularity.name, str(w.units), str(w.sizes.weights), w.granularity.acceleration)
        for w in plan.weights
    ]
    head = ("weight", "granularity", "units", "weights", "what can run it faster")
    parts = [f"{len(rows)} weights that can be pruned inside", text_table(head, rows)]
    if plan.excluded:
        left = text_table(("left dense", "because"), [(f.name, f.reason) for f in plan.excluded])
        parts += ["", left]
    return "\n".join(parts)
