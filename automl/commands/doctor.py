"""``prunepilot doctor``: what this installation and machine have."""

from __future__ import annotations

import argparse
import json

SUMMARY = "show versions, processor features and devices, as a bug report needs them"
EXAMPLE = "prunepilot doctor"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's options."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")


def run(args: argparse.Namespace) -> int:
    """Prints the report; 1 if something every run needs is missing."""
    from automl.environment import environment
    from automl.executors.support import support
    from automl.paths import conf_dir

    report = {**environment(), "executors": support()}
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        for key, value in report.items():
            _print(key, value)
    if not (conf_dir() / "config.yaml").is_file():
        print("conf: NOT FOUND; install prunepilot again")
        return 1
    return 0


def _print(key: str, value: object) -> None:
    if isinstance(value, dict):
        print(f"{key}:")
        width = max(14, *map(len, value))
        for name, item in value.items():
            print(f"  {name:<{width}} {item if item is not None else 'not installed'}")
    else:
        text = " ".join(value) if isinstance(value, list) else value
        print(f"{key:<16} {text or 'none'}")
