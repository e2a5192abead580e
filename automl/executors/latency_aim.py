"""Corrects predicted latency where it matters: for networks that fill a budget.

A table calibrated on networks of all sizes is right on average. A search does not pick averages.
Whatever fills a budget takes the counts whose times came out low, by chance too, and a line fitted
to all sizes is off by some percent at any one of them. So networks are filled up to the budget in
random directions, as strategies do it, and timed beside the dense network; the line from sums to
latencies then goes through the dense network and through them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from automl.cost.latency import LatencyCost
from automl.cost.lut.calibration import Calibration, compare
from automl.fitting import Constraints, fit

if TYPE_CHECKING:
    from automl.executors.latency_table import NetworkTable

Floats = NDArray[np.float64]

#: Times that networks are filled and timed, at most: a new line lets other networks in.
_ROUNDS = 3
#: Error of the budget, as a share of it, that is left alone.
_NEAR = 0.01
#: The share of the networks that end up within the budget, rather than half of them: users read a
#: budget as a limit.
_WITHIN = 0.75
#: Budgets above this share of dense are too near to it to tell a line from.
_TOO_NEAR_DENSE = 0.9


def aim(
    table: NetworkTable, limit: float, relative: bool, networks: int, budget_s: float
) -> Calibration | None:
    """A calibration for networks that fill a budget of latency.

    Args:
        table: Calibrated on networks of all sizes.
        limit: The budget, in ms or as a fraction of the dense network's latency.
        relative: Which of the two.
        networks: Networks to time, besides the dense one, in each of up to three rounds.
        budget_s: How long to time them for, in seconds, each round.

    Returns:
        Slope and offset for this budget. ``held_out`` compares the networks of the last round with
        what the line before that round said of them. None where the budget is hardly below dense.

    Raises:
        InputError: Even the smallest network breaks the budget.
    """
    start = table.calibration
    if start is None:
        raise ValueError("aim.table must be calibrated")
    space, total = table.space, table.total
    # The dense network counts as it was measured at the calibration: later speeds are drift.
    dense_sum, dense_ms = float(total(space.units)), start.fitted.measured_ms[0]
    limit_ms = limit * dense_ms if relative else limit
    if not limit_ms < _TOO_NEAR_DENSE * dense_ms:
        return None
    found, line = None, (start.slope, start.offset_ms)
    for round_ in range(_ROUNDS):
        within = Constraints({"latency_ms": LatencyCost(total, *line)}, {"latency_ms": limit_ms})
        rng = np.random.default_rng([round_, networks])
        wishes = rng.random((networks, len(space.units)))
        kept = np.stack([space.units, *(fit(wish, space, within) for wish in wishes)])
        sums, seconds = total(kept), np.array(table.time(list(kept), budget_s))
        measured = seconds * (dense_ms / seconds[0])
        held_out = compare(line[0] * sums + line[1], measured)
        near = abs(float(np.quantile(measured[1:], _WITHIN)) / limit_ms - 1) < _NEAR
        if not near:
            line = through(dense_sum, dense_ms, sums[1:], measured[1:]) or line
        fitted = compare(line[0] * sums + line[1], measured)
        found = Calibration(*line, fitted, tuple(map(tuple, kept.tolist())), held_out, start.date)
        if near:
            break
    return found


def through(
    dense_sum: float, dense_ms: float, sums: Floats, measured: Floats
) -> tuple[float, float] | None:
    """The line through the dense network and the upper quartile of others.

    Args:
        dense_sum: Sum of the dense network's operators, in ms.
        dense_ms: Its latency.
        sums: Of the others, shape (networks,).
        measured: Their latencies in ms, shape (networks,).

    Returns:
        Slope and offset in ms; None where the line would fall.
    """
    middle = float(sums.mean())
    # What one of them would take whose operators sum up to the mean.
    at_middle = float(np.quantile(measured * (middle / sums), _WITHIN))
    if not (middle < dense_sum and at_middle < dense_ms):
        return None
    slope = (dense_ms - at_middle) / (dense_sum - middle)
    return round(slope, 6), round(dense_ms - round(slope, 6) * dense_sum, 6)
