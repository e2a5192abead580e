"""One HTML page of a run or a sweep: everything in the file, nothing from the network."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from automl._version import __version__
from automl.journal import Journal
from automl.policy import Policy
from automl.report.comparing import BASE, amount, cells, compare, label
from automl.report.curves import (
    analysis_curves,
    probe_curves,
    scores,
    search_curves,
)
from automl.report.kernels import benches
from automl.report.loading import (
    UNREADABLE,
    finals,
    load_runs,
    none_finished,
    problems,
    strategies,
)
from automl.runs import CONFIG, ENVIRONMENT, JOURNAL, POLICY, POLICY_UNIFORM, RESULT, SWEEP
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
#: A sweep's page begins with the best strategy under each of at most so many budgets.
_MOST_FIGURES = 6
#: Scores are on the page with six decimals; a plot of less shows none of them.
_LEAST_RANGE = 1e-4
_NUMBERS = (
    "test_top1", "validation_top1", "score", "macs_ratio", "latency_ratio", "params_ratio",
    "size_bytes", "energy_mj", "latency_ms", "measured_latency_ms",
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
    # A "<" may begin what ends the script element that holds the data, or begins another.
    data = json.dumps(content, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    code = plotly_script() if script is None else f'</script><script src="{quote(script)}">'
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
    """What the page shows, as plain JSON without NaN.

    Args:
        paths: Folders of runs or sweeps.

    Raises:
        InputError: A path does not exist, or no run has finished.
    """
    runs = load_runs(*paths)
    found = finals(runs)
    if found.empty:
        raise InputError(none_finished(runs, paths))
    headings, rows = cells(_without_constants(compare(found)))
    names = _named(runs[runs["status"] == "done"].drop_duplicates("run"))
    folders = [Path(about["run"]) for about in names]
    contents, unreadable = _all_contents(names)
    timed, untimed = benches(folders[:_MOST_RUNS])
    everywhere = [Path(run) for run in runs["run"].unique()]
    written, unread = analysis_curves(everywhere)
    shown = {
        "table": {"headings": headings, "rows": rows},
        "costs": [pair for pair in COSTS if found[pair[0]].notna().any()],
        "gains": _gains(found),
        "networks": _networks(found),
        "dense": _dense(runs),
        "runs": [one.groups for one in contents[:_MOST_RUNS]],
        "searches": _searches(contents),
        "search_note": _search_note(found),
        **_sensitivity(written, contents),
        "benches": timed,
    }
    return {
        "title": _title(runs),
        "subtitle": _subtitle(runs, folders),
        "figures": _figures(runs, found) if len(folders) == 1 else _leaders(found),
        **shown,
        "problems": [*problems(runs), *unreadable, *untimed, *unread],
        "missing": _missing(shown),
        **_again(paths, folders),
        "foot": f"PrunePilot {__version__}, {datetime.now():%Y-%m-%d %H:%M}",
    }


# ---- what run folders hold


def _named(runs: pd.DataFrame) -> list[dict[Any, Any]]:
    """What :func:`load_runs` says of every run, and the ``label`` of its strategy in tables."""
    found = strategies(runs)
    return [{**row, "label": label({**row, "strategy": name})}
            for row, name in zip(runs.to_dict("records"), found, strict=True)]  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Contents:
    """What the page shows of one run."""

    problem: str
    strategy: str
    groups: dict[str, Any]
    scores: list[tuple[int, float]]
    probes: dict[str, Any]


def _all_contents(names: Sequence[Mapping[Any, Any]]) -> tuple[list[_Contents], list[str]]:
    """Of every run that can be read, and a line for every other."""
    contents, unreadable = [], []
    for about in names:
        try:
            contents.append(_contents(Path(about["run"]), about))
        except (InputError, *UNREADABLE) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
            unreadable.append(f"{about['run']}: only its result is shown ({reason})")
    return contents, unreadable


def _contents(folder: Path, about: Mapping[Any, Any]) -> _Contents:
    result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    rows, groups = Journal.read(folder / JOURNAL), _groups(folder, about)
    return _Contents(
        ", ".join(map(str, (about["model"], about["data"], about["budget"], about["score_name"]))),
        str(about["label"]),
        groups,
        scores(rows, result),
        probe_curves(rows, groups["groups"], groups["units"], str(about["score_name"])),
    )


def _groups(folder: Path, about: Mapping[Any, Any]) -> dict[str, Any]:
    """Units kept per group, found and uniform."""
    policy = Policy.load(folder / POLICY)
    other = None
    if (folder / POLICY_UNIFORM).is_file():
        kept = {d.target: d.kept for d in Policy.load(folder / POLICY_UNIFORM).decisions}
        other = [kept.get(d.target) for d in policy.decisions]
    return {
        "name": f"{about['label']}, {about['budget']}, seed {about['seed']}",
        "strategy": about["strategy"],
        "groups": [d.target for d in policy.decisions],
        "units": [d.units for d in policy.decisions],
        "found": [d.kept for d in policy.decisions],
        "uniform": other,
    }


def _searches(contents: Sequence[_Contents]) -> list[dict[str, Any]]:
    """Of every problem; scores that are equal on the page lie in the middle of its plot."""
    found = search_curves([(one.problem, one.strategy, one.scores) for one in contents])
    for search in found:
        low, high = search["range"]
        if high - low < _LEAST_RANGE:
            middle, margin = (low + high) / 2, _LEAST_RANGE / 2
            search["range"] = [middle - margin, middle + margin]
    return found


def _sensitivity(written: dict[str, Any], contents: Sequence[_Contents]) -> dict[str, Any]:
    """Of the verb, or of the run that tried most groups alone; nothing where it is one point."""
    found = written
    if _points(written) < 2 and contents:
        found = max((one.probes for one in contents), key=_points)
    return found if _points(found) > 1 else {"sensitivity": [], "sensitivity_metric": ""}


def _points(curves: Mapping[str, Any]) -> int:
    return sum(len(curve["kept"]) for curve in curves["sensitivity"])


def _missing(shown: Mapping[str, Any]) -> list[str]:
    """What these runs hold nothing of, and what would write it."""
    hints = []
    if not shown["sensitivity"]:
        hints.append("sensitivity curves: prunepilot sensitivity, or strategy=sensitivity or amc")
    if all(network["latency_ms"] is None for network in shown["networks"]):
        hints.append("predicted latency: a search with budget.latency_ms")
    if not any(bench["rows"] for bench in shown["benches"]):
        hints.append("time per layer, dense against sparse: prunepilot bench RUN")
    if not any("exported" in bench["name"] for bench in shown["benches"]):
        hints.append("latency in ONNX Runtime: prunepilot export RUN --format onnx --out DIR")
    return hints


# ---- what stands on top


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
    budgets = ", ".join(sorted(done["budget"].unique(), key=amount))
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
    columns = ["strategy", "variant", "budget", "seed", "tuned", *_NUMBERS]
    rows, families = found[columns].to_dict("records"), found["model"] + " on " + found["data"]
    return [
        _plain({**row, "strategy": label(row), "family": family})
        for row, family in zip(rows, families, strict=True)
    ]


def _dense(runs: pd.DataFrame) -> list[dict[str, Any]]:
    dense = runs[runs["network"] == "dense"].drop_duplicates(["model", "data"])
    return [
        _plain(row)
        for row in dense[["model", "test_top1", "validation_top1", "score"]].to_dict("records")
    ]


def _leaders(found: pd.DataFrame) -> list[dict[str, str]]:
    """The best strategy under every budget, for a page of several runs."""
    table = compare(found)
    figures = []
    for (model, _, budget), part in table.groupby(["model", "data", "budget"], sort=False):
        top = part["test_top1"].max()
        best = part[part["test_top1"] == top]
        gain, names = best["gain"].max(), [label(row) for row in best.to_dict("records")]
        said = not math.isnan(gain) and BASE not in set(best["strategy"])
        over = f", {100 * gain:+.2f} over uniform" if said else ""
        where = str(budget).replace(" of dense", "")
        where = where if table["model"].nunique() == 1 else f"{model}, {where}"
        figures.append({
            "value": f"{100 * top:.2f} %",
            "name": f"best test top-1 at {where}: {' = '.join(names)}{over}",
            "mood": "up" if gain > 0 else "",
        })  # fmt: skip
    return figures if len(figures) <= _MOST_FIGURES else []


def _gains(found: pd.DataFrame) -> list[tuple[str, str, int, int]]:
    """What can be on the vertical axis: column, name, factor, and 1 where more is better or -1."""
    gains = [("test_top1", "test top-1 %", 100, 1)]
    if found["validation_top1"].notna().any():
        gains.append(("validation_top1", "validation top-1 %", 100, 1))
    names = found["score_name"].unique()
    if len(names) == 1 and names[0] != "top1":
        gains.append(("score", f"validation {names[0]} (less is better)", 1, -1))
    return gains


def _search_note(found: pd.DataFrame) -> str:
    names = sorted(found["score_name"].unique())
    signed = ", ".join(name if name == "top1" else f"minus {name}" for name in names)
    return f"Score: {signed} on validation data, higher is better; only policies within the budget."


# ---- how to do it again


def _again(paths: Sequence[Path], folders: Sequence[Path]) -> dict[str, str]:
    """The commands of the sweeps, or of the first run, and its settings and environment."""
    config = (folders[0] / CONFIG).read_text(encoding="utf-8")
    environment = folders[0] / ENVIRONMENT
    about = environment.read_text(encoding="utf-8") if environment.is_file() else ""
    commands = [command for path in paths if (command := _sweep_command(path / SWEEP))]
    return {
        "command": "\n".join(commands) or _command(config),
        "settings": f"{config}\n{about}",
    }


def _sweep_command(file: Path) -> str:
    """Of a sweep; empty where the folder is none, or does not say."""
    try:
        overrides = json.loads(file.read_text(encoding="utf-8"))["overrides"]
        return f"prunepilot search -m {shlex.join(map(str, overrides))}"
    except UNREADABLE:
        return ""


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
