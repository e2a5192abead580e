"""``prunepilot resume``: goes on with a search that was cut, to the same result."""

from __future__ import annotations

import argparse
from pathlib import Path

from automl.commands.options import add_trust_argument

SUMMARY = "go on with an interrupted search, to the same result"
EXAMPLE = "prunepilot resume runs/a"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's options."""
    parser.add_argument("run_dir", metavar="RUN", type=Path, help="folder of the run")
    add_trust_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Runs what the folder's config.yaml says again; its journal answers what is done."""
    from automl.commands import search, sensitivity
    from automl.commands.stored import stored_settings
    from automl.runs import RunFolder

    config = stored_settings(RunFolder(args.run_dir), args.trust)
    if config.pop(sensitivity.VERB, None) is not None:
        return sensitivity.execute(config)
    return search.execute(config)
