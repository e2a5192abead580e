"""The operators of all slim networks of one plan: signatures as functions of the kept counts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
from numpy.typing import NDArray

from automl.cost.lut.signature import (
    Signature,
    canonical,
    fill,
    flatten,
    holes_of_layout,
    without_layout,
)
from automl.hashing import digest
from automl.plan import IndexPlan
from automl.types import InputError, Kept

IntArray = NDArray[np.int64]

#: Signatures of one operator that are measured before a search asks for them.
_MOST_COMBINATIONS = 4000


class Ambiguous(InputError):
    """A size could follow several channel counts; more recordings may tell which."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A whole number of a signature that pruning changes: ``length(axis) * times // per``."""

    position: int
    axis: int
    times: int
    per: int


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator of a network.

    Attributes:
        skeleton: Its signature with holes (see ``automl.cost.lut.signature.flatten``).
        numbers: What fills the holes in the dense network.
        slots: The holes that pruning changes.
    """

    skeleton: str
    numbers: tuple[int, ...]
    slots: tuple[Slot, ...]

    @property
    def family(self) -> str:
        """What operators have in common that differ in pruned sizes alone."""
        pruned = {slot.position for slot in self.slots}
        fixed = [None if i in pruned else n for i, n in enumerate(self.numbers)]
        return canonical([self.skeleton, fixed, [(s.position, s.times, s.per) for s in self.slots]])

    @property
    def axes(self) -> tuple[int, ...]:
        """The distinct axes whose lengths it depends on."""
        return tuple(dict.fromkeys(slot.axis for slot in self.slots))

    def at(self, lengths: Sequence[int]) -> Signature:
        """Its signature where axes have these lengths."""
        numbers = list(self.numbers)
        for slot in self.slots:
            numbers[slot.position] = lengths[slot.axis] * slot.times // slot.per
        return fill(self.skeleton, numbers)


@dataclass(frozen=True, eq=False)
class Operators:
    """All operators of a network, in the order executed.

    Attributes:
        plan: Structure of the dense network.
        operators: Its operators.
    """

    plan: IndexPlan
    operators: tuple[Operator, ...]

    @classmethod
    def align(
        cls, plan: IndexPlan, kepts: Sequence[Kept], records: Sequence[Sequence[Signature]]
    ) -> Operators:
        """Finds what follows which axis, from recordings of several slim networks.

        Args:
            plan: Structure of the dense network.
            kepts: Kept counts of the networks recorded, the dense one first.
            records: Their operators.

        Raises:
            Ambiguous: A size could follow several axes.
            InputError: The networks execute different operators, or a size follows no axis.
        """
        if len({len(record) for record in records}) != 1:
            raise InputError("pruning changes which operators this network runs; no table fits it")
        lengths = np.stack([plan.lengths(kept) for kept in kepts])
        finder = _AxisFinder(plan, lengths)
        found = [finder.operator(column) for column in zip(*records, strict=True)]
        return cls(plan, tuple(found))

    @cached_property
    def key(self) -> str:
        """Names this sequence of operators, whatever the weights.

        The dense network's sizes are in it: one of another width takes another time.
        """
        about = [[o.family, o.numbers, [s.axis for s in o.slots]] for o in self.operators]
        return digest(about)

    @property
    def frozen(self) -> tuple[Signature, ...]:
        """The operators that no pruning changes."""
        return tuple(fill(o.skeleton, o.numbers) for o in self.operators if not o.slots)

    def at(self, kept: Kept) -> tuple[Signature, ...]:
        """All operators of one slim network, in order; ``kept`` has shape (targets,)."""
        lengths = self.plan.lengths(kept).tolist()
        return tuple(operator.at(lengths) for operator in self.operators)

    # ---- batched identities

    def keys(self, kept: Kept) -> NDArray[np.uint64]:
        """An identity of each operator's signature; batched: (..., targets) to (..., operators).

        Equal signatures of one family have equal keys; unequal ones differ but for one chance in
        2 ** 64, since lengths are multiplied by independent numbers.
        """
        lengths = self.plan.lengths(kept).astype(np.uint64)
        constants, matrix = self._mixing
        return np.asarray(lengths[..., self._used] @ matrix + constants, np.uint64)

    @cached_property
    def _used(self) -> IntArray:
        return np.array(sorted({s.axis for o in self.operators for s in o.slots}), np.int64)

    @cached_property
    def _mixing(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Constants (operators,) and the matrix (used axes, operators) that make keys."""
        row = {axis: index for index, axis in enumerate(self._used.tolist())}
        constants = np.zeros(len(self.operators), np.uint64)
        factors: dict[tuple[int, int], int] = {}
        for column, operator in enumerate(self.operators):
            constants[column] = _number(operator.family)
            for slot in operator.slots:
                cell = (row[slot.axis], column)
                factor = _number(operator.family, slot.position)
                factors[cell] = (factors.get(cell, 0) + factor) % 2**64
        matrix = np.zeros((len(self._used), len(self.operators)), np.uint64)
        for cell, factor in factors.items():
            matrix[cell] = factor
        return constants, matrix

    # ---- what a search can reach

    def reachable(self, grids: Sequence[Kept]) -> list[Signature]:
        """All signatures of all networks on the grids, each once, in network order.

        Of an operator with very many, as of a concatenation of many branches, a random part: what
        a search asks for beyond it is measured when it does.

        Args:
            grids: The counts that each target may keep.
        """
        found: dict[Signature, None] = {}
        seen: set[tuple[str, tuple[tuple[int, ...], ...]]] = set()
        values = {axis: self._lengths_of(axis, grids) for axis in self._used.tolist()}
        for operator in self.operators:
            options = [tuple(values[axis]) for axis in operator.axes]
            same = (operator.family, tuple(options))
            if same in seen:
                continue
            seen.add(same)
            for chosen in self._combinations(operator, options, grids):
                lengths = dict(zip(operator.axes, chosen, strict=True))
                found[operator.at(_Lookup(lengths))] = None
        return list(found)

    def _combinations(
        self, operator: Operator, options: list[tuple[int, ...]], grids: Sequence[Kept]
    ) -> Iterable[tuple[int, ...]]:
        """Lengths that the axes of an operator can have together."""
        counts = [self.plan.counts[axis] for axis in operator.axes]
        if math.prod(map(len, options)) > _MOST_COMBINATIONS:
            return self._drawn(operator, grids)
        shared = [a.targets & b.targets for i, a in enumerate(counts) for b in counts[:i]]
        if not any(shared):
            return product(*options)
        # Axes that hang on the same targets: not every pair of lengths occurs.
        targets = sorted(set().union(*(count.targets for count in counts)))
        kept = np.stack([np.zeros(len(grids), np.int64) + 1])
        rows = np.array(list(product(*(grids[t].tolist() for t in targets))), np.int64)
        kept = np.repeat(kept, len(rows), axis=0)
        kept[:, targets] = rows
        together = np.stack([count(kept) for count in counts], axis=-1)
        return [tuple(row) for row in np.unique(together, axis=0).tolist()]

    def _drawn(self, operator: Operator, grids: Sequence[Kept]) -> list[tuple[int, ...]]:
        """Lengths that the axes of an operator have in networks drawn at random."""
        counts = [self.plan.counts[axis] for axis in operator.axes]
        rng = np.random.default_rng(0)
        kept = np.stack([rng.choice(grid, _MOST_COMBINATIONS) for grid in grids], axis=-1)
        together = np.stack([count(kept) for count in counts], axis=-1)
        return [tuple(row) for row in np.unique(together, axis=0).tolist()]

    def _lengths_of(self, axis: int, grids: Sequence[Kept]) -> list[int]:
        """Every length of an axis on the grids, ascending."""
        count = self.plan.counts[axis]
        if not count.bilinear:
            sums = np.array([count.constant], np.int64)
            for target, times in count.linear:
                sums = np.unique(sums[:, None] + times * grids[target][None, :])
            return [int(value) for value in sums]
        targets = sorted(count.targets)
        rows = np.array(list(product(*(grids[t].tolist() for t in targets))), np.int64)
        kept = np.ones((len(rows), len(grids)), np.int64)
        kept[:, targets] = rows
        return [int(value) for value in np.unique(count(kept))]


