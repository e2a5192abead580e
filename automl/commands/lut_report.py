"""What a latency table holds, and how well it predicts: as text, as data and as a plot."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from automl.cost.lut.calibration import Check
from automl.cost.lut.table import Table
from automl.paths import atomic_write
from automl.types import InputError

DATA = "latency.json"
PLOT = "latency.png"

#: A network that is marked in the plot: its label, predicted and measured ms.
Mark = tuple[str, float, float]


def describe(table: Table) -> str:
    """A table's device, entries by kind, noise and calibrations, as lines."""
    device = {k: v for k, v in table.fingerprint.to_dict().items() if v not in ("", 0)}
    lines = [f"{table.path}", *(f"  {name:<12} {value}" for name, value in device.items())]
    kinds = Counter(signature.kind for signature in table.entries)
    lines.append(f"{len(table.entries)} operators: " + listed(kinds))
    spreads = np.array([entry.spread for entry in table.entries.values()] or [0.0])
    lines.append(
        f"interquartile range: median {100 * np.median(spreads):.1f} % of an operator's time, "
        f"above 10 % in {100 * np.mean(spreads > 0.1):.0f} % of them"
    )
    for key, calibration in table.calibrations.items():
        network, _, budget = key.partition("@")
        near = f" near {budget}" if budget else ""
        lines.append(
            f"network {network[:12]}{near} ({calibration.date}): latency = "
            f"{calibration.slope:.4g} x sum + {calibration.offset_ms:.4g} ms; "
            f"{calibration.held_out}"
        )
    return "\n".join(lines)


def listed(kinds: Mapping[str, int]) -> str:
    """Counts by kind as text, the largest first."""
    ordered = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {kind}" for kind, count in ordered)


def write_report(
    folder: Path,
    table: Table,
    check: Check,
    marks: Sequence[Mark] = (),
    about: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Writes the figures as JSON and predicted against measured as a plot.

    Args:
        folder: Where to; created where it does not exist.
        table: The table that was checked.
        check: Predictions beside measurements.
        marks: More networks to show, such as the one that was found.
        about: What else to write beside the figures.

    Returns:
        The files written; no plot where matplotlib is not installed.

    Raises:
        InputError: They cannot be written.
    """
    figures = {
        "table": table.path.name,
        "fingerprint": table.fingerprint.to_dict(),
        "mape": check.mape,
        "mape_as_calibrated": check.mape_as_calibrated,
        "worst": check.worst,
        "rho": check.rho,
        "ratio_error": check.ratio_error,
        **check.to_dict(),
        **(about or {}),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / DATA, json.dumps(figures, indent=2) + "\n")
        drawn = plot(folder / PLOT, check, marks, table.fingerprint.name)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror or error}") from error
    return [folder / DATA, folder / PLOT] if drawn else [folder / DATA]


def plot(path: Path, check: Check, marks: Sequence[Mark], title: str) -> bool:
    """Draws predicted against measured latency; whether matplotlib is there to do it."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    predicted = np.array(check.predicted_ms) * check.slowdown
    measured = np.array(check.measured_ms)
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    ends = np.array([0, 1.08 * max(predicted.max(), measured.max())])
    axes.plot(ends, ends, color="0.6", linewidth=1)
    axes.fill_between(ends, 0.95 * ends, 1.05 * ends, color="0.92", label="within 5 %")
    axes.scatter(measured[1:], predicted[1:], s=18, label="fresh networks")
    axes.scatter(measured[:1], predicted[:1], s=30, marker="s", label="dense")
    for label, prediction, measurement in marks:
        axes.scatter([measurement], [prediction], s=40, marker="*", label=label)
    axes.set(xlabel="measured, ms", ylabel="predicted, ms", xlim=ends, ylim=ends)
    axes.set_title(f"{title}\nMAPE {100 * check.mape:.1f} %, rho {check.rho:.3f}", fontsize=8)
    axes.legend(frameon=False, fontsize=8)
    content = BytesIO()
    figure.savefig(content, format="png", dpi=150)
    atomic_write(path, content.getvalue())
    return True
