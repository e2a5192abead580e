"""``prunepilot trace``: what a network is made of, what can be pruned, and what cannot and why."""

from __future__ import annotations

import argparse
from pathlib import Path

from automl.commands.options import add_override_arguments

SUMMARY = "show a network's layers, groups and frozen parts, with MACs and parameters"
EXAMPLE = "prunepilot trace model=torchvision:resnet18 exclude=[fc] --out plan.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's options."""
    parser.add_argument(
        "--out", metavar="FILE", type=Path, help="also write the structure as JSON (a new file)"
    )
    add_override_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Traces the model and prints its summary."""
    from automl.commands.compose import compose
    from automl.types import InputError

    config = compose(args.overrides)
    if args.out is not None and args.out.exists():
        raise InputError(f"--out {args.out} is there already; choose another file")

    from automl.commands.build import Bench, set_threads
    from automl.paths import atomic_write

    set_threads(config)
    trace = Bench(config).trace
    print(trace.summary())
    if args.out is not None:
        try:
            atomic_write(args.out, trace.plan.to_json())
        except OSError as error:
            raise InputError(f"--out {args.out} cannot be written: {error.strerror}") from error
        print(f"wrote {args.out}")
    return 0