def _number(*parts: object) -> int:
    """A number below 2 ** 64 that has nothing to do with those of other parts."""
    return int(digest(list(parts))[:16], 16)


class _Lookup(Sequence[int]):
    """Lengths by axis, where only some axes matter."""

    def __init__(self, lengths: dict[int, int]) -> None:
        self._lengths = lengths

    def __getitem__(self, axis: int) -> int:  # type: ignore[override]
        return self._lengths[axis]

    def __len__(self) -> int:
        return len(self._lengths)


def _columns(
    skeleton: str, skeletons: Sequence[str], numbers: Sequence[Sequence[int]]
) -> Iterator[tuple[Sequence[int], IntArray]]:
    """For every number of a skeleton, in which networks it is known, and what it is there.

    Args:
        skeleton: One of them.
        skeletons: Of one operator in several networks; they differ in the layout alone.
        numbers: What fills their holes.
    """
    alike = [row for row, one in enumerate(skeletons) if one == skeleton]
    laid_out = {one: holes_of_layout(one) for one in set(skeletons)}
    sizes = np.array(
        [
            [number for number, laid in zip(own, laid_out[one], strict=True) if not laid]
            for one, own in zip(skeletons, numbers, strict=True)
        ],
        np.int64,
    )
    own_sizes = iter(sizes.T)
    for position, laid in enumerate(laid_out[skeleton]):
        if laid:
            yield alike, np.array([numbers[row][position] for row in alike], np.int64)
        else:
            yield range(len(sizes)), next(own_sizes)


