"""What ``prunepilot bench`` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: More cores than these kept busy by others are worth a word.
_BUSY = 0.2


def print_bench(document: Mapping[str, Any]) -> None:
    """Prints whole networks, then layers, then memory.

    Args:
        document: What bench.json holds.
    """
    from automl.commands.wide_table import show

    show(_layers(document), piped=130)
    show(_networks(document), piped=130)
    for line in _notes(document):
        print(line)


def _layers(document: Mapping[str, Any]) -> Any:
    from rich.table import Table

    title = f"{document['model']}, {document['pruned']}, batch {document['batch']}"
    table = Table(title=title, title_justify="left")
    for heading in ("layer", "shape", "density", "format", "dense ms", "ms", "KB", "why"):
        right = heading in ("density", "dense ms", "ms", "KB")
        table.add_column(heading, justify="right" if right else "left")
    for row in document["rows"]:
        table.add_row(
            row["layer"], " x ".join(map(str, row["shape"])), f"{100 * row['density']:.1f} %",
            row["format"], _ms(row["dense_ms"]), _ms(row["sparse_ms"]),
            f"{row['sparse_bytes'] / 1e3:.0f}", row["reason"],
        )  # fmt: skip
    return table


def _networks(document: Mapping[str, Any]) -> Any:
    from rich.table import Table

    table = Table(title="whole networks, taking turns", title_justify="left")
    table.add_column("network")
    for heading in ("median ms", "IQR", "undisturbed", "times as fast", "rounds"):
        table.add_column(heading, justify="right")
    for name, own in document["networks"].items():
        label = f"dense ({document['dense_form']})" if name == "dense" else name
        table.add_row(
            label, _ms(own["median_ms"]), _ms(own["iqr_ms"]), _ms(own["undisturbed_ms"]),
            f"{1 / own['ratio']:.2f}", str(own["rounds"]),
        )  # fmt: skip
    return table


def _notes(document: Mapping[str, Any]) -> list[str]:
    dense, sparse = document["dense_bytes"], document["sparse_bytes"]
    lines = [
        f"{document['device']}, {document['threads']} thread(s), {document['clock']} time; layers: "
        "medians of calls on their own activations",
        f"automl.compile uses {document['compiled']} kernels: {document['reason']}",
        f"weights: {dense / 1e6:.2f} MB dense, {sparse / 1e6:.2f} MB packed; largest difference of "
        f"an output: {document['largest_error']:.0e} of the largest",
    ]
    busy = document["busy_cores"]
    if busy is not None and busy > _BUSY:
        lines.append(
            f"note: other work keeps {busy:.1f} cores busy; ratios hold better than milliseconds"
        )
    return lines


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
