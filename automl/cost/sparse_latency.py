"""Latency of networks with zeros inside layers, each layer in the format that runs it fastest.

A table holds, beside an operator's dense time, those of the formats that could execute it at some
densities (``Signature.format`` and ``density``). Between two densities times are interpolated; more
weights never take less time, so that what was measured is made to rise. A layer costs the least of
dense and all formats: that minimum is what a search sees, and what the executors then choose.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from automl.cost.latency import Floats, LatencySum, Times
from automl.cost.lut.operators import Operators
from automl.cost.lut.signature import Signature
from automl.hashing import digest
from automl.plan import IndexPlan
from automl.types import Kept

DENSE = "dense"

#: Above, a layer counts as dense: no format gains there.
_DENSEST = 0.5


class MaskedCounts(Protocol):
    """What is pruned inside layers; ``automl.pruning.masked_plan.MaskedPlan``."""

    @property
    def base(self) -> IndexPlan:
        """The plan of the dense network."""

    @property
    def dense(self) -> Kept:
        """Kept counts of the dense network."""

    @property
    def grains(self) -> Mapping[str, str]:
        """Name of each weight -> what it is pruned by."""

    def split(self, kept: Kept) -> tuple[Kept, Kept]:
        """Kept counts of channels, and inside weights; batched."""

    def densities(self, kept: Kept) -> NDArray[np.float64]:
        """Fraction of each weight that stays; (..., targets) gives (..., weights)."""


class Offers(Protocol):
    """Which formats could execute an operator, and at which densities they are measured."""

    @property
    def version(self) -> str:
        """Changes with what executes them: times of another version say nothing."""

    def __call__(self, operator: Signature, grain: str) -> Mapping[str, Sequence[float]]:
        """Format -> densities, ascending.

        Args:
            operator: In its dense form.
            grain: What its weight is pruned by.
        """

    def signature(self, operator: Signature, form: str, density: float) -> Signature:
        """What a table knows it by in a format."""


@dataclass(frozen=True, eq=False)
class SparseOperators:
    """All operators of a network, with the weights that are pruned inside.

    Attributes:
        plan: What can be pruned.
        dense: The operators.
        weights: For each operator the position of its weight among ``plan.grains``, or None.
        offers: Which formats there are.
    """

    plan: MaskedCounts
    dense: Operators
    weights: tuple[int | None, ...]
    offers: Offers

    @cached_property
    def grains(self) -> tuple[str, ...]:
        """What each weight is pruned by."""
        return tuple(self.plan.grains.values())

    @cached_property
    def key(self) -> str:
        """Names this network, whatever its weights, and what executes it."""
        return digest([self.dense.key, list(self.grains), list(self.weights), self.offers.version])

    def at(self, kept: Kept) -> tuple[Signature, ...]:
        """All operators in their dense form, in order; ``kept`` has shape (targets,)."""
        return self.dense.at(self.plan.split(kept)[0])

    def variants(self, operator: Signature, weight: int) -> list[Signature]:
        """An operator in all formats and densities that are measured."""
        offered = self.offers(operator, self.grains[weight])
        sign = self.offers.signature
        return [sign(operator, form, d) for form, all_ in offered.items() for d in all_]

    def reachable(self, grids: Sequence[Kept]) -> list[Signature]:
        """All signatures of all networks on the grids, each once, in network order."""
        base = self.plan.base
        channels = len(grids) - len(self.grains)
        own = list(grids[:channels]) if channels else [np.array([n]) for n in base.dense]
        found = dict.fromkeys(self.dense.reachable(own))
        for column, weight in enumerate(self.weights):
            if weight is not None:
                alone = replace(self.dense, operators=(self.dense.operators[column],))
                for operator in alone.reachable(own):
                    found |= dict.fromkeys(self.variants(operator, weight))
        return list(found)


@dataclass(frozen=True, slots=True)
class Executed:
    """How one weight is executed.

    Attributes:
        format: The fastest.
        density: Fraction of the weight that is left.
        us: Predicted time, microseconds.
        dense_us: That of dense.
    """

    format: str
    density: float
    us: float
    dense_us: float


class SparseSum:
    """Summed times of the operators, each in its fastest format."""

    def __init__(self, operators: SparseOperators, times: Times) -> None:
        """Asks for nothing yet."""
        self.operators = operators
        self._times = times
        self._dense = LatencySum(operators.dense, times)
        self._curves: dict[tuple[Signature, int], dict[str, tuple[Floats, Floats]]] = {}

    def __call__(self, kept: Kept) -> Floats:
        """Milliseconds; batched: (..., targets) gives (...).

        Raises:
            InputError: An operator is not in the table and cannot be measured.
        """
        kept = np.asarray(kept, np.int64)
        rows = kept.reshape(math.prod(kept.shape[:-1]), kept.shape[-1])
        plan = self.operators.plan
        channels = plan.split(rows)[0]
        distinct, inverse = np.unique(channels, axis=0, return_inverse=True)
        each = self._dense.each_us(distinct)[inverse.reshape(-1)]
        densities = plan.densities(rows)
        for column, weight in enumerate(self.operators.weights):
            if weight is not None:
                for at, slim in enumerate(distinct):
                    own = inverse.reshape(-1) == at
                    curves = self._curve(slim, column, weight)
                    for grid, values in curves.values():
                        at_density = _interpolated(densities[own, weight], grid, values)
                        each[own, column] = np.minimum(each[own, column], at_density)
        return np.asarray(each.sum(-1).reshape(kept.shape[:-1]) / 1e3, np.float64)

    @property
    def frozen_ms(self) -> float:
        """The operators that neither channels nor zeros change."""
        ops = self.operators.dense.operators
        fixed = [
            op.at(self.operators.plan.base.lengths(self.operators.plan.base.dense).tolist())
            for op, weight in zip(ops, self.operators.weights, strict=True)
            if not op.slots and weight is None
        ]
        times = dict.fromkeys(fixed, 0.0)
        times.update(zip(times, self._times.times_us(list(times)).tolist(), strict=True))
        return sum(times[signature] for signature in fixed) / 1e3

    def executed(self, kept: Kept) -> dict[str, Executed]:
        """How each weight is executed; ``kept`` has shape (targets,)."""
        plan = self.operators.plan
        channels, densities = plan.split(kept)[0], plan.densities(kept)
        each = self._dense.each_us(channels)
        names, found = list(plan.grains), {}
        for column, weight in enumerate(self.operators.weights):
            if weight is None:
                continue
            density, dense = float(densities[weight]), float(each[column])
            times = {DENSE: dense}
            for form, (grid, values) in self._curve(channels, column, weight).items():
                times[form] = float(_interpolated(np.array([density]), grid, values)[0])
            best = min(times, key=lambda form: times[form])
            found[names[weight]] = Executed(best, density, times[best], dense)
        return found

    def _curve(self, channels: Kept, column: int, weight: int) -> dict[str, tuple[Floats, Floats]]:
        """Format -> densities and rising times, of an operator at some channel counts."""
        ops = self.operators
        lengths = ops.plan.base.lengths(channels).tolist()
        operator = ops.dense.operators[column].at(lengths)
        key = operator, weight
        if key not in self._curves:
            wanted = ops.variants(operator, weight)
            times = dict(zip(wanted, self._times.times_us(wanted).tolist(), strict=True))
            self._curves[key] = {
                form: _rising(grid, [times[ops.offers.signature(operator, form, d)] for d in grid])
                for form, grid in ops.offers(operator, ops.grains[weight]).items()
            }
        return self._curves[key]


def _rising(grid: Sequence[float], times: Sequence[float]) -> tuple[Floats, Floats]:
    return np.asarray(grid, np.float64), np.maximum.accumulate(np.asarray(times, np.float64))


def _interpolated(densities: Floats, grid: Floats, values: Floats) -> Floats:
    """Times at densities; infinite where no format gains."""
    inside = densities <= min(_DENSEST, float(grid[-1])) + 1e-3
    return np.where(inside, np.interp(densities, grid, values), np.inf)
