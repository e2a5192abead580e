"""``prunepilot resume``: goes on with a search that was cut, to the same result."""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = "go on with an interrupted search, to the same result"
EXAMPLE = "prunepilot resume runs/a"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's options."""
    parser.add_argument("run_dir", metavar="RUN", type=Path, help="folder of the run")


def run(args: argparse.Namespace) -> int:
    """Runs the search of the folder's config.yaml again; its journal answers what is done."""
    from automl.commands.search import execute
    from automl.runs import RunFolder

    return execute(RunFolder(args.run_dir).config())
