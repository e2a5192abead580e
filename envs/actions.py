"""What an action means: the one place where AMC's keep ratio and kept units are converted.

An action is a number in [0, 1] (AMC's convention: the part that is KEPT): 0 keeps as few units as
the target's bounds allow, 1 as many. The scale is linear in between, so no two actions are out of
reach, whatever the bounds. Everywhere else in the project ratios are fractions REMOVED.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from automl.fitting import Floats, Ints, Space
from automl.types import Kept


def to_level(action: ArrayLike, space: Space, target: int) -> Ints:
    """The grid level nearest to an action (halves up); batched.

    Args:
        action: Fractions in [0, 1], shape (...).
        space: The counts that may be kept.
        target: Index of the target.
    """
    low, high = int(space.low[target]), int(space.high[target])
    wish = low + np.asarray(action, np.float64) * (high - low)
    step, units = int(space.step[target]), int(space.units[target])
    below = np.minimum(np.floor(wish / step).astype(np.int64), -(-units // step))
    above = np.minimum(below + 1, -(-units // step))
    counts = np.minimum(np.stack([below, above]) * step, units)
    nearest = np.where(wish - counts[0] < counts[1] - wish, below, above)
    return np.clip(nearest, -(-low // step), -(-high // step))


def to_actions(kept: Kept, space: Space) -> Floats:
    """The actions that keep these counts; batched, (..., targets) gives (..., targets).

    A target that leaves no choice has the action 1.
    """
    width = space.high - space.low
    return np.where(width > 0, (kept - space.low) / np.maximum(width, 1), 1.0)


def pruning_ratio(action: float, space: Space, target: int) -> float:
    """The fraction of a target's units that an action removes, before rounding."""
    low, high, units = (float(a[target]) for a in (space.low, space.high, space.units))
    return 1 - (low + action * (high - low)) / units
