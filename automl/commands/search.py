"""``prunepilot search``: finds a policy within the budget and shows what was gained."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from automl.commands.options import add_override_arguments
from automl.signals import exit_code, unmasked, word

SUMMARY = "find how much to prune from every layer, within a budget"
EXAMPLE = (
    "prunepilot search model=digits data=digits strategy=random budget.macs=0.5 trials=60"
    " run_dir=runs/a"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's options."""
    add_override_arguments(parser)
    parser.add_argument(
        "-m",
        "--multirun",
        action="store_true",
        help="run every combination of values, as strategy=amc,uniform seed=0,1,2",
    )


def run(args: argparse.Namespace) -> int:
    """Runs a new search, or a sweep of them."""
    if args.multirun:
        from automl.commands.sweep import run_sweep

        return run_sweep(args.overrides)
    from automl.commands.compose import compose

    return execute(compose(args.overrides))


def execute(config: Mapping[str, Any]) -> int:
    """Runs a search to its end, from wherever its folder stands.

    Returns:
        0, 1 where trials failed or the disk is full, 130 or 143 where it was interrupted or
        terminated.
    """
    from automl.commands.running import SearchRun
    from automl.problem import SearchStopped

    run = SearchRun.of(config)
    try:
        with unmasked():
            return run.execute()
    except KeyboardInterrupt as stop:
        kept = run.folder.is_run
        hint = f"; go on with: {run.folder.how_to_resume}" if kept else ""
        print(f"\nprunepilot: {word(stop)}{hint}", file=sys.stderr)
        return exit_code(stop)
    except SearchStopped as error:
        print(f"prunepilot: failed: {error} ({run.folder.how_to_resume})", file=sys.stderr)
        return 1
