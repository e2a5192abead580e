"""The best policy for additive damage under any budget: exact costs, coupled or not.

Minimises ``sum_t damage[t][kept[t]]`` over the grids of all targets, subject to every limit of the
problem. A knapsack with one choice per target could be solved by dynamic programming if costs added
up over targets too. They do not: the MACs of a layer are the product of what two targets keep,
measured latencies are tables of both. So the problem's own cost function is called, which takes
thousands of candidates at once:

1. Lagrangian relaxation. For a price per unit of cost, targets are minimised one after the other,
   each over its whole grid at the exact cost given all others, until nothing changes: for all
   prices, mixtures of resources and starting points together (Everett, "Generalized Lagrange
   Multiplier Method", 1963; coordinate descent because of the coupling).
2. Exchange. From the best of those within the budget: every change of one to four targets by a
   few steps that lowers the damage is tried in order of what it gains, and the first that keeps
   the budget is taken, until none does; then again from the best with some targets lowered at
   random. The result is optimal among such changes, and uses the budget.

Brute force on small networks says how far this is from the optimum (docs/sensitivity.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from math import comb

import numpy as np

from automl.fitting import Bools, Floats, Ints
from automl.problem import Problem
from automl.types import Kept

#: Prices tried in one round, and rounds (each zooms in to where the budget begins to hold).
_PRICES, _ZOOMS = 16, 2
_SWEEPS = 6
#: Candidates that are improved by exchange.
_BEST = 3
#: Changes looked at in one neighbourhood, and these times targets; larger ones are sampled.
_MOST_MOVES, _MOST_ENTRIES = 25_000, 350_000
#: Targets that change at once.
_MOST_CHANGED = 4
_CHUNK = 512
#: Counts of candidates that are costed at once while they are raised.
_ENTRIES = 1_000_000


@dataclass(frozen=True, eq=False)
class Solver:
    """Minimises additive damages for one problem; see the module's docstring.

    Candidates are positions in the grids, shape (..., targets).

    Attributes:
        problem: Grids, costs and budget.
    """

    problem: Problem

    @cached_property
    def sizes(self) -> Ints:
        """Counts that each target may keep, (targets,)."""
        return np.array([len(grid) for grid in self.problem.grids])

    @cached_property
    def _counts(self) -> Kept:
        """The grids side by side, (targets, longest), padded with their last count."""
        longest = int(self.sizes.max())
        padded = [np.pad(grid, (0, longest - len(grid)), "edge") for grid in self.problem.grids]
        return np.stack(padded)

    def kept(self, at: Ints) -> Kept:
        """Units kept at positions, batched."""
        return np.asarray(self._counts[np.arange(len(self.sizes)), at])

    def positions(self, kept: Kept) -> Ints:
        """The positions of counts that are on the grids, batched."""
        space = self.problem.space
        return np.asarray(space.level(kept) - space.level(space.low))

    def table(self, damages: Sequence[Floats]) -> Floats:
        """Curves side by side, (targets, longest), padded with infinity."""
        table = np.full(self._counts.shape, np.inf)
        for row, curve in zip(table, damages, strict=True):
            row[: len(curve)] = curve
        return table

    def total(self, table: Floats, at: Ints) -> Floats:
        """Damage of candidates, batched: (..., targets) gives (...)."""
        return np.asarray(table[np.arange(len(self.sizes)), at].sum(axis=-1))

    def within(self, at: Ints) -> Bools:
        """Whether candidates meet the budget, batched."""
        return self.problem.within(self.kept(at))

    def solve(self, table: Floats, starts: Sequence[Ints] = (), kicks: int = 8) -> Ints:
        """The best candidate found, (targets,); within the budget, and no step can be added.

        Args:
            table: What ``table`` gives.
            starts: More candidates within the budget to improve on.
            kicks: Restarts from around the best candidate; 0 is quick, and improves one start.
        """

        def total(at: Ints) -> float:
            return float(self.total(table, at))

        found = [self.positions(self.problem.space.low), *starts, *self.relaxed(table)]
        ranked = sorted(_distinct(found), key=total)[: _BEST if kicks else 1]
        improved = [self.exchange(table, at) for at in ranked]
        best = min(improved, key=total)
        rng = np.random.default_rng(0)
        for _ in range(kicks):
            best = min(best, self.exchange(table, self._kicked(best, rng)), key=total)
        return best

    def _kicked(self, at: Ints, rng: np.random.Generator) -> Ints:
        """A candidate with a third of its targets, at least two, lowered at random."""
        count = min(max(len(at) // 3, 2), len(at))
        chosen = rng.choice(len(at), size=count, replace=False)
        at = np.array(at)
        at[chosen] = rng.integers(0, at[chosen] + 1)
        return at

    # ---- Lagrangian relaxation

    def relaxed(self, table: Floats) -> list[Ints]:
        """The minimisers within the budget, for many prices of cost."""
        finite = table[np.isfinite(table) & (table > 0)]
        if not len(finite):
            return []
        mixtures = self._mixtures()
        low = np.full(len(mixtures), np.log(0.01 * finite.min()))
        high = np.full(len(mixtures), np.log(100.0 * finite.sum()))
        found: list[Ints] = []
        for _ in range(_ZOOMS):
            prices = np.linspace(low, high, _PRICES)  # (prices, mixtures)
            rows = (np.exp(prices)[:, :, None] * mixtures).reshape(-1, mixtures.shape[1])
            at = self._descend(table, rows)
            fits = self.within(at)
            found += list(at[fits])
            # Row of the last price that is too low for the budget, per mixture.
            last = np.where(fits, -1, np.arange(len(at)) // len(mixtures))
            last = np.maximum(last.reshape(prices.shape).max(axis=0), 0)
            column = np.arange(len(mixtures))
            low, high = prices[last, column], prices[np.minimum(last + 1, _PRICES - 1), column]
        return _distinct(found)

    def _mixtures(self) -> Floats:
        """Prices of the limited resources relative to each other, (mixtures, resources)."""
        count = len(self.problem.limits)
        ends = np.eye(count)
        return ends if count == 1 else np.concatenate([ends, np.full((1, count), 1 / count)])

    def _descend(self, table: Floats, prices: Floats) -> Ints:
        """Coordinate descent on damage + price * cost; prices (rows, resources)."""
        rows, targets = len(prices), len(self.sizes)
        at = np.tile(self.positions(self.problem.space.units), (rows, 1))
        for _ in range(_SWEEPS):
            before = at.copy()
            for t in range(targets):
                choices = int(self.sizes[t])
                tried = np.repeat(at[:, None, :], choices, axis=1)
                tried[:, :, t] = np.arange(choices)
                value = table[t, :choices] + self._priced(tried, prices)
                # Reversed, so that of equals the largest count is taken.
                at[:, t] = choices - 1 - np.argmin(value[:, ::-1], axis=1)
            if np.array_equal(at, before):
                break
        return at

    def _priced(self, at: Ints, prices: Floats) -> Floats:
        """Price of candidates (rows, choices, targets) by each row's prices."""
        kept = self.kept(at)
        loads = [self.problem.cost_of(r, kept) / most for r, most in self.problem.limits.items()]
        return np.asarray(np.einsum("rcl,rl->rc", np.stack(loads, axis=-1), prices))

    # ---- exchange

    def exchange(self, table: Floats, at: Ints) -> Ints:
        """Improves a candidate within the budget until no small change does."""
        at = np.array(at)
        while True:
            better = next(
                (new for moves in self._neighbourhoods if (new := self._step(table, at, moves))
                 is not None),
                None,
            )  # fmt: skip
            if better is None:
                return self._filled(table, at)
            at = better

    def _step(self, table: Floats, at: Ints, moves: Ints) -> Ints | None:
        """The best change that keeps the budget, or None where none lowers the damage."""
        new = at + moves
        new = new[np.all((new >= 0) & (new < self.sizes), axis=1)]
        gain = self.total(table, at) - self.total(table, new)
        worthwhile = np.flatnonzero(gain > 1e-12 * (1 + abs(float(self.total(table, at)))))
        order = worthwhile[np.argsort(-gain[worthwhile], kind="stable")]
        for start in range(0, len(order), _CHUNK):
            some = new[order[start : start + _CHUNK]]
            fits = np.flatnonzero(self.within(some))
            if len(fits):
                return np.asarray(some[fits[0]])
        return None

    def _filled(self, table: Floats, at: Ints) -> Ints:
        """Single steps that cost no damage but still fit (where curves are flat)."""
        single = np.eye(len(at), dtype=np.int64)
        while True:
            able = np.flatnonzero(at + 1 < self.sizes)
            able = able[self.within(at + single[able])] if len(able) else able
            if not len(able):
                return at
            at = at + single[able[np.argmin(self.total(table, at + single[able]))]]

    @cached_property
    def _neighbourhoods(self) -> tuple[Ints, ...]:
        """Changes of one target, two, ... (changes, targets); of many targets a sample."""
        free = np.flatnonzero(self.sizes > 1).tolist()
        rng = np.random.default_rng(0)
        return tuple(
            _changes(self.sizes, free, count, rng)
            for count in range(1, min(len(free), _MOST_CHANGED) + 1)
        )

    # ---- neighbours

    def neighbours(self, parents: Ints, count: int, rng: np.random.Generator) -> Ints:
        """Random candidates near others, (at most count, targets), no two alike.

        Each is a parent with one to four targets moved by one or two steps; then other targets are
        lowered at random until the budget is met, and raised at random until it is used.

        Args:
            parents: Candidates, (parents, targets).
            count: How many to draw.
            rng: Where numbers come from.
        """
        at = parents[rng.integers(len(parents), size=count)]
        ranks = rng.random(at.shape).argsort(axis=1)
        moved = ranks < rng.integers(1, _MOST_CHANGED + 1, size=(count, 1))
        at = np.clip(at + moved * rng.choice([-2, -1, 1, 2], size=at.shape), 0, self.sizes - 1)
        at = self._lowered(at, moved, rng)
        at = self._raised(at[self.within(at)], rng)
        return np.asarray(np.unique(at, axis=0))

    def _lowered(self, at: Ints, moved: Bools, rng: np.random.Generator) -> Ints:
        """Lowers targets at random, those not moved first, until each row meets the budget."""
        while len(over := np.flatnonzero(~self.within(at) & (at > 0).any(axis=1))):
            urge = rng.random((len(over), at.shape[1])) - moved[over]
            chosen = np.where(at[over] > 0, urge, -np.inf).argmax(axis=1)
            at[over, chosen] -= 1
        return at

    def _raised(self, at: Ints, rng: np.random.Generator) -> Ints:
        """Raises targets at random as long as the budget allows."""
        active = np.arange(len(at))
        while len(active):
            able = self._raisable(at[active])
            some = able.any(axis=1)
            active, able = active[some], able[some]
            chosen = np.where(able, rng.random(able.shape), -1.0).argmax(axis=1)
            at[active, chosen] += 1
        return at

    def _raisable(self, at: Ints) -> Bools:
        """Which targets may be raised by one step, (rows, targets)."""
        able = at + 1 < self.sizes
        row, target = np.nonzero(able)
        size = max(_ENTRIES // at.shape[1], 1)
        for start in range(0, len(row), size):
            rows, targets = row[start : start + size], target[start : start + size]
            raised = at[rows]
            raised[np.arange(len(rows)), targets] += 1
            able[rows, targets] = self.within(raised)
        return able


def _changes(sizes: Ints, free: list[int], count: int, rng: np.random.Generator) -> Ints:
    """All changes of ``count`` targets by some steps, at least one of them upwards.

    By as many steps as leave few enough changes; where one step each is more than that
    already, the targets are sampled.
    """
    choices = comb(len(free), count)
    allowed = min(_MOST_MOVES, _MOST_ENTRIES // len(sizes))
    fits = int((allowed / choices) ** (1 / count) / 2)
    steps = min(max(fits, 1), int(sizes.max()) - 1)
    by = [step for step in range(-steps, steps + 1) if step]
    deltas = np.array([delta for delta in product(by, repeat=count) if max(delta) > 0])
    most = max(allowed // len(deltas), 1)
    if choices <= most:
        members = np.array(list(combinations(free, count)))
    else:
        drawn = np.argpartition(rng.random((most, len(free))), count - 1, axis=1)[:, :count]
        members = np.array(free)[drawn]
    moves = np.zeros((len(members), len(deltas), len(sizes)), np.int64)
    rows = np.arange(len(members))[:, None, None]
    moves[rows, np.arange(len(deltas))[None, :, None], members[:, None, :]] = deltas
    return moves.reshape(-1, len(sizes))


def _distinct(found: Sequence[Ints]) -> list[Ints]:
    return list({at.tobytes(): at for at in found}.values())
