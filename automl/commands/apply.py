"""``prunepilot apply``: prunes another checkpoint of the same network by a learned policy."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from automl.commands.options import add_override_arguments

if TYPE_CHECKING:
    from automl.policy import Policy

SUMMARY = "prune another checkpoint of the same network by a learned policy"
EXAMPLE = (
    "prunepilot apply runs/a/policy.json model=resnet20 model.checkpoint=other.pt --fine-tune"
    " --out small/"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's options."""
    parser.add_argument("policy", metavar="POLICY", type=Path, help="run folder, .json or .csv")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="a new folder")
    parser.add_argument(
        "--fine-tune", action="store_true", help="train the result (finetune=short, or as set)"
    )
    add_override_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Applies the policy's counts; which units stay is chosen anew on these weights."""
    from automl.commands import prune
    from automl.commands.compose import compose

    overrides = list(args.overrides)
    if args.fine_tune and not any(text.startswith("finetune=") for text in overrides):
        overrides.append("finetune=short")
    return prune.execute(compose(overrides), args.out, _counts_of(args.policy))


def _counts_of(path: Path) -> Policy:
    """The policy without its choice of units, which is of other weights."""
    from automl.policy_csv import load_policy

    return load_policy(path).counts_alone()
