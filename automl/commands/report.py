"""``prunepilot report``: one HTML page of a run or a sweep."""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = "write one HTML page of a run or a sweep, which opens offline"
EXAMPLE = "prunepilot report runs/sweep"

SCRIPT = "plotly.min.js"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's options."""
    parser.add_argument(
        "paths", metavar="RUN_OR_SWEEP", type=Path, nargs="+", help="folders of runs or sweeps"
    )
    parser.add_argument(
        "--out", metavar="FILE", type=Path, help="default: report.html in the first"
    )
    parser.add_argument(
        "--each",
        action="store_true",
        help="a page for every run too, all with one shared script file beside the first",
    )


def run(args: argparse.Namespace) -> int:
    """Writes the page."""
    from automl.report.page import write_page
    from automl.types import InputError

    out = args.out or args.paths[0] / "report.html"
    if out.is_dir():
        raise InputError(f"--out {out} is a folder; name a file, as {out / 'report.html'}")
    try:
        if args.each:
            return _write_all(args.paths, out)
        print(f"wrote {write_page(args.paths, out)}")
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror}") from error
    return 0


def _write_all(paths: list[Path], out: Path) -> int:
    import os

    from automl.paths import atomic_write
    from automl.report.loading import load_runs
    from automl.report.page import plotly_script, write_page

    content = plotly_script()  # refuses before anything is written, as a page of no runs does
    print(f"wrote {write_page(paths, out, SCRIPT)}")
    atomic_write(out.parent / SCRIPT, content)
    runs = load_runs(*paths)
    for folder in map(Path, runs[runs["status"] == "done"]["run"].unique()):
        page = folder / "report.html"
        if page.resolve() != out.resolve():
            script = Path(os.path.relpath(out.parent / SCRIPT, folder)).as_posix()
            print(f"wrote {write_page([folder], page, script)}")
    return 0
