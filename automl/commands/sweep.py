"""``prunepilot search -m``: many searches from one command.

Every combination of the values is a *cell*: a run in a folder of its own, named after what was
varied. Cells that are done are skipped, cells that were cut go on from their journal, so a sweep
that was killed is finished by the same command. A cell that fails says why in ``failed.json`` and
stops no other.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from automl.commands.build import Bench
from automl.commands.compose import compose, expand, quoted, unquoted
from automl.commands.depth import blocks_to_remove
from automl.commands.intact import fault_of, is_finished
from automl.commands.overview import overview, show_end
from automl.commands.running import SearchRun, failures_of
from automl.commands.settings import instantiate
from automl.commands.standing import Entry, Standing
from automl.hashing import digest
from automl.journal import Journal, Row
from automl.paths import atomic_write
from automl.problem import SearchStopped
from automl.progress import hidden
from automl.runs import FAILED, FINALISTS, JOURNAL, SWEEP, InUseError, RunFolder, row_of_found
from automl.signals import behind, exit_code, unmasked, word
from automl.trials import check_row
from automl.types import InputError

#: Settings that do not change what a ``Bench`` holds besides its strategy.
_NOT_BENCH = frozenset(
    "strategy budget trials run_dir baselines finetune codebook max_failures latency_budget_s "
    "choices launcher engine logger overrides".split()
)
#: Settings that decide what can be pruned and what it costs.
_OF_COSTS = ("model", "granularity", "exclude", "energy", "device", "trace_deadline_s")
#: What the overview and comparisons go by besides settings.
_OWN_AXES = ("strategy=", "seed=")
#: Characters of a setting that may stand in a folder's name.
_SAFE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789=.,-_[]+")


@dataclass(frozen=True, slots=True)
class Cell:
    """One search of a sweep.

    Attributes:
        name: What was varied, as in ``strategy=amc,seed=0``; the folder is called so.
        setting: The same without strategy and seed.
        overrides: All settings.
        folder: The run folder.
        quiet: Whether it leaves showing its progress to the overview.
    """

    name: str
    setting: str
    overrides: tuple[str, ...]
    folder: str
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a cell.

    Attributes:
        status: ``done``, ``failed``, or ``elsewhere`` where another command runs it.
        text: The result, or the reason, in one line.
        seconds: How long it took.
        top1: Test top-1 of what it found, in [0, 1]; None where there is no result.
    """

    status: str
    text: str
    seconds: float
    top1: float | None = None


def run_sweep(overrides: Sequence[str]) -> int:
    """Runs all cells that are not done; returns 0, or 1 if some failed.

    Args:
        overrides: Settings in Hydra's syntax, some with several values.

    Raises:
        InputError: A setting is off in any cell, a budget out of reach, or the folder cannot be
            written; nothing has run then.
    """
    folder = Path(_run_dir(overrides))
    if RunFolder(folder).is_run:
        raise InputError(f"run_dir {folder} holds a single run; choose another for the sweep")
    cells = cells_of(overrides, folder)
    configs = [compose(cell.overrides) for cell in cells]
    for cell, config in zip(cells, configs, strict=True):
        with _named(cell):
            SearchRun.of(config)
    done = [cell for cell in cells if _is_done(cell)]
    _require_reachable(cells, configs, done)
    launcher = instantiate(configs[0]["launcher"], "launcher")
    _start(folder, [cell.name for cell in cells], overrides)
    number = f"{len(cells)} cell{'' if len(cells) == 1 else 's'}"
    print(f"sweep: {folder}, {number}, {len(done)} done before", flush=True)
    for fault in _faults(cells):
        print(f"{fault}: the last phase of its cell runs again, from the trials", flush=True)
    standing = _standing(cells, configs, done)
    try:
        with unmasked(), overview(standing) as shown:
            to_run = [replace(cell, quiet=shown.live) for cell in cells if cell not in done]
            for cell, outcome in launcher.launch(run_cell, to_run, folder):
                ended = _lost(cell, outcome)
                shown.add(cell.name, ended.status, ended.text, ended.seconds, ended.top1)
    except KeyboardInterrupt as stop:
        print(f"\nprunepilot: {word(stop)}; the same command goes on with it", file=sys.stderr)
        return exit_code(stop)
    show_end(standing, folder)
    return 1 if standing.failed else 0


