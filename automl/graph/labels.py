"""Channel labels: integers that travel through the network with the data.

Every prunable position of every parameter gets a label (an integer >= 0); activations carry the
labels of the channels they hold, -1 where a value is always there. Data movement replays on the
labels; operators that tie channels together add edges between labels. Labels that end up in one
connected component are kept or removed together.

Some positions live by two things at once: a channel of an attention layer by its head and by its
place within the head. Such a *cell* has two factors, a row label and a column label, and is kept
iff both are. Label tensors are int64 and are kept small by giving every dimension along which
nothing varies a stride of 0 (:func:`compact`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

IntArray = NDArray[np.int64]


def compact(labels: Tensor) -> Tensor:
    """The same labels, with stride 0 along every dimension they do not vary along."""
    for dim in range(labels.dim()):
        size, stride = labels.shape[dim], labels.stride(dim)
        if size > 1 and stride != 0 and not varies(labels, dim):
            labels = labels.narrow(dim, 0, 1).expand(labels.shape)
    return labels


def varies(labels: Tensor, dim: int) -> bool:
    """Whether the labels differ along ``dim``."""
    if labels.shape[dim] <= 1 or labels.stride(dim) == 0:
        return False
    core = squeeze_free(labels, keep=dim)
    return bool((core != core.narrow(dim, 0, 1)).any())


def varying_dims(labels: Tensor) -> list[int]:
    """Dimensions along which the labels differ."""
    return [dim for dim in range(labels.dim()) if varies(labels, dim)]


def squeeze_free(labels: Tensor, keep: int | None = None) -> Tensor:
    """Narrows stride-0 dimensions to one entry, so that work is done once per distinct value."""
    for dim in range(labels.dim()):
        if dim != keep and labels.shape[dim] > 1 and labels.stride(dim) == 0:
            labels = labels.narrow(dim, 0, 1)
    return labels


def always(shape: torch.Size | tuple[int, ...]) -> Tensor:
    """Labels of data that is always there."""
    return torch.tensor(-1).expand(shape)


@dataclass(frozen=True, eq=False)
class Split:
    """A view that split labelled channels over several dimensions, of which some now vary."""

    labels: Tensor
    dims: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Pin:
    """A dimension whose positions the program addresses by number and which must stay whole."""

    labels: Tensor
    dim: int
    where: str
    reason: str


class LabelSpace:
    """Hands out labels and collects what ties them together."""

    def __init__(self) -> None:
        """Starts with no labels."""
        self.size = 0
        self.splits: list[Split] = []
        self.pins: list[Pin] = []
        self._edges: list[IntArray] = []
        self._frozen: list[tuple[IntArray, str, str]] = []
        self._factors: list[tuple[IntArray, IntArray, IntArray]] = []
        self._heads: list[tuple[IntArray, IntArray]] = []
        self._row = torch.zeros(0, dtype=torch.int64)
        self._column = torch.zeros(0, dtype=torch.int64)

    def fresh(self, *shape: int) -> Tensor:
        """New labels of the given shape."""
        count = int(np.prod(shape, dtype=np.int64))
        labels = torch.arange(self.size, self.size + count).view(shape)
        self.size += count
        return labels

    def freeze(self, labels: Tensor | None, where: str, reason: str) -> None:
        """Marks labels as never to be removed; ``where`` and ``reason`` are for people."""
        if labels is not None:
            values = np.unique(squeeze_free(labels).numpy())
            self._frozen.append((values[values >= 0], where, reason))

    def freeze_atoms(self, atoms: Atoms, numbers: IntArray, where: str, reason: str) -> None:
        """Marks atoms of an earlier outcome as never to be removed."""
        numbers = np.unique(numbers[numbers >= 0])
        present, labels = np.unique(atoms.component, return_index=True)
        self._frozen.append((labels[np.isin(present, numbers)], where, reason))

    def tie(self, one: Tensor, other: Tensor, where: str) -> None:
        """Positions of two broadcastable label tensors are kept or removed together.

        A labelled position tied to one that is always there is frozen.
        """
        one, other = _broadcast(one, other)
        for dim in range(one.dim()):
            if one.stride(dim) == 0 and other.stride(dim) == 0 and one.shape[dim] > 1:
                one, other = one.narrow(dim, 0, 1), other.narrow(dim, 0, 1)
        a, b = one.reshape(-1).numpy(), other.reshape(-1).numpy()
        differ = a != b
        pairs = np.stack([a[differ], b[differ]], axis=1)
        there = (pairs < 0).any(axis=1)
        if there.any():
            reason = "shares positions with data that is always there"
            self.freeze(torch.from_numpy(pairs[there]), where, reason)
        pairs = pairs[~there]
        if len(pairs) > 64:
            keys = np.unique(pairs[:, 0] * np.int64(self.size) + pairs[:, 1])
            pairs = np.stack(np.divmod(keys, self.size), axis=1)
        if len(pairs):
            self._edges.append(pairs)

    def merge(self, labels: Tensor, dims: list[int], where: str) -> Tensor:
        """Ties all positions along ``dims``; returns labels that no longer vary along them."""
        for dim in dims:
            if varies(labels, dim):
                first = labels.narrow(dim, 0, 1)
                self.tie(first, labels, where)
                labels = first.expand(labels.shape)
        return labels

    def channels(self, labels: Tensor, dim: int, where: str) -> Tensor:
        """One label per position of ``dim``, everything else tied; shape (size of dim,)."""
        dim = dim % labels.dim()
        others = [d for d in range(labels.dim()) if d != dim]
        merged = self.merge(labels, others, where)
        for other in others:
            merged = merged.narrow(other, 0, 1)
        return merged.reshape(-1)

    # ---- cells with two factors

    def product(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Cells that live by a row AND a column label; the shapes broadcast."""
        rows, columns = _broadcast(rows, columns)
        cells = self.fresh(*rows.shape)
        self._record(cells, rows, columns)
        return cells

    def factor(self, cells: Tensor, row_dim: int, column_dim: int) -> tuple[Tensor, Tensor]:
        """Row and column labels of cells that vary along two dimensions.

        Args:
            cells: Labels; may vary along ``row_dim`` and ``column_dim`` only.
            row_dim: Dimension that becomes the rows (heads).
            column_dim: Dimension that becomes the columns (places within a head).

        Returns:
            Labels (size of row_dim,) and (size of column_dim,); -1 where always there.
        """
        row_dim, column_dim = row_dim % cells.dim(), column_dim % cells.dim()
        if row_dim > column_dim:  # of cells that were seen before, rows must be rows again
            columns, rows = self.factor(cells, column_dim, row_dim)
            return rows, columns
        for dim in range(cells.dim()):
            if dim not in (row_dim, column_dim):
                cells = cells.narrow(dim, 0, 1)
        grid = cells.movedim((row_dim, column_dim), (0, 1)).reshape(
            cells.shape[row_dim], cells.shape[column_dim]
        )
        if not varies(grid, 0):
            return always((grid.shape[0],)), grid[0]
        if not varies(grid, 1):
            return grid[:, 0], always((grid.shape[1],))
        known = self.factors_of(grid)
        for row, column in () if known is None else (known, known[::-1]):  # or transposed since
            if not varies(row, 1) and not varies(column, 0):
                return row[:, 0], column[0]
        rows, columns = self.fresh(grid.shape[0]), self.fresh(grid.shape[1])
        self._record(grid, rows[:, None].expand_as(grid), columns[None].expand_as(grid))
        return rows, columns

    def name_heads(self, heads: Tensor, places: Tensor) -> None:
        """Remembers that rows and columns are what attention calls heads and head dimension."""
        self._heads.append(tuple(t[t >= 0].numpy() for t in (heads, places)))  # type: ignore[arg-type]

    def factors_of(self, cells: Tensor) -> tuple[Tensor, Tensor] | None:
        """Recorded row and column labels of cells, None if any has none."""
        self._grow()
        if bool((cells < 0).any()) or bool((self._row[cells] < 0).any()):
            return None
        return self._row[cells], self._column[cells]

    def _record(self, cells: Tensor, rows: Tensor, columns: Tensor) -> None:
        self._grow()
        flat, row, column = (t.reshape(-1) for t in (cells, rows, columns))
        there = flat >= 0
        if not bool(there.all()):  # a cell that is always there keeps its row and column
            self.freeze(row[~there], "attention", "part of it is always there")
            self.freeze(column[~there], "attention", "part of it is always there")
        flat, row, column = flat[there], row[there], column[there]
        self._row[flat], self._column[flat] = row, column
        self._factors.append((flat.numpy(), row.numpy(), column.numpy()))

    def _grow(self) -> None:
        missing = self.size - len(self._row)
        if missing > 0:
            pad = torch.full((missing,), -1, dtype=torch.int64)
            self._row, self._column = torch.cat([self._row, pad]), torch.cat([self._column, pad])

    # ---- the outcome

    def resolve(self) -> Atoms:
        """Unites what is tied and says, per label, the one or two atoms it lives by."""
        edges = list(self._edges)
        component = _components(self.size, edges)
        while True:  # uniting rows can unite cells, whose rows must then be united
            extra = self._factor_edges(component)
            if not len(extra):
                break
            edges.append(extra)
            merged = _components(self.size, edges)
            if merged.max(initial=-1) == component.max(initial=-1):
                break
            component = merged
        return self._atoms(component)

    def _factor_edges(self, component: IntArray) -> IntArray:
        """Pairs of rows, and of columns, of cells that are one."""
        if not self._factors:
            return np.zeros((0, 2), dtype=np.int64)
        cell, row, column = (np.concatenate(part) for part in zip(*self._factors, strict=True))
        owner = component[cell]
        _, firsts, inverse = np.unique(owner, return_index=True, return_inverse=True)
        pairs = [np.stack([part[firsts[inverse]], part], axis=1) for part in (row, column)]
        both = np.concatenate(pairs)
        apart = component[both[:, 0]] != component[both[:, 1]]
        return np.asarray(both[apart], dtype=np.int64)

    def _atoms(self, component: IntArray) -> Atoms:
        classes = int(component.max(initial=-1)) + 1
        first, second = np.arange(classes), np.full(classes, -1, dtype=np.int64)
        factors = [np.concatenate(p) for p in zip(*self._factors, strict=True)]
        if factors:
            cell, row, column = (component[part] for part in factors)
            first[cell], second[cell] = row, column
        frozen = np.zeros(classes, dtype=bool)
        reasons: dict[int, tuple[str, str]] = {}
        for labels, where, reason in self._frozen:
            named = np.unique(component[labels])
            for atom in np.unique(np.concatenate([first[named], second[named]])).tolist():
                if atom >= 0:
                    frozen[atom] = True
                    reasons.setdefault(atom, (where, reason))
        roles = np.zeros(classes, dtype=np.int8)
        for heads, places in self._heads:
            roles[component[heads]] = 1
            roles[component[places]] = 2
        # An atom that is itself a cell has been replaced by its factors everywhere.
        first = np.where(frozen[first], -1, first)
        second = np.where((second >= 0) & frozen[second], -1, second)
        return Atoms(component, first, second, frozen, reasons, roles)


