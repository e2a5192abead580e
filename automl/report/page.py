"""One HTML page of a run or a sweep: everything in the file, nothing from the network."""

from __future__ import annotations

import csv
import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from automl._version import __version__
from automl.journal import Journal
from automl.policy import Policy
from automl.report.comparing import cells, compare
from automl.report.kernels import benches
from automl.report.loading import finals, load_runs, problems
from automl.runs import CONFIG, ENVIRONMENT, JOURNAL, POLICY, POLICY_UNIFORM, RESULT
from automl.types import InputError

if TYPE_CHECKING:
    import pandas as pd

#: Columns that can be the cost axis, and what they are called.
COSTS = (
    ("macs_ratio", "MACs, part of dense"),
    ("latency_ratio", "measured latency, part of dense"),
    ("params_ratio", "parameters, part of dense"),
    ("size_bytes", "bytes"),
    ("energy_mj", "energy, mJ"),
)
#: Runs whose groups are shown; more would make a page that nobody scrolls.
_MOST_RUNS = 200
#: With so few runs every trial is drawn, not only the best so far.
_FEW = 3
_NUMBERS = (
    "test_top1", "macs_ratio", "latency_ratio", "params_ratio", "size_bytes", "energy_mj",
    "latency_ms", "measured_latency_ms",
)  # fmt: skip


def write_page(paths: Sequence[Path], out: Path, script: str | None = None) -> Path:
    """Writes the page of all runs below the paths.

    Args:
        paths: Folders of runs or sweeps.
        out: The file to write.
        script: Where the page finds plotly.min.js, relative to it; None puts it into the page.

    Raises:
        InputError: A path does not exist, no run has finished, or plotly is not installed.
    """
    from automl.paths import atomic_write

    content = page_data(paths)
    template = Template(files("automl.report").joinpath("page.html").read_text(encoding="utf-8"))
    # "</" would end the script element that holds the data.
    data = json.dumps(content, ensure_ascii=False, allow_nan=False).replace("</", "<\\/")
    code = plotly_script() if script is None else f'</script><script src="{script}">'
    title = content["title"].replace("&", "&amp;").replace("<", "&lt;")
    atomic_write(out, template.substitute(title=title, plotly=code, data=data))
    return out


def plotly_script() -> str:
    """Plotly's bundle.

    Raises:
        InputError: plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise InputError("reports need plotly: pip install 'prunepilot[report]'") from None
    script: str = get_plotlyjs()
    return script


def page_data(paths: Sequence[Path]) -> dict[str, Any]:
    """What the page shows, as plain JSON without NaN."""
    runs = load_runs(*paths)
    found = finals(runs)
    if found.empty:
        raise InputError("no run has finished, so there is nothing to report")
    headings, rows = cells(_without_constants(compare(found)))
    folders = [Path(run) for run in runs[runs["status"] == "done"]["run"].unique()]
    timed, unreadable = benches(folders[:_MOST_RUNS])
    return {
        "title": _title(runs),
        "subtitle": _subtitle(runs, folders),
        "figures": _figures(runs, found) if len(folders) == 1 else [],
        "table": {"headings": headings, "rows": rows},
        "costs": [pair for pair in COSTS if found[pair[0]].notna().any()],
        "networks": _networks(found),
        "dense": _dense(runs),
        "runs": [_groups(folder, runs) for folder in folders[:_MOST_RUNS]],
        "searches": _searches(folders, runs),
        "search_note": _search_note(found),
        **_sensitivity(map(Path, runs["run"].unique())),
        "benches": timed,
        "problems": [*problems(runs), *unreadable],
        **_again(folders),
        "foot": f"PrunePilot {__version__}, {datetime.now():%Y-%m-%d %H:%M}",
    }


def _without_constants(table: pd.DataFrame) -> pd.DataFrame:
    """Without model and data where the title says them."""
    same = [name for name in ("model", "data") if table[name].nunique() == 1]
    return table.drop(columns=same)


def _title(runs: pd.DataFrame) -> str:
    done = runs[runs["status"] == "done"]
    pairs = done[["model", "data"]].drop_duplicates()
    names = [f"{row.model} on {row.data}" for row in pairs.itertuples()]
    return f"{', '.join(names)}: pruned"


def _subtitle(runs: pd.DataFrame, folders: Sequence[Path]) -> str:
    done = runs[runs["status"] == "done"]
    budgets = ", ".join(sorted(done["budget"].unique()))
    strategies = ", ".join(done["strategy"].unique())
    count = "one run" if len(folders) == 1 else f"{len(folders)} runs"
    return f"{count} of {strategies}; budget {budgets}"


def _figures(runs: pd.DataFrame, found: pd.DataFrame) -> list[dict[str, str]]:
    """The numbers on top of a single run's page."""
    dense = runs[runs["network"] == "dense"].iloc[0]
    best = runs[runs["network"] == "found"].iloc[-1]
    uniform = found[(found["strategy"] == "uniform") & (found["tuned"] == best["tuned"])]
    figures = [
        (f"{100 * best['test_top1']:.2f} %", "test top-1", ""),
        (f"{100 * dense['test_top1']:.2f} %", "dense test top-1", ""),
    ]
    if not uniform.empty:
        gain = 100 * (best["test_top1"] - uniform.iloc[0]["test_top1"])
        mood = "up" if gain > 0 else "down" if gain < 0 else ""
        figures.append((f"{gain:+.2f}", "points over uniform pruning", mood))
    figures.append((f"{100 * best['macs_ratio']:.1f} %", "of the MACs", ""))
    figures.append((f"{100 * best['params_ratio']:.1f} %", "of the parameters", ""))
    if not math.isnan(float(best["latency_ratio"] or math.nan)):
        figures.append((f"{1 / best['latency_ratio']:.2f} x", "as fast, measured", ""))
    return [{"value": value, "name": name, "mood": mood} for value, name, mood in figures]