def _require_reachable(
    cells: Sequence[Cell], configs: Sequence[Mapping[str, Any]], done: Sequence[Cell]
) -> None:
    """Refuses budgets that no network of their cell meets; every network is traced once for it."""
    benches: dict[str, Bench] = {}
    for cell, config in zip(cells, configs, strict=True):
        if cell in done or blocks_to_remove(config):  # which blocks, data decides
            continue
        key = digest({name: config[name] for name in _OF_COSTS})
        try:
            bench = benches.get(key) or _shared_bench(config)
            _ = bench.plan, bench.rounding, bench.costs
        except Exception:  # it says so itself, and stops no other
            continue
        benches[key] = bench
        with _named(cell):
            replace(SearchRun.of(config), bench=bench).require_reachable()


def _start(folder: Path, names: Sequence[str], overrides: Sequence[str]) -> None:
    """Makes the folder, and writes what the sweep consists of."""
    plan = {
        "schema": "prunepilot/sweep", "version": 1, "cells": names, "overrides": list(overrides)
    }  # fmt: skip
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / SWEEP, json.dumps(plan, indent=2) + "\n")
    except OSError as error:
        raise InputError(f"run_dir {folder} cannot be written: {error.strerror}") from error


def _standing(
    cells: Sequence[Cell], configs: Sequence[Mapping[str, Any]], done: Sequence[Cell]
) -> Standing:
    entries = [
        Entry(
            cell.name,
            str(config["choices"]["strategy"]),
            cell.setting,
            Path(cell.folder),
            int(config["trials"]),
        )
        for cell, config in zip(cells, configs, strict=True)
    ]
    standing = Standing(entries, [cell.name for cell in done])
    for cell in done:
        standing.known(cell.name, _result_of(cell)[1])
    return standing


def _is_done(cell: Cell) -> bool:
    """Whether there is a result with all its files; a cell that lost some is done again."""
    folder = RunFolder(Path(cell.folder))
    with contextlib.suppress(InputError):
        return is_finished(folder) and not failures_of(folder.result())
    return False


def _faults(cells: Sequence[Cell]) -> list[str]:
    """What finished cells have lost, in words."""
    folders = [RunFolder(Path(cell.folder)) for cell in cells]
    return [fault for one in folders if one.is_done and (fault := fault_of(one)) is not None]


def cells_of(overrides: Sequence[str], folder: Path) -> list[Cell]:
    """The cells of a sweep, in the order of the values.

    Raises:
        InputError: An override cannot be read, or two cells would be the same.
    """
    named = _named_settings(overrides)
    names = [name for name, _, _ in named]
    if len(set(names)) < len(names):
        raise InputError("two cells of the sweep would be the same; give every value once")
    paths = [folder / name for name in _folder_names(names)]
    return [
        Cell(name, setting, (*texts, f"run_dir={quoted(str(path))}"), str(path))
        for (name, setting, texts), path in zip(named, paths, strict=True)
    ]


def _named_settings(overrides: Sequence[str]) -> list[tuple[str, str, list[str]]]:
    """Name, setting and overrides of every cell, the last without ``run_dir``."""
    fixed = [text for text in overrides if not _is_run_dir(text)]
    combinations = expand(fixed)
    varied = [i for i, texts in enumerate(zip(*combinations, strict=True)) if len(set(texts)) > 1]
    named = []
    for texts in combinations:
        changed = [texts[i] for i in varied]
        setting = ",".join(text for text in changed if not text.startswith(_OWN_AXES))
        named.append((",".join(changed) or "only", setting, texts))
    return named


def _folder_names(names: Sequence[str]) -> list[str]:
    """What cells' folders are called: those that would be called alike get a part of a hash."""
    plain = ["".join(c if c in _SAFE else "_" for c in name) for name in names]
    counts = Counter(plain)
    return [
        short if counts[short] == 1 else f"{short}-{digest(name)[:8]}"
        for name, short in zip(names, plain, strict=True)
    ]


