"""What can be set on the command line, read from conf/ without importing Hydra.

A directory of conf/ is a group, each YAML file in it an option; the option's first comment line
says what it is. config.yaml holds the defaults and, in its comments, what each key means.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from automl.conf_files import conf_files
from automl.paths import conf_dir

ROOT = "config"


@cache
def groups() -> Mapping[str, Mapping[str, str]]:
    """Group -> option -> what the option is, in alphabetical order."""
    return {
        directory.name: {file.stem: _about(file) for file in sorted(directory.glob("*.yaml"))}
        for directory in sorted(conf_dir().iterdir())
        if directory.is_dir() and any(directory.glob("*.yaml"))
    }


def add_override_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds ``KEY=VALUE ...`` and ``--cfg job``, and shows every group and key in the help."""
    parser.add_argument(
        "overrides",
        metavar="KEY=VALUE",
        nargs="*",
        help="settings, in Hydra's override syntax (+key=value adds one, ~key removes one)",
    )
    parser.add_argument(
        "--cfg", choices=["job"], help="print the resolved settings and exit (the only form: job)"
    )
    parser.epilog = f"{parser.epilog}\n\n{describe()}"


def add_trust_argument(parser: argparse.ArgumentParser) -> None:
    """Adds ``--trust NAME``: what a folder may call beside PrunePilot's own."""
    parser.add_argument(
        "--trust",
        metavar="NAME",
        action="append",
        default=[],
        help="a package or function that the folder may call beside PrunePilot's own; repeatable",
    )


def describe() -> str:
    """All groups with their options, then config.yaml as it stands: what --help shows."""
    text = (conf_dir() / f"{ROOT}.yaml").read_text(encoding="utf-8")
    chosen = default_choices()
    lines = [
        "groups (group=option, then group.key=value; * is the default; model also takes",
        "torchvision:NAME, timm:NAME and my.package.factory):",
    ]
    for group, options in groups().items():
        lines.append(f"  {group}")
        for option, about in options.items():
            mark = "*" if chosen.get(group) == option else " "
            lines.append(f"    {mark} {option:<19} {about}".rstrip())
        if keys := ", ".join(_keys(group, chosen[group]) if group in chosen else ()):
            keys = f"keys: {keys}"
            indent = " " * 6
            lines += textwrap.wrap(keys, 100, initial_indent=indent, subsequent_indent=indent)
    lines += ["", "other keys, with their defaults:"]
    lines += [f"  {line}".rstrip() for line in _after_defaults(text).splitlines()]
    return "\n".join(lines)


def _about(file: Path) -> str:
    """The first comment, if the file begins with one; a package directive may stand above it."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("# @"):
            return line.removeprefix("#").strip() if line.startswith("#") else ""
    return ""


def default_choices() -> dict[str, str]:
    """Group -> the option that config.yaml chooses."""
    entries = conf_files()[ROOT]["defaults"]
    return {
        key: option for entry in entries if isinstance(entry, dict) for key, option in entry.items()
    }


def _keys(group: str, option: str) -> list[str]:
    content = conf_files()[f"{group}/{option}"] or {}
    return [f"{group}.{key}" for key in content if key != "_target_"]


def _after_defaults(text: str) -> str:
    """config.yaml without its list of defaults, comments kept."""
    lines = text.splitlines()
    start = lines.index("defaults:") + 1
    while start < len(lines) and (lines[start].startswith((" ", "-")) or not lines[start].strip()):
        start += 1
    return "\n".join(lines[start:])
