"""``prunepilot policy``: shows policies, side by side, and turns them into CSV and back."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from automl.policy import Policy

SUMMARY = "show policies, compare two layer by layer, or turn one into CSV to edit it"
EXAMPLE = "prunepilot policy diff runs/a runs/b/policy.json"

_BAR = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's forms."""
    forms = parser.add_subparsers(title="forms", metavar="FORM", required=True, dest="form")
    show = forms.add_parser("show", help="what a policy keeps of every group")
    show.add_argument("policy", metavar="POLICY", type=Path, help="run folder, .json or .csv")
    diff = forms.add_parser("diff", help="two policies side by side")
    diff.add_argument("policy", metavar="A", type=Path, help="run folder, .json or .csv")
    diff.add_argument("other", metavar="B", type=Path, help="run folder, .json or .csv")
    convert = forms.add_parser("convert", help="write a policy as .csv or .json")
    convert.add_argument("policy", metavar="POLICY", type=Path, help="run folder, .json or .csv")
    convert.add_argument("out", metavar="FILE", type=Path, help="a new file, .csv or .json")


def run(args: argparse.Namespace) -> int:
    """Shows, compares or converts."""
    from automl.policy_csv import load_policy

    policy = load_policy(args.policy)
    if args.form == "convert":
        return _convert(policy, args.out)
    if args.form == "diff":
        return _diff(policy, load_policy(args.other), str(args.policy), str(args.other))
    return _show(policy)


def _show(policy: Policy) -> int:
    from rich.table import Table

    from automl.commands.wide_table import show

    table = Table()
    for heading in ("group", "by"):
        table.add_column(heading, no_wrap=True)
    for heading in ("units", "kept", "removed"):
        table.add_column(heading, justify="right")
    table.add_column("kept of all")
    for one in policy.decisions:
        kept = one.kept / one.units
        removed = f"{100 * one.removed:.1f} %"
        cells = (one.target, one.granularity, str(one.units), str(one.kept), removed, _bar(kept))
        table.add_row(*cells)
    show(table)
    return 0


def _diff(a: Policy, b: Policy, name: str, other: str) -> int:
    """0 whatever differs, as long as both can be read."""
    from rich.table import Table

    from automl.commands.wide_table import show

    table = Table(caption=f"A: {name}   B: {other}", caption_justify="left")
    table.add_column("group", no_wrap=True)
    for heading in ("units", "A keeps", "B keeps", "B - A"):
        table.add_column(heading, justify="right")
    table.add_column("A")
    table.add_column("B")
    mine = {one.target: one for one in a.decisions}
    theirs = {one.target: one for one in b.decisions}
    for target in dict.fromkeys([*mine, *theirs]):
        one, two = mine.get(target), theirs.get(target)
        known = one or two
        assert known is not None  # the name is from one of them
        counts = ["-" if d is None else str(d.kept) for d in (one, two)]
        change = "" if one is None or two is None else f"{two.kept - one.kept:+d}"
        bars = ["" if d is None else _bar(d.kept / d.units) for d in (one, two)]
        table.add_row(target, str(known.units), *counts, change if change != "+0" else "=", *bars)
    show(table)
    same = sum(mine[t].kept == theirs[t].kept for t in mine if t in theirs)
    print(f"{same} of {len(mine | theirs)} groups keep as many units in both")
    return 0


def _convert(policy: Policy, out: Path) -> int:
    from automl.policy_csv import save_csv
    from automl.types import InputError

    if out.exists():
        raise InputError(f"{out} exists; choose a new file")
    writers = {".csv": lambda: save_csv(policy, out), ".json": lambda: policy.save(out)}
    if out.suffix.lower() not in writers:
        raise InputError(f"{out} must end in .csv or .json")
    try:
        writers[out.suffix.lower()]()
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror}") from None
    print(f"wrote {out}")
    return 0


def _bar(fraction: float) -> str:
    full = round(_BAR * fraction)
    return "█" * full + "·" * (_BAR - full)
