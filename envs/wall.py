"""The action wall: whatever is decided, the finished policy meets the budget and uses it.

AMC (algorithm 1) clips an action so that the rest of the network, pruned as hard as allowed, still
fits; the official code does so on fractions and rounds afterwards, so its policies may exceed the
budget. Here the wall stands on whole units and on both sides. Targets are decided in network
order; with a prefix decided,

* the *most* a target may keep is the largest count with which the prefix and the smallest rest
  meet the budget;
* the *least* is the largest count with which the prefix and the DENSE rest meet it, if there is
  one: pruning harder could never be made good by keeping more later.

Costs are taken to be non-decreasing in every target, so both are found by bisection. Where they
are not (measured tables), ``finish`` still returns a policy within the budget.
"""

from __future__ import annotations

import numpy as np

from automl.fitting import Floats, Ints
from automl.problem import Problem
from automl.types import Kept


class Wall:
    """Bounds of the next decision, and the last corrections of a finished episode.

    All methods are batched: ``kept`` has shape (episodes, targets).
    """

    def __init__(self, problem: Problem) -> None:
        """Takes the problem's grids and budget."""
        self._problem = problem
        self._space = problem.space
        self._first = problem.space.level(problem.space.low)
        self._last = problem.space.level(problem.space.high)

    def bounds(self, kept: Kept, target: int) -> tuple[Ints, Ints]:
        """The lowest and the highest level that ``target`` may have, shape (episodes,) each.

        Args:
            kept: Decided counts before ``target``; the others are not looked at.
            target: Index of the target to decide.
        """
        first, last = int(self._first[target]), int(self._last[target])
        tight, loose = kept.copy(), kept.copy()
        tight[:, target + 1 :] = self._space.high[target + 1 :]
        loose[:, target + 1 :] = self._space.low[target + 1 :]
        # Row block 0 looks for the least, block 1 for the most; both are the end of a run of
        # levels that fit.
        rows = np.concatenate([tight, loose])
        inside = np.full(len(rows), first)
        outside = np.full(len(rows), last + 1)
        while np.any(outside - inside > 1):
            middle = (inside + outside) // 2
            rows[:, target] = self._units(middle, target)
            fits = self._problem.within(rows)
            inside, outside = np.where(fits, middle, inside), np.where(fits, outside, middle)
        return inside[: len(kept)], inside[len(kept) :]

    def finish(self, kept: Kept, wish: Floats) -> Kept:
        """Gives back single steps until none fits any more.

        A wall knows only what comes after it. Once all is decided, a step of an earlier, cheaper
        target may still fit; these steps are given back, largest unmet wish first.

        Args:
            kept: One finished episode, shape (targets,).
            wish: Fractions of the units that the actions asked to keep, shape (targets,).

        Returns:
            Kept counts within the budget to which no single step can be added.
        """
        space, problem = self._space, self._problem
        if not problem.within(kept):  # only where costs fall with more units
            return problem.fit(kept / space.units)
        level = space.level(kept)
        single = np.eye(len(level), dtype=np.int64)
        while True:
            raised = space.kept(np.minimum(level + single, self._last))
            fits = (level < self._last) & problem.within(raised)
            if not fits.any():
                return space.kept(level)
            unmet = np.where(fits, wish - space.kept(level) / space.units, -np.inf)
            level = level + single[int(np.argmax(unmet))]

    def _units(self, level: Ints, target: int) -> Ints:
        return np.asarray(np.minimum(level * self._space.step[target], self._space.units[target]))
