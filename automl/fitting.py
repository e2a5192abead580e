"""Where rounding meets a budget: the one place that turns wishes into whole units.

Every target may keep only some counts of units (its *grid*); a budget limits one or several costs
of all targets together. Strategies say in which order they would give units back to the network,
and ``climb`` goes from the smallest network up in that order as far as the budget allows. Costs are
always those of whole, rounded units, so nothing here is ever over budget.

Costs are taken to be non-decreasing in every target (counts are; measured tables should be made
so). Where they are not, results still meet the budget and no single step can be added, but a
larger network may have been missed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
from numpy.typing import ArrayLike, NDArray

from automl.types import CostModel, InputError, Kept, Resource, Target

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

#: ``(target, fraction) -> when``: the moment at which a strategy would let ``target`` (an index)
#: keep more than ``fraction`` of its units; vectorised, rising with ``fraction``.
Schedule = Callable[[Ints, Floats], Floats]

#: A grid with fewer choices than this is made finer: 8 units in steps of 8 could not be pruned.
_FEWEST_CHOICES = 4
#: Kept counts whose cost is asked for in one call while searching along a path.
_PROBES = 32


def step_for(units: int, rounding: int) -> int:
    """The distance between kept counts.

    It is ``rounding``, halved for small targets until they have at least four counts to choose
    from (or the step is 1): 64 units in steps of 8, 16 units in steps of 4, 8 units in steps of 2.

    Args:
        units: Units of the dense network, >= 1.
        rounding: The step that hardware likes, >= 1; 1 allows every count.

    Raises:
        ValueError: An argument is below 1.
    """
    for name, value in (("units", units), ("rounding", rounding)):
        if value < 1:
            raise ValueError(f"fitting.{name} must be >= 1, got {value}")
    step = rounding
    while step > 1 and -(-units // step) < _FEWEST_CHOICES:
        step //= 2
    return step


def grid(units: int, rounding: int) -> Kept:
    """The counts that a target of ``units`` may keep, ascending.

    Multiples of ``step_for(units, rounding)``, and ``units`` itself: never 0, and never only
    ``units`` (unless there is one unit).
    """
    step = step_for(units, rounding)
    counts = step * np.arange(1, -(-units // step) + 1, dtype=np.int64)
    return np.minimum(counts, units)


def round_ratio(ratio: float, units: int, rounding: int) -> int:
    """How many units a requested pruning ratio keeps: the nearest count of the grid.

    A ratio above 0 always removes something; halves round towards keeping more.

    Args:
        ratio: The fraction to REMOVE, in [0, 1).
        units: Units of the dense network.
        rounding: See ``step_for``.

    Raises:
        InputError: The ratio is out of range, or it asks to prune the only unit.
    """
    if not 0 <= ratio < 1:
        raise InputError(f"a pruning ratio must be in [0, 1), got {ratio}")
    if ratio == 0:
        return units
    if units == 1:
        raise InputError(f"ratio {ratio} cannot be honoured: there is one unit, and one must stay")
    counts = grid(units, rounding)[:-1]
    wish = (1 - ratio) * units
    # Reversed, so that argmin finds the larger of two counts that are equally near.
    return int(counts[::-1][np.argmin(np.abs(counts[::-1] - wish))])


def fewest(targets: Sequence[Target], rounding: int | Sequence[int], min_keep: float) -> Kept:
    """Fewest units that every target may keep, on its grid; see :meth:`Space.of`.

    Raises:
        InputError: An argument is out of range.
    """
    return Space.of(targets, rounding, min_keep).low if targets else np.zeros(0, np.int64)


def _is_fraction(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    return 0 <= float(value) <= 1


@dataclass(frozen=True, slots=True, eq=False)
class Space:
    """The grids of all targets; ``level`` l of a target keeps ``min(l * step, units)`` units.

    Attributes:
        units: Units of the dense network, shape (targets,).
        step: Distance between kept counts, shape (targets,).
        low: Fewest units that may stay, on the grid, shape (targets,).
        high: Most units that may stay, on the grid, shape (targets,).
    """

    units: Kept
    step: Kept
    low: Kept
    high: Kept

    @classmethod
    def of(
        cls,
        targets: Sequence[Target],
        rounding: int | Sequence[int] = 8,
        min_keep: float = 0.0,
    ) -> Space:
        """The space of a network.

        Args:
            targets: The network's targets; heads are never rounded.
            rounding: See ``step_for``; one for each target, or one for all.
            min_keep: Least fraction of its units that every target keeps, in [0, 1].

        Raises:
            InputError: There is nothing to prune, or an argument is out of range.
        """
        if not targets:
            raise InputError("nothing in this network can be pruned; `trace` says why")
        if isinstance(rounding, Integral):
            rounding = [int(rounding)] * len(targets)
        if not isinstance(rounding, Sequence) or not all(isinstance(r, Integral) for r in rounding):
            raise InputError(f"rounding must be one or several whole numbers, got {rounding!r}")
        if min(rounding) < 1:
            raise InputError(f"rounding must be >= 1, got {min(rounding)}")
        if not _is_fraction(min_keep):
            raise InputError(f"min_keep must be in [0, 1], got {min_keep!r}")
        units = np.array([target.units for target in targets], np.int64)
        steps = [
            step_for(target.units, 1 if target.kind == "head" else its)
            for target, its in zip(targets, rounding, strict=True)
        ]
        step = np.array(steps, np.int64)
        # The tolerance keeps 0.3 * 10 = 3.0000000000000004 from being rounded up to 4.
        least = np.ceil(np.ceil(min_keep * units - 1e-9) / step).astype(np.int64)
        low = np.minimum(np.maximum(least, 1) * step, units)
        return cls(units, step, low, units.copy())

    def kept(self, level: Ints) -> Kept:
        """Units kept at ``level``, batched (..., targets)."""
        return np.asarray(np.minimum(level * self.step, self.units), np.int64)

    def level(self, kept: Kept) -> Ints:
        """The level of kept counts on the grid, batched (..., targets)."""
        return -(-kept // self.step)

    def grids(self) -> tuple[Kept, ...]:
        """All counts that each target may keep, ascending."""
        first, last = self.level(self.low), self.level(self.high)
        columns = zip(first, last, self.step, self.units, strict=True)
        return tuple(np.minimum(np.arange(a, b + 1) * s, u) for a, b, s, u in columns)

    def nearest(self, keep: ArrayLike) -> Kept:
        """The allowed counts nearest to the fractions ``keep`` (halves up), batched."""
        wish = np.asarray(keep, np.float64) * self.units
        below = self.kept(np.floor(wish / self.step).astype(np.int64))
        above = np.minimum(below + self.step, self.units)
        return np.clip(np.where(wish - below < above - wish, below, above), self.low, self.high)

    def contains(self, kept: Kept) -> Bools:
        """Whether kept counts lie on the grids, within low and high; batched, shape (...)."""
        on_grid = self.kept(self.level(kept)) == kept
        inside = on_grid & (kept >= self.low) & (kept <= self.high)
        return np.asarray(np.all(inside, axis=-1), np.bool_)

    def raises(self) -> tuple[Ints, Floats]:
        """Every single step up between ``low`` and ``high``, ordered by target, then by level.

        Returns:
            The target of each step, and the fraction midway between the counts it joins, so that
            taking all steps below a wished fraction rounds the wish to the nearest count.
        """
        first, last = self.level(self.low), self.level(self.high)
        counts = last - first
        target = np.repeat(np.arange(len(counts)), counts)
        offset = np.arange(len(target)) - np.repeat(np.cumsum(counts) - counts, counts)
        level = first[target] + offset
        step, units = self.step[target], self.units[target]
        before, after = level * step, np.minimum((level + 1) * step, units)
        return target, (before + after) / (2 * units)


@dataclass(frozen=True, slots=True, eq=False)
class Constraints:
    """Limits on costs; calling it says which of a batch of kept counts meet all of them.

    Attributes:
        costs: Resource -> cost model, at least for every resource in ``limits``.
        limits: Resource -> the most it may cost, in the resource's unit.
    """

    costs: Mapping[Resource, CostModel]
    limits: Mapping[Resource, float]

    def __call__(self, kept: Kept) -> Bools:
        """Whether every limit holds; (..., targets) gives (...)."""
        within = np.ones(np.shape(kept)[:-1], np.bool_)
        for name, limit in self.limits.items():
            within &= self.costs[name](kept) <= limit
        return within

    def require_reachable(self, space: Space) -> None:
        """Makes sure that the smallest network meets the limits.

        Raises:
            InputError: It does not; the message gives the least reachable cost.
        """
        if self(space.low):
            return
        problems = []
        for name, limit in self.limits.items():
            least, dense = (float(self.costs[name](kept)) for kept in (space.low, space.units))
            if not least <= limit:
                share = f" ({100 * least / dense:.3g} % of dense)" if dense > 0 else ""
                problems.append(
                    f"{name} {limit:,.6g} is below the least reachable {least:,.6g}{share}"
                )
        raise InputError(f"budget cannot be met: {'; '.join(problems)}")


def fit(desired: ArrayLike, space: Space, constraints: Constraints) -> Kept:
    """The largest network within the limits along the path through a wish.

    The path leads from the smallest network (all keep fractions shrunk by one factor) to the wish,
    and on from there to the dense network (all gaps to 1 shrunk by one factor). Counts are rounded
    to the nearest, and where the budget ends the path, single steps that still fit are added.

    Args:
        desired: Wished fraction to KEEP of every target, in [0, 1], shape (targets,).
        space: The counts that may be kept.
        constraints: The limits.

    Returns:
        Kept counts that meet every limit and are maximal: one step more of any single target
        breaks a limit. It is ``space.nearest(desired)`` where that is so already.

    Raises:
        InputError: Even the smallest network breaks a limit.
        ValueError: ``desired`` has another shape or is not within [0, 1].
    """
    wish = np.asarray(desired, np.float64)
    if wish.shape != space.units.shape or not np.all((wish >= 0) & (wish <= 1)):
        raise ValueError(f"fit.desired must be {len(space.units)} fractions in [0, 1], got {wish}")

    def when(target: Ints, fraction: Floats) -> Floats:
        goal = wish[target]
        # Each branch is used only where its quotient is in [0, 1].
        with np.errstate(all="ignore"):
            return np.where(fraction <= goal, fraction / goal, 1 + (fraction - goal) / (1 - goal))

    return climb(when, space, constraints)


def climb(when: Schedule, space: Space, constraints: Constraints) -> Kept:
    """Raises targets step by step, in the order of a schedule, as far as the limits allow.

    First the longest run of steps that fits is taken; then, in the same order, every further
    step that still fits on its own.

    Args:
        when: The moment of each step; equal moments go in network order.
        space: The counts that may be kept.
        constraints: The limits.

    Returns:
        Kept counts, shape (targets,), within the limits and maximal (see ``fit``).

    Raises:
        InputError: Even the smallest network breaks a limit.
    """
    constraints.require_reachable(space)
    target, fraction = space.raises()
    waiting = target[np.argsort(when(target, fraction), kind="stable")]
    level, top = space.level(space.low), space.level(space.high)
    single = np.eye(len(level), dtype=np.int64)
    while True:
        fits = (level < top) & constraints(space.kept(np.minimum(level + single, top)))
        if not fits.any():
            return space.kept(level)
        # The first of these steps fits for certain, so every round makes progress; the targets
        # that fit no more need no further thought, since costs only grow.
        at = np.flatnonzero(fits[waiting])
        at = at[: _longest_prefix(waiting[at], level, space, constraints)]
        level = level + np.bincount(waiting[at], minlength=len(level))
        waiting = np.delete(waiting, at)


def _longest_prefix(queue: Ints, level: Ints, space: Space, constraints: Constraints) -> int:
    """How many steps of ``queue`` can be taken from ``level`` before a limit breaks.

    Searches with many probes a round: one call of a vectorised cost for 32 networks takes little
    longer than for one.
    """
    taken, broken = 0, len(queue) + 1
    targets = len(level)
    while broken - taken > 1:
        inner = broken - taken - 1
        probes = taken + np.unique(np.linspace(1, inner, min(_PROBES, inner)).astype(np.int64))
        # Row i of ``rise``: how often each target occurs in queue[taken : probes[i]].
        span = np.arange(taken, probes[-1])
        cell = np.searchsorted(probes, span, side="right") * targets + queue[span]
        counts = np.bincount(cell, minlength=len(probes) * targets)
        rise = counts.reshape(len(probes), targets).cumsum(axis=0)
        fits = constraints(space.kept(level + rise))
        first_bad = int(np.argmin(fits)) if not fits.all() else len(probes)
        if first_bad < len(probes):
            broken = int(probes[first_bad])
        if first_bad > 0:
            level = level + rise[first_bad - 1]
            taken = int(probes[first_bad - 1])
    return taken