def _networks(found: pd.DataFrame) -> list[dict[str, Any]]:
    columns = ["strategy", "budget", "seed", "tuned", *_NUMBERS]
    return [_plain(row) for row in found[columns].to_dict("records")]


def _dense(runs: pd.DataFrame) -> list[dict[str, Any]]:
    dense = runs[runs["network"] == "dense"].drop_duplicates(["model", "data"])
    return [_plain(row) for row in dense[["model", "test_top1"]].to_dict("records")]


def _groups(folder: Path, runs: pd.DataFrame) -> dict[str, Any]:
    """Units kept per group, found and uniform."""
    policy = Policy.load(folder / POLICY)
    about = runs[runs["run"] == str(folder)].iloc[0]
    other = None
    if (folder / POLICY_UNIFORM).is_file():
        kept = {d.target: d.kept for d in Policy.load(folder / POLICY_UNIFORM).decisions}
        other = [kept.get(d.target) for d in policy.decisions]
    return {
        "name": f"{about['strategy']}, {about['budget']}, seed {about['seed']}",
        "strategy": about["strategy"],
        "groups": [d.target for d in policy.decisions],
        "units": [d.units for d in policy.decisions],
        "found": [d.kept for d in policy.decisions],
        "uniform": other,
    }


# ---- search curves


def _searches(folders: Sequence[Path], runs: pd.DataFrame) -> list[dict[str, Any]]:
    """Curves of the best score so far, by problem and strategy, over seeds."""
    grouped: dict[str, dict[str, list[list[list[float]]]]] = {}
    for folder in folders:
        about = runs[runs["run"] == str(folder)].iloc[0]
        score = f"{about['model']}, {about['budget']}"
        trials = _scores(folder)
        if trials:
            grouped.setdefault(score, {}).setdefault(str(about["strategy"]), []).append(trials)
    return [
        {"name": name, **_curves(by_strategy, len(folders) <= _FEW)}
        for name, by_strategy in grouped.items()
    ]


def _scores(folder: Path) -> list[list[float]]:
    """(number, score) of every trial within the budget that did not fail, in order."""
    result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    limits, found = result.get("limits", {}), []
    # What comes after the search's own trials is the uniform policy, for the table.
    rows = (row for row in Journal.read(folder / JOURNAL) if 0 <= row["index"] < result["trials"])
    for number, row in enumerate(rows, 1):
        within = row["status"] == "ok" and all(
            row["costs"].get(name, 0.0) <= most * (1 + 1e-9) for name, most in limits.items()
        )
        if within:
            found.append([number, float(row["score"])])
    return found


def _curves(by_strategy: Mapping[str, list[list[list[float]]]], few: bool) -> dict[str, Any]:
    curves, ends = [], []
    # Strategies that ended early stay where they were.
    length = int(max(trials[-1][0] for runs in by_strategy.values() for trials in runs))
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


def _best_so_far(trials: Sequence[Sequence[float]], length: int) -> np.ndarray[Any, Any]:
    """After every trial; before the first that counts, its score."""
    scores = np.full(length, -math.inf)
    for number, score in trials:
        scores[int(number) - 1] = score
    best = np.maximum.accumulate(scores)
    return np.where(np.isfinite(best), best, trials[0][1])


def _search_note(found: pd.DataFrame) -> str:
    names = ", ".join(sorted(found["score_name"].unique()))
    return f"Score: {names} on validation data, higher is better; only policies within the budget."


# ---- what may be there


def _sensitivity(folders: Iterable[Path]) -> dict[str, Any]:
    for folder in folders:
        path = folder / "sensitivity.csv"
        if path.is_file():
            return _sensitivity_curves(path)
    return {"sensitivity": [], "sensitivity_metric": ""}


def _sensitivity_curves(path: Path) -> dict[str, Any]:
    """A curve per group, of the damage that ``prunepilot sensitivity`` wrote first."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["status"] == "ok"]
    damage = next((name for name in (rows[0] if rows else ()) if name.endswith("_damage")), "")
    groups: dict[str, dict[str, Any]] = {}
    for row in rows:
        one = groups.setdefault(row["target"], {"group": row["target"], "kept": [], "damage": []})
        one["kept"].append(float(row["keep"]))
        one["damage"].append(max(float(row[damage]), 1e-6))
    name = damage.removesuffix("_damage")
    return {"sensitivity": list(groups.values()), "sensitivity_metric": f"damage ({name})"}


def _again(folders: Sequence[Path]) -> dict[str, str]:
    """The command, settings and environment of the first run."""
    config = (folders[0] / CONFIG).read_text(encoding="utf-8")
    environment = folders[0] / ENVIRONMENT
    about = environment.read_text(encoding="utf-8") if environment.is_file() else ""
    return {"command": _command(config), "settings": f"{config}\n{about}"}


def _command(config: str) -> str:
    from automl.runs import from_yaml

    overrides = from_yaml(config).get("overrides")
    if not overrides:
        return "prunepilot search (settings below)"
    return f"prunepilot search {shlex.join(overrides)}"


def _plain(row: Mapping[Any, Any]) -> dict[str, Any]:
    """Without NaN and NumPy's numbers, which JSON does not know."""

    def plain(value: Any) -> Any:
        if hasattr(value, "item"):
            value = value.item()
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {str(name): plain(value) for name, value in row.items()}
