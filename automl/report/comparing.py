"""Strategies against each other: means over seeds, and what is beyond chance.

For every network, budget and strategy: mean and standard error over seeds, the difference to
uniform pruning under the same budget, with the p-value of a paired t-test over the seeds
(two-sided; Student, 1908), and the difference to uniform pruning at the same measured latency, read
off the line through uniform's own points.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from automl.fitting import Floats
from automl.types import SIGNS, InputError

if TYPE_CHECKING:
    import pandas as pd

_GROUP = ["model", "data", "budget", "strategy", "variant", "tuned"]
#: Columns that are averaged over seeds.
FIGURES = (
    "test_top1", "untuned_test_top1", "validation_top1", "score", "macs", "params",
    "size_bytes", "energy_mj", "latency_ms", "measured_latency_ms", "latency_ratio",
    "macs_ratio", "params_ratio", "trials", "search_seconds", "wall_seconds", "tuning_epochs",
)  # fmt: skip
BASE = "uniform"

_AMOUNT = re.compile(r"<= ([\d.,]+(?:e[+-]\d+)?)")


def compare(finals: pd.DataFrame) -> pd.DataFrame:
    """One row per network, data, budget, strategy, variant and tuning.

    Args:
        finals: As from ``automl.report.loading.finals``.

    Returns:
        The columns of ``FIGURES`` (means over seeds), ``test_top1_error`` (standard error of the
        mean; NaN for one seed), ``score_name``, ``seeds``, ``gain`` (test top-1 over uniform's
        under the same budget), ``p`` (of the gain, NaN where it cannot be said) and
        ``gain_at_latency``.
    """
    import pandas as pd

    rows = []
    for key, group in finals.groupby(_GROUP, sort=False, dropna=False):
        row: dict[str, Any] = dict(zip(_GROUP, key, strict=True))
        row |= {name: _mean(group[name]) for name in FIGURES}
        accuracy = group["test_top1"].to_numpy(np.float64)
        row["score_name"] = ", ".join(sorted(group["score_name"].astype(str).unique()))
        row["seeds"] = group["seed"].nunique()
        row["test_top1_error"] = _standard_error(accuracy)
        same = (finals["model"] == row["model"]) & (finals["data"] == row["data"])
        same &= (finals["tuned"] == row["tuned"]) & (finals["strategy"] == BASE)
        same &= finals["variant"] == row["variant"]
        base = finals[same]
        row |= _against(group, base[base["budget"] == row["budget"]])
        row["gain_at_latency"] = _gain_at_latency(row, base)
        rows.append(row)
    order = ["model", "data", "budget", "tuned", "test_top1"]
    ascending = [True, True, True, True, False]
    return pd.DataFrame(rows).sort_values(order, ascending=ascending, key=_by_amount)


def _by_amount(column: pd.Series[Any]) -> pd.Series[Any]:
    """Sorts budgets by their first number, so that 5 % comes before 30 %."""
    return column.astype(str).map(amount) if column.name == "budget" else column


def amount(budget: str) -> float:
    """The first number of a budget as it is written, ``macs <= 1,000,000``; NaN without any."""
    found = _AMOUNT.search(budget)
    return math.nan if found is None else float(found[1].replace(",", ""))


def pareto_front(frame: pd.DataFrame, cost: str, gain: str = "test_top1") -> pd.DataFrame:
    """The rows that no other row beats in both columns, by rising cost.

    Args:
        frame: Any table of networks.
        cost: Column of which less is better.
        gain: Column of which more is better; of ``score`` what its ``score_name`` says.

    Raises:
        InputError: A column is not there or holds no numbers.
    """
    require_figures(frame, (cost, gain))
    found = frame.dropna(subset=[cost, gain])
    values = found[gain] * _sign(found, gain)
    order = values.sort_values(ascending=False, kind="stable").index
    order = found.loc[order].sort_values(cost, kind="stable").index
    ordered = values.loc[order]
    better = ordered > ordered.cummax().shift(fill_value=-math.inf)
    return found.loc[order][better]


def require_figures(frame: pd.DataFrame, columns: Sequence[str]) -> None:
    """Refuses columns without a figure.

    Raises:
        InputError: A column is not there or holds no numbers.
    """
    figures = [name for name in frame.select_dtypes("number") if frame[name].notna().any()]
    for column in columns:
        if column not in figures:
            measured = "; --time 60 measures latencies" if "latency" in column else ""
            raise InputError(
                f"no figures in column {column!r}; there are {', '.join(figures)}{measured}"
            )


def _sign(frame: pd.DataFrame, gain: str) -> float:
    """-1 where less is better: of scores that are a loss."""
    if gain != "score" or "score_name" not in frame:
        return 1.0
    names = sorted(frame["score_name"].astype(str).unique())
    if len(names) > 1:
        raise InputError(f"scores by {' and '.join(names)} cannot be compared; take test_top1")
    return SIGNS.get(names[0], 1.0) if names else 1.0


def _mean(values: pd.Series[Any]) -> float:
    found = values.dropna().to_numpy(np.float64)
    return float(found.mean()) if len(found) else math.nan


def _standard_error(values: Floats) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def _against(group: pd.DataFrame, base: pd.DataFrame) -> dict[str, float]:
    """Gain over the base, and its p-value, paired by seed."""
    if base.empty or group["strategy"].iloc[0] == BASE:
        return {"gain": math.nan, "p": math.nan}
    by_seed = base.set_index("seed")["test_top1"]
    by_seed = by_seed[~by_seed.index.duplicated()]
    # Uniform pruning has no seed of its own: where a seed was not run, the mean stands in.
    other = group["seed"].map(by_seed).fillna(by_seed.mean()).to_numpy(np.float64)
    gains = group["test_top1"].to_numpy(np.float64) - other
    return {"gain": float(gains.mean()), "p": paired_p(gains)}


def paired_p(differences: Floats) -> float:
    """Two-sided p-value of a paired t-test; NaN for fewer than two, or equal, differences."""
    if len(differences) < 2 or np.ptp(differences) < 1e-12:
        return math.nan
    from scipy.stats import ttest_1samp

    return float(ttest_1samp(differences, 0.0).pvalue)


def _gain_at_latency(row: dict[str, Any], base: pd.DataFrame) -> float:
    """Test top-1 over uniform's at the same latency ratio, within the range of uniform's points."""
    points = base[["latency_ratio", "test_top1"]].dropna().astype(float)
    points = points.groupby("latency_ratio").mean().sort_index()
    at, inside = row["latency_ratio"], len(points) > 1
    if row["strategy"] == BASE or not inside or not points.index[0] <= at <= points.index[-1]:
        return math.nan
    there = np.interp(at, points.index.to_numpy(), points["test_top1"].to_numpy())
    return float(row["test_top1"] - there)


# ---- as text


def cells(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Headings and rows for people; columns without any figure are left out."""
    made = [_cells(row) for row in table.to_dict("records")]
    headings = list(made[0]) if made else []
    used = [h for h in headings if any(row[h] not in ("-", "") for row in made)]
    return used, [[row[h] for h in used] for row in made]