class _AxisFinder:
    """Says which axis a column of sizes follows."""

    def __init__(self, plan: IndexPlan, lengths: IntArray) -> None:
        self._plan = plan
        self._lengths = lengths  # (networks, axes)
        self._known: dict[tuple[tuple[int, ...], tuple[int, ...]], tuple[int, int, int]] = {}

    def operator(self, column: Sequence[Signature]) -> Operator:
        """The operator that was recorded as ``column``, one signature per network."""
        skeletons, numbers = zip(*map(flatten, column), strict=True)
        if len(set(map(without_layout, set(skeletons)))) != 1:
            raise InputError(f"pruning changes how {column[0]} is called; no table fits it")
        # Where only the layout changes, as of views of one head or of heads cut in their queries,
        # the one that most networks have stands for all.
        ((skeleton, _),) = Counter(skeletons).most_common(1)
        slots, constants = [], list(numbers[skeletons.index(skeleton)])
        for position, (rows, sizes) in enumerate(_columns(skeleton, skeletons, numbers)):
            # A stride of 0 among others is that of a dimension of one element, and means nothing.
            told = sizes[sizes != 0]
            if (told != told[:1]).any():
                slots.append(Slot(position, *self._follow(sizes, rows, column[0])))
            elif len(told):
                constants[position] = int(told[0])
        return Operator(skeleton, tuple(constants), tuple(slots))

    def _follow(
        self, sizes: IntArray, rows: Sequence[int], example: Signature
    ) -> tuple[int, int, int]:
        told = [(row, size) for row, size in zip(rows, sizes.tolist(), strict=True) if size]
        known = tuple(row for row, _ in told), tuple(size for _, size in told)
        if known not in self._known:
            self._known[known] = self._search(*known, example)
        return self._known[known]

    def _search(
        self, rows: Sequence[int], found: Sequence[int], example: Signature
    ) -> tuple[int, int, int]:
        sizes, lengths = np.array(found, np.int64), self._lengths[list(rows)]
        equal = np.flatnonzero((lengths == sizes[:, None]).all(0))
        if len(equal):
            if len({self._plan.counts[axis] for axis in equal.tolist()}) > 1:
                raise Ambiguous(f"a size of {example} could follow several channel counts")
            return int(equal[0]), 1, 1
        # Proportional: size[i] * length[0] == length[i] * size[0] in every network i.
        crossed = sizes[:, None] * lengths[:1] == lengths * sizes[0]
        varies = (lengths != lengths[:1]).any(0)
        proportional = np.flatnonzero(crossed.all(0) & varies)
        if not len(proportional):
            raise InputError(f"a size of {example} follows no channel count; no table fits it")
        axis = int(proportional[0])
        divisor = int(np.gcd(sizes[0], lengths[0, axis]))
        return axis, int(sizes[0]) // divisor, int(lengths[0, axis]) // divisor
