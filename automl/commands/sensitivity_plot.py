"""The plot of a sensitivity analysis; needs matplotlib, from the extra ``plot``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from automl.fitting import Floats
from automl.paths import atomic_write

if TYPE_CHECKING:
    import pandas as pd

#: Up to so many groups are named one by one; more are told apart by colour as depth.
_MOST_NAMES = 24


def plot(
    path: Path,
    names: Sequence[str],
    keep: Sequence[Floats],
    curves: Mapping[str, Sequence[Floats]],
    measured: pd.DataFrame,
) -> None:
    """Damage against the part that is kept: a panel per metric, a line per group.

    Args:
        path: The PNG file.
        names: The groups, in network order.
        keep: Per group the keep fractions of its grid.
        curves: Metric -> per group the damage at these.
        measured: Rows with ``target``, ``keep`` and ``METRIC_damage``, drawn as points.
    """
    figure = Figure(figsize=(6.5 * len(curves), 5), layout="constrained")
    axes = figure.subplots(1, len(curves), squeeze=False)[0]
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.95, len(names)))
    for axis, (metric, lines) in zip(axes, curves.items(), strict=True):
        for name, x, y, colour in zip(names, keep, lines, colours, strict=True):
            axis.plot(x, y, color=colour, label=name)
            points = measured[measured["target"] == name] if len(measured) else measured
            if len(points):
                axis.plot(points["keep"], points[f"{metric}_damage"], ".", color=colour)
        axis.set(xlabel="kept of the group, others dense", xlim=(0, 1.02))
        axis.set_ylabel("drop of top-1" if metric == "top1" else f"{metric} above dense")
        axis.grid(alpha=0.3)
    if len(names) <= _MOST_NAMES:
        axes[-1].legend(fontsize="small", ncols=1 + len(names) // 13)
    else:
        scale = matplotlib.cm.ScalarMappable(cmap="viridis")
        figure.colorbar(scale, ax=list(axes), label="depth in the network", ticks=[0, 1])
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    atomic_write(path, buffer.getvalue())
