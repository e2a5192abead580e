"""``prunepilot compare``: strategies against each other and against uniform pruning."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from automl.commands.options import add_trust_argument

if TYPE_CHECKING:
    import pandas as pd

SUMMARY = "compare runs: strategy x budget, mean and standard error over seeds, against uniform"
EXAMPLE = (
    "prunepilot compare runs/sweep --out tables --pareto latency_ratio\n"
    "  prunepilot compare runs/a runs/b --time 60"
)


#: Of columns that do not speak for themselves.
_MEANINGS = {
    "over uniform": "points of test top-1 under the same budget, p of a paired t-test over seeds",
    "at its latency": "points over uniform at the same measured latency",
    "latency": "ratio to dense",
    "before tuning": "test top-1 % of the same networks without fine-tuning",
    "search s": "seconds of all its trials, those too that another run had scored before",
    "wall s": "seconds of the search by the clock; what others had scored takes none, what the "
    "strategy does between trials counts",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's options."""
    parser.add_argument(
        "paths", metavar="RUN_OR_SWEEP", type=Path, nargs="+", help="folders of runs or sweeps"
    )
    parser.add_argument("--out", type=Path, help="folder for compare.csv, compare.md, compare.tex")
    parser.add_argument(
        "--pareto",
        metavar="COST[,GAIN]",
        help="show only what no other network beats in both, as latency_ratio,test_top1",
    )
    parser.add_argument(
        "--time",
        metavar="SECONDS",
        type=float,
        help="time all dense, found and uniform networks again, side by side: what runs hold was "
        "measured at different times",
    )
    add_trust_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the table and writes it where asked."""
    return show(args.paths, args.out, args.pareto, args.time, args.trust)


def show(
    paths: Sequence[Path],
    out: Path | None = None,
    pareto: str | None = None,
    seconds: float | None = None,
    trust: Sequence[str] = (),
) -> int:
    """Prints the comparison of all runs below the paths.

    Args:
        paths: Folders of runs or sweeps.
        out: Where to write it as CSV, Markdown and LaTeX; None writes nothing.
        pareto: Columns of a Pareto front, ``COST`` or ``COST,GAIN``.
        seconds: Time all networks again, side by side, for so long; None takes the runs' times.
        trust: Factories that may be called for it beside PrunePilot's own.

    Returns:
        0.

    Raises:
        InputError: No run has finished, or a column or folder is not as it must be.
    """
    from automl.commands.out import check_folder
    from automl.report.comparing import compare
    from automl.report.loading import finals, load_runs, none_finished, problems
    from automl.types import InputError

    if seconds is not None and not 0 < seconds < math.inf:
        raise InputError(f"--time must be a number of seconds above 0, got {seconds:g}")
    if out is not None:
        check_folder(out)
    runs = load_runs(*paths)
    found = finals(runs)
    if found.empty:
        raise InputError(none_finished(runs, paths))
    for line in problems(runs):
        print(line)
    if seconds is not None:
        from automl.commands.compare_time import timed

        runs = timed(runs, seconds, trust)
        found = finals(runs)
    table = compare(found)
    if pareto:
        table = _front(table, pareto)
    _print(table, runs)
    if out is not None:
        _write(table, out)
    return 0


def _front(table: pd.DataFrame, columns: str) -> pd.DataFrame:
    """One front for every network and data set of which there are figures."""
    import pandas as pd

    from automl.report.comparing import pareto_front, require_figures
    from automl.types import InputError

    cost, _, gain = columns.partition(",")
    gain = gain or "test_top1"
    require_figures(table, (cost, gain))
    found = table.dropna(subset=[cost, gain])
    if found.empty:
        raise InputError(f"no network has figures in both columns, {cost!r} and {gain!r}")
    networks = found.groupby(["model", "data"], sort=False)
    return pd.concat([pareto_front(part, cost, gain) for _, part in networks])


def _print(table: pd.DataFrame, runs: pd.DataFrame) -> None:
    from rich.table import Table

    from automl.commands.wide_table import show as show_table
    from automl.report.comparing import cells

    for (model, data), part in table.groupby(["model", "data"], sort=False):
        headings, rows = cells(part.drop(columns=["model", "data"]))
        shown = Table(title=f"{model} on {data}", title_justify="left")
        for heading in headings:
            name = heading in ("budget", "strategy")
            shown.add_column(heading, justify="left" if name else "right", no_wrap=True)
        for row, following in zip(rows, [*rows[1:], rows[-1]], strict=True):
            shown.add_row(*row, end_section=row[0] != following[0])
        show_table(shown, piped=200, lead=2)
    dense = runs[runs["network"] == "dense"].drop_duplicates(["model", "data"])
    for row in dense.itertuples():
        print(f"dense {row.model} on {row.data}: test top-1 {100 * row.test_top1:.2f} %")
    headings, _ = cells(table)
    for heading, meaning in _MEANINGS.items():
        if heading in headings:
            print(f"{heading}: {meaning}")


def _write(table: pd.DataFrame, out: Path) -> None:
    from automl.paths import atomic_write
    from automl.report.comparing import cells, latex, markdown
    from automl.types import InputError

    headings, rows = cells(table)
    try:
        out.mkdir(parents=True, exist_ok=True)
        atomic_write(out / "compare.csv", table.to_csv(index=False))
        atomic_write(out / "compare.md", markdown(headings, rows) + "\n")
        atomic_write(out / "compare.tex", latex(headings, rows) + "\n")
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror}") from None
    print(f"wrote {out} (compare.csv, compare.md, compare.tex)")