def run_cell(cell: Cell) -> Outcome:
    """Runs one cell, quietly; raises only to interrupt."""
    started = time.monotonic()
    failed = Path(cell.folder) / FAILED
    printed = io.StringIO()
    try:
        config = compose(cell.overrides)
        run = SearchRun.of(config, _shared_bench(config), sister_rows(Path(cell.folder)))
        with contextlib.redirect_stdout(printed), hidden(cell.quiet):
            code = run.execute(title=cell.name, train_again=True)
        text, top1 = _result_of(cell)
        if code:
            text = "; ".join(failures_of(run.folder.result()))
            _note_failure(failed, text)
            return Outcome("failed", text, time.monotonic() - started, top1)
        failed.unlink(missing_ok=True)
        return Outcome("done", text, time.monotonic() - started, top1)
    except InUseError:  # nothing is wrong with it
        text = "another command runs it, left alone"
        return Outcome("elsewhere", text, time.monotonic() - started)
    except Exception as error:
        if (stop := behind(error)) is not None:
            raise stop from None
        text = " ".join(str(error).split()) or type(error).__name__
        expected = isinstance(error, InputError | SearchStopped)
        reason = text if expected else f"{type(error).__name__}: {text}"
        _note_failure(failed, reason)
        return Outcome("failed", reason, time.monotonic() - started)


# What cells of one process have in common: the network, its trace and the data.
_BENCHES: dict[str, Bench] = {}


def _key(config: Mapping[str, Any]) -> str:
    parts = {name: value for name, value in config.items() if name not in _NOT_BENCH}
    # The seed only matters for random weights, to criteria that look at more than weights, and to
    # short training.
    if config["model"].get("checkpoint") and not Bench(config).criterion.needs:
        del parts["seed"]
    short = config["short_term"]
    if short["finetune"]["epochs"] == 0:
        parts["short_term"] = {**short, "finetune": {**short["finetune"], "seed": None}}
    return digest(parts)


def _shared_bench(config: Mapping[str, Any]) -> Bench:
    key = _key(config)
    known = _BENCHES.get(key)
    if known is None:
        _BENCHES.clear()  # one network at a time in memory
    _BENCHES[key] = Bench(config) if known is None else known.sharing(config)
    return _BENCHES[key]


def sister_rows(folder: Path) -> list[Row]:
    """What other cells of the sweep have scored, the dense network included.

    Journals that cannot be read now (a cell may be writing its own) are left out.
    """
    rows: list[Row] = []
    for name in (JOURNAL, FINALISTS):
        for path in sorted(folder.parent.glob(f"*/{name}")):
            if path.parent != folder:
                with contextlib.suppress(InputError), warnings.catch_warnings(action="ignore"):
                    rows += filter(_is_whole, Journal.read(path))
    return rows


def _is_whole(row: Row) -> bool:
    with contextlib.suppress(InputError):
        return bool(check_row(row))
    return False


def _note_failure(path: Path, reason: str) -> None:
    content = {"error": reason, "time": datetime.now().astimezone().isoformat(timespec="seconds")}
    # Where not even this can be written, the overview still says so.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _lost(cell: Cell, outcome: Any) -> Outcome:
    """The outcome, or that of a cell whose process died before it could say anything."""
    if isinstance(outcome, Outcome):
        return outcome
    reason = f"its process was lost ({type(outcome).__name__})"
    _note_failure(Path(cell.folder) / FAILED, reason)
    return Outcome("failed", reason, 0.0)


def _result_of(cell: Cell) -> tuple[str, float]:
    """The result in one line, and test top-1."""
    result = RunFolder(Path(cell.folder)).result()
    row = row_of_found(result)
    score = f"{result['score']} {row['score']:.4f}, " if result["score"] != "top1" else ""
    return f"{score}test top-1 {100 * row['test_top1']:.2f} %", float(row["test_top1"])


def _is_run_dir(override: str) -> bool:
    return override.lstrip("+").startswith("run_dir=")


def _run_dir(overrides: Sequence[str]) -> str:
    given = [text.partition("=")[2] for text in overrides if _is_run_dir(text)]
    if given and given[-1]:
        folder = unquoted(given[-1])
        if "${" in folder:
            raise InputError(
                f"run_dir of a sweep is one folder for all cells, got {folder}: write it out"
            )
        return folder
    return f"runs/sweep-{f'{datetime.now():%Y%m%d-%H%M%S-%f}'[:-3]}"


@contextlib.contextmanager
def _named(cell: Cell) -> Iterator[None]:
    """Says which cell has bad input."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{cell.name}: {error}") from None
