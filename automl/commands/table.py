"""The final table: dense, uniform and found side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_FORMS = {
    "modules": "the found network keeps the model's own classes",
    "graph": "the found network is a graph module, because sizes written in forward had to change",
}
_EXHAUSTED = (
    "the search ended before its trials: within the budget it found no new policy; "
    "granularity.rounding decides how many there are"
)


@dataclass(frozen=True, slots=True)
class Row:
    """One final network.

    Attributes:
        name: ``dense``, ``uniform`` or ``found``, with ``, tuned`` after fine-tuning.
        macs: Multiply-accumulates of one example.
        params: Trainable parameters.
        score: Validation score, in the metric that the search ranked by.
        validation_top1: In [0, 1], None where there are no labels.
        test_top1: In [0, 1], measured once.
        latency_ms: Median time of a pass, of one example on one thread where latency is no budget;
            None where it was not measured.
        latency_ratio: To the dense network, side by side.
        costs: All costs that the cost models count, by resource.
    """

    name: str
    macs: int
    params: int
    score: float
    validation_top1: float | None
    test_top1: float
    latency_ms: float | None = None
    latency_ratio: float | None = None
    costs: Mapping[str, float] = field(default_factory=dict)


def print_table(rows: Sequence[Row], result: Mapping[str, Any]) -> None:
    """Prints the rows, dense first, and the sentence a reader needs to understand them.

    Args:
        rows: The networks, the dense one first.
        result: What result.json holds beside the rows.
    """
    from rich.table import Table

    from automl.commands.wide_table import show

    title = f"{result['model']} on {result['data']}, {result['budget']}"
    table = Table(title=title, title_justify="left")
    table.add_column("network", no_wrap=True)
    cells = [_cells(row, rows[0], result["score"]) for row in rows]
    for heading in cells[0]:
        table.add_column(heading, justify="right", no_wrap=True)
    for row, found in zip(rows, cells, strict=True):
        table.add_row(row.name, *found.values())
    show(table)
    for line in _notes(result, any(row.latency_ratio is not None for row in rows)):
        print(line)


def _notes(result: Mapping[str, Any], timed: bool) -> list[str]:
    from automl.executors.latency import described

    score = "" if result["score"] == "top1" else f"{result['score']} and "
    timed_as = described(result["device"], **result.get("latency_of", {}))
    trials, networks = result["trials"], result.get("networks", result["trials"])
    tried = f"{trials} trials" + (f", {networks} networks" if networks != trials else "")
    latency = f"latency: {timed_as}, medians of side-by-side runs; ratio: to dense"
    return [
        f"{score}val top-1: {result['validation_images']} validation images; "
        f"test top-1: {result['test_images']} test images, once per network",
        *([latency] if timed else []),
        f"{tried}, {result['failed']} failed; {_FORMS[result['form']]}",
        *([_EXHAUSTED] if result.get("exhausted") else []),
        *_promise(result.get("latency_promise")),
    ]


def _promise(promise: Mapping[str, float] | None) -> list[str]:
    if promise is None:
        return []
    from automl.commands.latency import promise_text

    return [promise_text(promise)]


def _cells(row: Row, dense: Row, score: str) -> dict[str, str]:
    """Heading -> cell."""
    cells = {
        "MACs": f"{_short(row.macs)} ({100 * row.macs / dense.macs:.1f} %)",
        "params": f"{_short(row.params)} ({100 * row.params / dense.params:.1f} %)",
        f"val {score}": f"{row.score:.4f}",
        "val top-1": _percent(row.validation_top1),
        "test top-1": _percent(row.test_top1),
        "latency": "-" if row.latency_ms is None else f"{row.latency_ms:.3g} ms",
        "ratio": "-" if row.latency_ratio is None else f"{row.latency_ratio:.2f}",
    }
    if score == "top1":  # is there already, as val top-1
        del cells["val top1"]
    return cells


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def _short(count: float) -> str:
    """Three significant digits with K, M or G."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if count >= size:
            return f"{count / size:.3g} {letter}"
    return f"{count:.0f}"
