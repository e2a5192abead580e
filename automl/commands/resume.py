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
    """Runs what the folder's config.yaml says again; its journal answers what is done."""
    from automl.commands import search, sensitivity
    from automl.runs import RunFolder

    config = RunFolder(args.run_dir).config()
    if config.pop(sensitivity.VERB, None) is not None:
        return sensitivity.execute(config)
    return search.execute(config)
