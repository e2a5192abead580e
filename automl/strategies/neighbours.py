"""Policies next to a policy: a few grid steps moved from some targets to others."""

from __future__ import annotations

import numpy as np

from automl.problem import Problem
from automl.types import Kept

#: Most targets that are changed on purpose.
_MOVES = 3


def neighbour(problem: Problem, kept: Kept, rng: np.random.Generator) -> Kept:
    """A policy near ``kept`` that uses the whole budget.

    One to three targets move up or down by one or two steps; then single steps, at random and of
    the other targets first, are taken until the budget holds and given until none fits.

    Args:
        problem: Grids and budget.
        kept: Counts within the budget, shape (targets,).
        rng: Where numbers come from.
    """
    space = problem.space
    first, last = space.level(space.low), space.level(space.high)
    level = space.level(kept).copy()
    count = len(level)
    moved = rng.choice(count, size=min(int(rng.integers(1, _MOVES + 1)), count), replace=False)
    moves = rng.choice([-2, -1, 1, 2], size=len(moved))
    level[moved] = np.clip(level[moved] + moves, first[moved], last[moved])
    others = np.setdiff1d(rng.permutation(count), moved, assume_unique=True)
    order = np.concatenate([rng.permutation(others), rng.permutation(moved)])
    while not problem.within(space.kept(level)):
        lowered = next((t for t in order if level[t] > first[t]), None)
        if lowered is None:  # only where costs fall with more units
            return problem.fit(kept / space.units)
        level[lowered] -= 1
        order = np.roll(order, -1)
    single = np.eye(count, dtype=np.int64)
    while True:
        fits = (level < last) & problem.within(space.kept(np.minimum(level + single, last)))
        if not fits.any():
            return space.kept(level)
        level[next(t for t in order if fits[t])] += 1
        order = np.roll(order, -1)