def _cells(row: dict[str, Any]) -> dict[str, str]:
    error = "" if _missing(row["test_top1_error"]) else f" ± {100 * row['test_top1_error']:.2f}"
    gain = _signed(row["gain"])
    if not _missing(row["p"]):
        gain += f" (p {row['p']:.2f})" if row["p"] >= 0.01 else " (p < .01)"
    return {
        "model": str(row.get("model", "")),
        "data": str(row.get("data", "")),
        "budget": str(row["budget"]).replace(" of dense", ""),
        "strategy": label(row),
        "tuned": "yes" if row["tuned"] else "",
        "seeds": str(row["seeds"]),
        "test top-1 %": f"{100 * row['test_top1']:.2f}{error}",
        "val score": _score(row),
        "before tuning": _number(100 * row["untuned_test_top1"], ".2f"),
        "over uniform": gain,
        "at its latency": _signed(row["gain_at_latency"]),
        "MACs %": _number(100 * row["macs_ratio"], ".1f"),
        "params %": _number(100 * row["params_ratio"], ".1f"),
        "KB": _number(row["size_bytes"] / 1e3, ",.0f"),
        "energy mJ": _number(row["energy_mj"], ".3g"),
        "predicted ms": _number(row["latency_ms"], ".3g"),
        "measured ms": _number(row["measured_latency_ms"], ".3g"),
        "latency": _number(row["latency_ratio"], ".2f"),
        "trials": _number(row["trials"], ".0f"),
        "search s": _number(row["search_seconds"], ".0f"),
        "wall s": _number(row["wall_seconds"], ".0f"),
    }


def label(row: Mapping[str, Any]) -> str:
    """A strategy with what its runs set that others do not."""
    return ", ".join(filter(None, (str(row["strategy"]), str(row.get("variant") or ""))))


def _score(row: dict[str, Any]) -> str:
    """What the search went by, with its name."""
    if row["score_name"] == "top1":
        return f"top1 {100 * row['score']:.2f} %"
    return f"{row['score_name']} {row['score']:.3g}"


def _missing(value: Any) -> bool:
    return value is None or math.isnan(value)


def _number(value: float, form: str) -> str:
    return "-" if _missing(value) else format(value, form)


def _signed(value: float) -> str:
    return "-" if _missing(value) else f"{100 * value:+.2f}"


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(_plain(cell, "|") for cell in line) + " |" for line in lines)


def latex(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A LaTeX ``tabular``."""
    lines = [[_tex(cell) for cell in line] for line in (headings, *rows)]
    text = [" & ".join(line) + r" \\" for line in lines]
    columns = "l" * len(headings)
    return "\n".join(
        [rf"\begin{{tabular}}{{{columns}}}", r"\hline", text[0], r"\hline", *text[1:], r"\hline",
         r"\end{tabular}"]
    )  # fmt: skip


def _plain(text: str, mark: str) -> str:
    return text.replace(mark, f"\\{mark}")


def _tex(text: str) -> str:
    for mark in "&%$#_{}":
        text = text.replace(mark, f"\\{mark}")
    return text.replace("±", r"$\pm$").replace("<", "$<$")
