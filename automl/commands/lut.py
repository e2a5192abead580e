"""``prunepilot lut``: measures, checks, imports and shows latency tables."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from automl.commands.options import add_override_arguments

if TYPE_CHECKING:
    from automl.executors.latency_table import NetworkTable

SUMMARY = "measure, check, import and show tables of how long operators take"
EXAMPLE = (
    "prunepilot lut build model=resnet20 device=cpu\n"
    "  prunepilot lut check model=resnet20 --out runs/lut-check\n"
    "  prunepilot lut import theirs.pkl --from netadapt --device 'Pixel 1' --out lut/pixel-1.json"
)

_REFUSED = (
    "worse than latency.max_mape {:g} %: searches refuse it. Build it again on a quiet machine, "
    "which calibrates anew; delete both files first to time all operators again"
)
_ABOUT = {
    "build": "measure every operator that a search can reach, and calibrate on whole networks",
    "check": "compare predictions with fresh networks, measured",
    "show": "say what a table holds",
    "import": "read a table of another program: CSV, JSON or NetAdapt's pickle",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's actions and their options."""
    actions = parser.add_subparsers(
        title="actions", metavar="ACTION", dest="action", required=True, parser_class=type(parser)
    )
    for name, about in _ABOUT.items():
        action = actions.add_parser(
            name,
            help=about,
            description=about[0].upper() + about[1:] + ".",
            epilog=f"example:\n  prunepilot lut {name} {_EXAMPLES[name]}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        _ARGUMENTS[name](action)


_EXAMPLES = {
    "build": "model=resnet20 device=cpu latency.table=lut",
    "check": "model=resnet20 --out runs/lut-check",
    "show": "lut/NAME.json",
    "import": "theirs.pkl --from netadapt --device 'Pixel 1' --out lut/pixel-1.json",
}


def _build_arguments(parser: argparse.ArgumentParser) -> None:
    add_override_arguments(parser)


def _check_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=None, help="of the networks (new every time)")
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="also write the figures and a plot here"
    )
    add_override_arguments(parser)


def _show_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("table", metavar="FILE", type=Path, help="a table's JSON file")


def _import_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="FILE", type=Path, help="what to read")
    parser.add_argument(
        "--from",
        dest="format",
        choices=["csv", "json", "netadapt"],
        help="its format; by default after its suffix (.pkl is netadapt)",
    )
    parser.add_argument("--device", required=True, help="what it was measured on, in words")
    parser.add_argument("--batch", type=int, default=1, help="examples in a pass (default 1)")
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="a new table")


_ARGUMENTS = {
    "build": _build_arguments,
    "check": _check_arguments,
    "show": _show_arguments,
    "import": _import_arguments,
}


def run(args: argparse.Namespace) -> int:
    """Runs the action."""
    return _ACTIONS[args.action](args)


def _build(args: argparse.Namespace) -> int:
    from automl.commands.latency import most_mape, whole_networks

    table, config = _network_table(args)
    most = most_mape(config["latency"])
    new = table.build()
    print(f"{new} operators measured, {len(table.reachable) - new} were known")
    print(
        f"channel counts that are multiples of {table.step()} waste nothing here: "
        f"granularity.rounding={table.step()}"
    )
    calibration = table.calibration
    if calibration is None or new or calibration.held_out.mape > most:
        calibration = table.calibrate(**whole_networks(config["latency"]))
    print(
        f"latency = {calibration.slope:.4g} x sum + {calibration.offset_ms:.4g} ms; "
        f"on the networks it was fitted to: {calibration.fitted}"
    )
    print(f"on fresh networks: {calibration.held_out}")
    if calibration.held_out.mape > most:
        print(_REFUSED.format(100 * most))
    print(f"wrote {table.table.path} and {table.table.rows_path.name}")
    return 0


def _check(args: argparse.Namespace) -> int:
    import time

    from automl.commands.latency import most_mape, whole_networks
    from automl.commands.out import check_file
    from automl.runs import RunFolder
    from automl.types import InputError

    if args.out is not None:
        check_file(args.out)
        if RunFolder(args.out).is_run:
            raise InputError(
                f"--out {args.out} holds a run, whose latency.json would be lost; choose another "
                "folder"
            )
    table, config = _network_table(args)
    settings, most = config["latency"], most_mape(config["latency"])
    if table.calibration is None:
        table.calibrate(**whole_networks(settings))
    seed = int(time.time()) if args.seed is None else args.seed
    if seed < 0:
        raise InputError(f"--seed must be >= 0, got {seed}")
    found = table.check(**whole_networks(settings), seed=seed)
    print(found)
    if args.out is not None:
        from automl.commands.lut_report import write_report

        for path in write_report(args.out, table.table, found, about={"seed": seed}):
            print(f"wrote {path}")
    accurate = found.mape <= most
    if not accurate:
        print(_REFUSED.format(100 * most))
    return 0 if accurate else 1


def _show(args: argparse.Namespace) -> int:
    from automl.commands.lut_report import describe
    from automl.cost.lut.table import Table

    print(describe(Table.load(args.table)))
    return 0


def _import(args: argparse.Namespace) -> int:
    from automl.cost.lut.importing import import_table
    from automl.types import InputError

    if args.batch < 1:
        raise InputError(f"--batch must be >= 1, got {args.batch}")
    table = import_table(
        args.source, args.out, device=args.device, form=args.format, batch=args.batch
    )
    print(f"read {len(table.entries)} operators; wrote {table.path} and {table.rows_path.name}")
    return 0


_ACTIONS = {"build": _build, "check": _check, "show": _show, "import": _import}


def _network_table(args: argparse.Namespace) -> tuple[NetworkTable, dict[str, Any]]:
    from automl.commands.build import Bench
    from automl.commands.compose import compose
    from automl.commands.settings import set_up_process

    config = compose(args.overrides)
    set_up_process(config)
    return Bench(config).latency_table, config
