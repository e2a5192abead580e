"""``prunepilot sensitivity``: how much each group alone hurts, and what budgets cost by it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from automl.commands.options import add_override_arguments
from automl.signals import exit_code, unmasked, word

if TYPE_CHECKING:
    from automl.commands.running import SearchRun
    from automl.problem import Problem, Trial

SUMMARY = "show how much pruning each group alone hurts, and what any budget costs by it"
EXAMPLE = (
    "prunepilot sensitivity model=digits trials=60 --budgets 0.5,0.25 run_dir=runs/sensitivity"
)

#: Key of the settings in config.yaml that says which verb the folder is of.
VERB = "verb"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's options."""
    parser.add_argument(
        "--budgets",
        metavar="F,F,...",
        type=_numbers,
        default="0.75,0.5,0.35,0.25",
        help="fractions of dense of what budget.* limits, a policy each (default: %(default)s)",
    )
    parser.add_argument(
        "--drops",
        metavar="D,D,...",
        type=_numbers,
        default="0.005,0.01,0.02",
        help="drops of top-1 in [0, 1] that the table has a column for (default: %(default)s)",
    )
    parser.add_argument(
        "--damages",
        metavar="D,D,...",
        type=_numbers,
        default="0.01,0.03,0.1",
        help="the same for scoring.score, unless that is top1 (default: %(default)s)",
    )
    add_override_arguments(parser)


def _numbers(text: str) -> list[float]:
    """Comma-separated numbers; argparse turns the error into one line."""
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"numbers such as 0.5,0.25, got {text!r}") from None


def run(args: argparse.Namespace) -> int:
    """Analyses, or shows again what was analysed."""
    from automl.commands.compose import compose

    _check(args)
    return execute(compose(args.overrides), args)


def execute(config: Mapping[str, Any], args: argparse.Namespace | None = None) -> int:
    """Runs an analysis to its end, from wherever its folder stands.

    Args:
        config: The settings, resolved.
        args: What to show; None shows the defaults.

    Returns:
        0, 1 where trials failed, 130 or 143 where it was interrupted or terminated.
    """
    from automl.commands.running import SearchRun
    from automl.problem import SearchStopped

    if args is None:
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        args = parser.parse_args([])
    run = SearchRun.of({VERB: "sensitivity", **config})
    try:
        with unmasked():
            _execute(run, args)
        return 0
    except KeyboardInterrupt as stop:
        kept = run.folder.is_run
        hint = f"; go on with: {run.folder.how_to_resume}" if kept else ""
        print(f"\nprunepilot: {word(stop)}{hint}", file=sys.stderr)
        return exit_code(stop)
    except SearchStopped as error:
        print(f"prunepilot: failed: {error} ({run.folder.how_to_resume})", file=sys.stderr)
        return 1


def _execute(run: SearchRun, args: argparse.Namespace) -> None:
    from contextlib import ExitStack

    from automl.commands.sensitivity_report import Report
    from automl.journal import Journal
    from automl.progress import progress
    from automl.runs import JOURNAL, TRIALS
    from automl.strategies.sensitivity import analyse

    run.prove()
    with ExitStack() as engine, ExitStack() as locked:
        scoring = engine.enter_context(run.with_engine())  # may refuse: nothing is written yet
        locked.enter_context(run.folder.lock())
        run.start()
        print(f"run folder: {run.folder.path}", flush=True)
        with Journal(run.folder.file(JOURNAL)) as journal:
            trials = run.config["trials"]
            with progress(trials, "sensitivity") as shown:
                problem = scoring.problem(
                    journal, lambda trial: shown.update(trial.index + 1, _text(trial))
                )
                _ = problem.dense  # first: where it cannot be scored, nothing can
                analysis = analyse(problem, trials - 1)
            engine.close()  # its workers are of no more use
            journal.write_parquet(run.folder.file(TRIALS))
        report = Report(problem, analysis, run.config["scoring"]["score"])
        report.show(args.damages, args.drops)
        report.write(run.folder.path)
        report.answer(args.budgets, lambda fraction: _problem_at(run, fraction), run.folder.path)


def _problem_at(run: SearchRun, fraction: float) -> Problem:
    """The same problem with a fraction of dense as the limit of whatever is limited."""
    from automl.budget import Budget

    limited = Budget.parse(run.config["budget"]).to_dict()
    budget = {name: {"fraction": fraction} for name in limited}
    config = {**run.config, "budget": budget}
    # Its own bench: what a latency budget corrects predictions by belongs to the budget.
    return replace(run, config=config, bench=run.bench.sharing(config)).problem()


def _text(trial: Trial) -> str:
    """What is being pruned."""
    pruned = [d for d in trial.policy.decisions if d.kept < d.units]
    if not pruned:
        return "dense"
    more = f" and {len(pruned) - 1} more" if len(pruned) > 1 else ""
    return f"{pruned[0].target}{more} keeps {pruned[0].kept} of {pruned[0].units}"


def _check(args: argparse.Namespace) -> None:
    """Refuses what can be refused before anything is loaded.

    Raises:
        InputError: A number is out of range.
    """
    from automl.types import InputError

    for name, values, most in (
        ("--budgets", args.budgets, 1.0),
        ("--drops", args.drops, 1.0),
        ("--damages", args.damages, float("inf")),
    ):
        for value in values:
            if not 0 < value <= most:
                rule = "positive" if most > 1 else "in (0, 1]"
                raise InputError(f"{name} must be {rule}, got {value:g}")
