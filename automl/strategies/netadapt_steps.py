"""The arithmetic of one NetAdapt iteration: which counts of which target meet a step.

Nothing here scores anything, and nothing assumes that a cost falls with a count: measured latency
is a staircase with steps in both directions, so every count of a grid is looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from automl.fitting import Bools, Floats, Ints
from automl.problem import Problem
from automl.types import Kept, Resource

#: Kept counts whose cost is asked for in one call, so that memory stays small.
_ROWS = 8192


@dataclass(frozen=True, slots=True, eq=False)
class Options:
    """Every network that differs from one network in one target.

    Attributes:
        target: Which target differs, shape (options,).
        count: What it keeps instead, shape (options,).
        costs: Limited resource -> cost, shape (options,).
    """

    target: Ints
    count: Ints
    costs: Mapping[Resource, Floats]

    @classmethod
    def of(cls, problem: Problem, kept: Kept) -> Options:
        """All options from ``kept``, by target and then by count."""
        grids = problem.grids
        target = np.repeat(np.arange(len(grids)), [len(grid) for grid in grids])
        count = np.concatenate(grids)
        other = count != kept[target]
        target, count = target[other], count[other]
        costs = {
            name: np.concatenate([np.zeros(0), *_costs(problem, name, kept, target, count)])
            for name in problem.limits
        }
        return cls(target, count, costs)

    def largest(self, meets: Bools) -> dict[int, int]:
        """Target -> the largest of its counts that ``meets`` marks; targets without are left out.

        Args:
            meets: Which options to choose among, shape (options,).
        """
        found: dict[int, int] = {}
        for target, count in zip(self.target[meets].tolist(), self.count[meets], strict=True):
            found[target] = max(found.get(target, 0), int(count))
        return found


def _costs(problem: Problem, name: Resource, kept: Kept, target: Ints, count: Ints) -> list[Floats]:
    pieces = []
    for start in range(0, len(target), _ROWS):
        where, what = target[start : start + _ROWS], count[start : start + _ROWS]
        rows = np.repeat(kept[None], len(where), axis=0)
        rows[np.arange(len(where)), where] = what
        pieces.append(problem.cost_of(name, rows))
    return pieces


def excess(problem: Problem, kept: Kept) -> dict[Resource, float]:
    """Limited resource -> how far its cost is above the limit, as a fraction of dense; >= 0."""
    costs = problem.costs(kept)
    return {
        name: max(0.0, costs[name] - limit) / problem.dense_costs[name]
        for name, limit in problem.limits.items()
    }


def geometric(total: float, steps: int, decay: float) -> float:
    """The first of steps that add up to ``total``, each ``decay`` times the one before."""
    return float(total / (decay ** np.arange(steps)).sum())


@dataclass(frozen=True, slots=True, eq=False)
class Iteration:
    """What one iteration may choose among.

    Attributes:
        resource: What is reduced: the most violated resource.
        dense: Its cost in the dense network.
        cost: Its cost now.
        options: All networks that differ in one target.
        reduces: Which of them cost less of it, and no more of other resources than their limit
            or their present cost; shape (options,).
    """

    resource: Resource
    dense: float
    cost: float
    options: Options
    reduces: Bools

    @classmethod
    def of(cls, problem: Problem, kept: Kept) -> Iteration:
        """The next iteration from ``kept``, which breaks a limit."""
        costs, options = problem.costs(kept), Options.of(problem, kept)
        resource = max(problem.limits, key=lambda name: costs[name] / problem.limits[name])
        reduces = options.costs[resource] < costs[resource]
        for name, limit in problem.limits.items():
            # Else two resources could be traded for each other for ever.
            reduces &= options.costs[name] <= max(limit, costs[name])
        dense = problem.dense_costs[resource]
        return cls(resource, dense, costs[resource], options, reduces)

    def counts(self, step: float, limit: float) -> dict[int, int]:
        """Target -> the largest count that meets the step; targets that cannot are left out.

        Args:
            step: Reduction asked for, as a fraction of the dense network's cost.
            limit: Cost below which nothing needs to be reduced further.
        """
        goal = max(limit, self.cost - step * self.dense)
        return self.options.largest(self.reduces & (self.options.costs[self.resource] <= goal))

    def smallest_step(self, total: float, decay: float, limit: float, trials: int) -> float | None:
        """The smallest step with which the trials reach the budget.

        More iterations mean smaller steps, which more targets can make. The most iterations are
        taken of which all together, with as many candidates as now, stay within the trials.

        Args:
            total: What is left to reduce, as a fraction of dense.
            decay: Of the steps.
            limit: As for ``counts``.
            trials: How many candidates may be scored in all.

        Returns:
            A fraction of the dense network's cost; None where there are too few trials.
        """
        smallest = None
        for iterations in range(1, trials + 1):
            step = geometric(total, iterations, decay)
            candidates = len(self.counts(step, limit))
            if candidates * iterations > trials:
                break
            if candidates:
                smallest = step
        return smallest


def repaid(problem: Problem, kept: Kept) -> Kept:
    """Gives back what a step took beyond the budget.

    The hardest pruned target that can keep more within the budget keeps the next larger count
    that fits; until none can.

    Args:
        problem: Grids and budget.
        kept: Counts within the budget, shape (targets,).
    """
    kept = kept.copy()
    while True:
        options = Options.of(problem, kept)
        fits = options.count > kept[options.target]
        for name, limit in problem.limits.items():
            fits &= options.costs[name] <= limit
        if not fits.any():
            return kept
        shares = kept / problem.space.units
        chosen = options.target[fits][np.argmin(shares[options.target[fits]])]
        kept[chosen] = options.count[fits & (options.target == chosen)].min()
