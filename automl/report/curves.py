"""Curves of a report, from the trials of runs: the search, and one group pruned alone."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from automl.engines.errors import one_line
from automl.journal import Row
from automl.report.loading import UNREADABLE
from automl.runs import ANALYSIS

#: With so few runs every trial is drawn, not only the best so far.
_FEW = 3
#: Damage is drawn on a logarithmic axis.
_LEAST = 1e-6

#: (number of the trial, score).
_Point = tuple[int, float]


def scores(rows: Sequence[Row], result: Mapping[str, Any]) -> list[_Point]:
    """(number, score) of every trial within the budget that did not fail, in order.

    Args:
        rows: Of the run's journal. The last of a trial counts: those that failed when a search was
            cut are scored again when it goes on, and engines write trials as they end.
        result: The run's ``result.json``.
    """
    limits, found = result.get("limits", {}), []
    # What comes after the search's own is the uniform policy, for the table. Earlier versions did
    # not say how many networks there were, which are fewer where policies were tried twice.
    networks = result.get("networks", result["trials"])
    own = {row["index"]: row for row in rows if 0 <= row["index"] < networks}
    for index, row in sorted(own.items()):
        within = row["status"] == "ok" and all(
            row["costs"].get(name, 0.0) <= most * (1 + 1e-9) for name, most in limits.items()
        )
        if within:
            found.append((index + 1, float(row["score"])))
    return found


def search_curves(runs: Sequence[tuple[str, str, list[_Point]]]) -> list[dict[str, Any]]:
    """Best score so far, by problem and strategy, over seeds.

    Args:
        runs: (problem, strategy, what ``scores`` gives) of every run.

    Returns:
        For every problem its ``name``, ``curves`` and the ``range`` of the score to show.
    """
    grouped: dict[str, dict[str, list[list[_Point]]]] = {}
    for problem, strategy, trials in runs:
        if trials:
            grouped.setdefault(problem, {}).setdefault(strategy, []).append(trials)
    return [
        {"name": name, **_curves(by_strategy, len(runs) <= _FEW)}
        for name, by_strategy in grouped.items()
    ]


def _curves(by_strategy: Mapping[str, list[list[_Point]]], few: bool) -> dict[str, Any]:
    curves, ends = [], []
    # Strategies that ended early stay where they were.
    length = max(trials[-1][0] for runs in by_strategy.values() for trials in runs)
    for strategy, runs in by_strategy.items():
        best = np.stack([_best_so_far(trials, length) for trials in runs])
        mean = best.mean(axis=0)
        spread = best.std(axis=0, ddof=1) / math.sqrt(len(best)) if len(best) > 1 else 0 * mean
        curves.append({
            "strategy": strategy,
            "seeds": len(best),
            "mean": np.round(mean, 6).tolist(),
            "error": np.round(spread, 6).tolist(),
            "trials": runs[0] if few else None,
        })  # fmt: skip
        ends += [mean[0], mean[-1]]
    low, high = min(ends), max(ends)
    margin = 0.15 * (high - low) or 0.05 * abs(high) or 1.0
    return {"curves": curves, "range": [low - margin, high + margin]}


def _best_so_far(trials: Sequence[_Point], length: int) -> np.ndarray[Any, Any]:
    """After every trial; before the first that counts, its score."""
    found = np.full(length, -math.inf)
    for number, score in trials:
        found[number - 1] = score
    best = np.maximum.accumulate(found)
    return np.where(np.isfinite(best), best, trials[0][1])


def analysis_curves(folders: Iterable[Path]) -> tuple[dict[str, Any], list[str]]:
    """Sensitivity that ``prunepilot sensitivity`` wrote, a curve per group.

    Returns:
        That of the first folder that holds any, and a line for every table that cannot be read.
    """
    found, unreadable = dict[str, Any](), list[str]()
    for path in (folder / ANALYSIS for folder in folders):
        if not path.is_file():
            continue
        try:
            own = _from_table(path)
        except UNREADABLE as error:
            unreadable.append(f"{path}: unreadable ({one_line(error)[:80]})")
        else:
            found = found or own
    return found or {"sensitivity": [], "sensitivity_metric": ""}, unreadable


def _from_table(path: Path) -> dict[str, Any]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["status"] == "ok"]
    damage = next((name for name in (rows[0] if rows else ()) if name.endswith("_damage")), "")
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        point = float(row["keep"]), float(row[damage])
        if not all(map(math.isfinite, point)):
            raise ValueError(f"{row['target']} has a damage of {row[damage]}")
        points.setdefault(row["target"], []).append(point)
    return _sensitivity(points, damage.removesuffix("_damage"))


def probe_curves(
    rows: Iterable[Row], targets: Sequence[str], units: Sequence[int], metric: str
) -> dict[str, Any]:
    """Sensitivity from a search's own trials: those that prune one group and no other.

    Args:
        rows: Of journals of searches on one network with the same scorer.
        targets: Names of the groups.
        units: Of every group of the dense network.
        metric: What the score is made of.

    Returns:
        A curve per group; none where the dense network or such trials are missing.
    """
    known: dict[tuple[int, ...], float] = {}
    for row in rows:
        if row["status"] == "ok" and len(row["kept"]) == len(units):
            known.setdefault(tuple(row["kept"]), float(row["score"]))
    dense = known.get(tuple(units))
    points: dict[str, list[tuple[float, float]]] = {}
    for kept, score in known.items():
        pruned = [i for i, count in enumerate(kept) if count != units[i]]
        if dense is not None and len(pruned) == 1:
            (i,) = pruned
            points.setdefault(targets[i], []).append((kept[i] / units[i], dense - score))
    ordered = {name: sorted(points[name]) for name in targets if name in points}
    return _sensitivity(ordered, metric)


def _sensitivity(points: Mapping[str, list[tuple[float, float]]], metric: str) -> dict[str, Any]:
    curves = [
        {
            "group": group,
            "kept": [kept for kept, _ in found],
            "damage": [max(damage, _LEAST) for _, damage in found],
        }
        for group, found in points.items()
    ]
    return {"sensitivity": curves, "sensitivity_metric": f"damage ({metric})" if curves else ""}