@dataclass(frozen=True, eq=False)
class Atoms:
    """What every label lives by.

    Attributes:
        component: Class of each label; shape (labels,).
        first: First atom of each class, -1 for always there; shape (classes,).
        second: Second atom, -1 for none.
        frozen: Whether a class, taken as an atom, may never be removed.
        reasons: Frozen atom -> (where, why).
        roles: 0 plain, 1 head of attention, 2 place within heads, per class.
    """

    component: IntArray
    first: IntArray
    second: IntArray
    frozen: NDArray[np.bool_]
    reasons: dict[int, tuple[str, str]]
    roles: NDArray[np.int8]

    def of(self, labels: Tensor) -> tuple[IntArray, IntArray]:
        """Atoms of each label, -1 for always there; both of the labels' shape."""
        values = labels.numpy()
        there = values < 0
        if there.all():
            return np.full(values.shape, -1), np.full(values.shape, -1)
        classes = self.component[np.maximum(values, 0)]
        return (
            np.where(there, -1, self.first[classes]),
            np.where(there, -1, self.second[classes]),
        )

    def along(self, labels: Tensor, dim: int) -> tuple[IntArray, IntArray]:
        """Atoms every position of ``dim`` lives by, whatever the other dimensions."""
        size, dim = labels.shape[dim], dim % labels.dim()
        if size > 1 and not varies(labels, dim):
            first, second = self.along(labels.narrow(dim, 0, 1), dim)
            return first.repeat(size), second.repeat(size)
        core = squeeze_free(labels, keep=dim).movedim(dim, 0)
        first, second = self.of(core.reshape(size, -1))
        if first.shape[1] == 1:
            return first[:, 0].copy(), second[:, 0].copy()
        return _common(first, second)


def _broadcast(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    shape: torch.Size = torch.broadcast_shapes(one.shape, other.shape)  # type: ignore[no-untyped-call]
    return one.expand(shape), other.expand(shape)


def _common(first: IntArray, second: IntArray) -> tuple[IntArray, IntArray]:
    """Atoms shared by all columns of each row."""
    result = []
    for candidate in (first[:, :1], second[:, :1]):
        shared = ((first == candidate) | (second == candidate)).all(axis=1)
        result.append(np.where(shared, candidate[:, 0], -1))
    return result[0], result[1]


def _components(size: int, edges: list[IntArray]) -> IntArray:
    pairs = np.concatenate([np.zeros((0, 2), dtype=np.int64), *edges])
    ones = np.ones(len(pairs), dtype=np.int8)
    graph = coo_matrix((ones, (pairs[:, 0], pairs[:, 1])), shape=(size, size))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)
