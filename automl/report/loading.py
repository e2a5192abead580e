"""Run folders as a table: ``automl.load_runs``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from automl.conf_files import conf_files
from automl.runs import ANALYSIS, CONFIG, FAILED, RESULT, SEARCHER, RunFolder, read_result
from automl.strategies import defaults
from automl.types import RESOURCES, InputError

if TYPE_CHECKING:
    import pandas as pd

#: One row per final network; of runs without a result one row, with NaN after ``problem``.
COLUMNS = (
    "run", "status", "problem", "model", "data", "strategy", "settings", "variant", "budget",
    "seed", "network", "tuned", "test_top1", "untuned_test_top1", "validation_top1", "score",
    "score_name",
    *RESOURCES, "measured_latency_ms", "latency_ratio", "macs_ratio", "params_ratio",
    "trials", "failed_trials", "search_seconds", "wall_seconds", "tuning_epochs",
)  # fmt: skip

#: What reading a damaged JSON file of a run may raise.
UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)

#: Settings that change no result, or that the table has columns for.
_TOLD = (
    "model", "data", "data.root", "seed", "run_dir", "baselines",
    "latency_budget_s", "threads", "device", "trace_deadline_s", "trust",
)  # fmt: skip
_TOLD_BELOW = ("strategy", "budget", "engine", "launcher", "logger")

#: Behind the name of a network that was fine-tuned.
TUNED = "tuned"
#: Runs lie at most so many folders below what is named.
_DEPTH = 4


def load_runs(*paths: str | os.PathLike[str]) -> pd.DataFrame:
    """What runs found, a row per final network.

    Args:
        paths: Run folders, sweeps, or folders that hold them.

    Returns:
        A frame with the columns ``COLUMNS``. ``status`` is ``done``, ``failed``, ``unfinished``,
        ``damaged``, ``analysis`` (``prunepilot sensitivity``) or ``python`` (a folder of
        ``automl.Searcher``, whose networks are in no folder); ``problem`` says why. ``network`` is
        ``dense``, ``found`` or the name of a
        baseline; a network that is both has a row for each. Costs are per example, in the unit
        of their name; ``variant`` says what a run sets that not all runs of its network do, apart
        from strategy, budget and seed; ``latency_ms`` is predicted, ``measured_latency_ms`` and
        ``latency_ratio`` (to dense) were measured side by side. Accuracies are in [0, 1];
        ``untuned_test_top1`` is that of a tuned network before its fine-tuning, NaN for others.

    Raises:
        InputError: A path does not exist, or holds no run.

    Example:
        >>> runs = automl.load_runs("runs/")
        >>> list(runs["network"])
        ['dense', 'found', 'uniform']
        >>> found = runs[runs["network"] == "found"]
        >>> bool((found["macs_ratio"] <= 0.5).all())
        True
    """
    import pandas as pd

    folders = [folder for path in paths for folder in _runs_below(Path(path))]
    rows = [row for folder in dict.fromkeys(folders) for row in _rows(folder)]
    _name_variants(rows)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _name_variants(rows: Sequence[dict[str, Any]]) -> None:
    """Says of every row what its run sets and others on the same network and data do not."""
    set_by: dict[tuple[Any, Any], dict[str, frozenset[str]]] = {}
    for row in rows:
        family = set_by.setdefault((row.get("model"), row.get("data")), {})
        family[row["run"]] = frozenset(row.pop("set", ()))
    for row in rows:
        family = set_by[row.get("model"), row.get("data")]
        common = frozenset.intersection(*family.values())
        parts = [*sorted(family[row["run"]] - common), row.pop("after", "")]
        row["variant"] = ", ".join(filter(None, parts))


def _runs_below(path: Path) -> list[Path]:
    if not path.is_dir():
        raise InputError(f"{path} is no folder; name a run, a sweep, or a folder of runs")
    found = sorted(_walk(path, _DEPTH))
    if not found:
        raise InputError(f"{path} holds no runs (no {CONFIG} in it or below)")
    return found


def _walk(path: Path, depth: int) -> Iterator[Path]:
    try:
        is_run = (path / CONFIG).is_file() or (path / FAILED).is_file()
        below = [] if is_run or not depth else list(path.iterdir())
    except OSError:  # a folder without rights counts as a damaged run, and is told of
        is_run, below = True, []
    if is_run:
        yield path
    for child in below:
        if child.is_dir() and not child.is_symlink():
            yield from _walk(child, depth - 1)


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    row: dict[str, Any] = {"run": str(folder)}
    try:
        # Without settings it failed before it began.
        config = RunFolder(folder).config() if RunFolder(folder).is_run else {}
        row |= _about_config(config) if config else {}
        if config.get("started_by") == SEARCHER:
            problem = "a search from Python: its trials are in trials.parquet"
            yield row | {"status": "python", "problem": problem}
            return
        if not (folder / RESULT).is_file():
            yield row | _without_result(folder)
            return
        result = read_result(folder / RESULT, config)
        rows = [row | found for found in _networks(result)]
    except (InputError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        text = " ".join(str(error).split())
        reason = text if isinstance(error, InputError | ValueError) else f"unreadable: {text}"
        yield row | {"status": "damaged", "problem": reason}
        return
    yield from rows


def _without_result(folder: Path) -> dict[str, str]:
    if (folder / ANALYSIS).is_file():  # of the verb, which has no final network
        return {"status": "analysis", "problem": ""}
    if not (folder / FAILED).is_file():
        return {"status": "unfinished", "problem": RunFolder(folder).how_to_resume}
    try:
        failure = json.loads((folder / FAILED).read_text(encoding="utf-8"))
        return {"status": "failed", "problem": str(failure["error"])}
    except UNREADABLE:
        return {"status": "failed", "problem": f"its {FAILED} is damaged"}


def _about_config(config: Mapping[str, Any]) -> dict[str, Any]:
    choices, model = config.get("choices", {}), config.get("model", {})
    strategy = choices.get("strategy") or _class_name(config.get("strategy", {}))
    return {
        "strategy": strategy,
        "settings": _changed(strategy, config.get("strategy", {})),
        "seed": config.get("seed"),
        "tuning_epochs": config.get("finetune", {}).get("epochs"),
        "set": [text for text in _set_by(config.get("overrides") or ()) if _tells(text)],
        "model": model.get("name") if isinstance(model, Mapping) else model,
    }


def _set_by(overrides: Iterable[object]) -> Iterator[str]:
    """The overrides, and in place of an experiment what its file sets."""
    for override in map(str, overrides):
        key, _, name = override.partition("=")
        file = conf_files().get(f"experiment/{name}") if key == "experiment" else None
        if file is None:
            yield override
        else:
            yield from _leaves({key: value for key, value in file.items() if key != "defaults"})


def _leaves(section: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """Such as ``repair.trial_images=384``."""
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}={value}"


def _tells(override: str) -> bool:
    """Whether a setting may change a result and stands in no column of its own."""
    key = override.partition("=")[0].lstrip("+~")
    return key not in _TOLD and key.partition(".")[0] not in _TOLD_BELOW


def _class_name(strategy: Mapping[str, Any]) -> str:
    # Runs started from Python note the class, others a path to it.
    return str(strategy.get("_target_", strategy.get("class", "?"))).rpartition(".")[2].lower()


def _changed(strategy: str, settings: Mapping[str, Any]) -> str:
    """Settings of a strategy that are not its defaults, as ``acting=0, credit=False``."""
    usual = defaults(strategy)
    changed = {
        key: value
        for key, value in settings.items()
        if key != "_target_" and usual.get(key, value) != value
    }
    return ", ".join(f"{key}={value}" for key, value in changed.items())


def _networks(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    dense = result["rows"][0]
    shared = {
        "status": "done",
        "problem": "",
        "model": result["model"],
        "data": result["data"],
        "budget": result["budget"],
        "score_name": result["score"],
        "trials": int(result["trials"]),
        "failed_trials": int(result["failed"]),
        "search_seconds": result.get("search_seconds"),
        "wall_seconds": result.get("wall_seconds"),
    }
    accuracies = {str(row["name"]): float(row["test_top1"]) for row in result["rows"]}
    for row in result["rows"]:
        names, *after = str(row["name"]).split(", ")
        tuned = TUNED in after
        figures = {
            "tuned": tuned,
            "after": ", ".join(part for part in after if part != TUNED),
            "test_top1": float(row["test_top1"]),
            "untuned_test_top1": accuracies.get(names) if tuned else None,
            "validation_top1": row["validation_top1"],
            "score": float(row["score"]),
            "macs": row["macs"],
            "params": row["params"],
            "macs_ratio": row["macs"] / dense["macs"],
            "params_ratio": row["params"] / dense["params"],
            **{name: value for name, value in row.get("costs", {}).items() if name in RESOURCES},
            "measured_latency_ms": row["latency_ms"],
            "latency_ratio": row["latency_ratio"],
        }
        for name in names.split(" = "):
            yield {**shared, "network": name, **figures}


def finals(runs: pd.DataFrame) -> pd.DataFrame:
    """The pruned networks of finished runs, one row per strategy, budget, seed and tuning.

    What a run found counts for its strategy, a baseline's network for the baseline. Where both a
    run of a strategy and a baseline beside another run say the same, the run is taken.

    Args:
        runs: As from :func:`load_runs`.

    Returns:
        The same columns; ``strategy`` names whose network it is, with settings that are not the
        defaults in brackets.
    """
    done = runs[(runs["status"] == "done") & (runs["network"] != "dense")].copy()
    own = done["network"] == "found"
    done["strategy"] = strategies(done).where(own, done["network"])
    # How long the strategy searched beside which a baseline was run says nothing of the baseline.
    done[["search_seconds", "wall_seconds"]] = done[["search_seconds", "wall_seconds"]].where(own)
    done.loc[~own, "trials"] = done["trials"].where(done["network"] != "uniform", 1)[~own]
    done = done.assign(_own=own).sort_values("_own", ascending=False, kind="stable")
    key = ["model", "data", "budget", "strategy", "variant", "seed", "tuned"]
    return done.drop_duplicates(key).drop(columns="_own").sort_index()


def strategies(runs: pd.DataFrame) -> pd.Series[str]:
    """The strategy of every row, with settings that are not the defaults in brackets."""
    names = runs["strategy"].astype(str)
    changed = runs["settings"].fillna("").astype(str)
    return names.where(changed == "", names + " (" + changed + ")")


def none_finished(runs: pd.DataFrame, paths: Iterable[Path]) -> str:
    """Why there is nothing to compare, in one line."""
    where = ", ".join(map(str, paths))
    reasons = list(problems(runs))
    if reasons:
        more = f", and {len(reasons) - 1} more" if len(reasons) > 1 else ""
        return f"no run has finished in {where}: {reasons[0]}{more}"
    return (
        f"{where} holds no networks: sensitivity analyses and searches from Python end with "
        "policies (prunepilot apply POLICY, SearchRun.export)"
    )


def problems(runs: pd.DataFrame) -> Iterable[str]:
    """A line per run that has no result."""
    broken = runs[~runs["status"].isin(["done", "analysis", "python"])]
    return [f"{row.run}: {row.status} ({row.problem})" for row in broken.itertuples()]
