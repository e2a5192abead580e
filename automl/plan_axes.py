"""Axes of a plan: which units a tensor's positions live by, and what that makes their lengths.

The length of an axis after pruning is a polynomial in the kept counts, and costs are products of
lengths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from automl.types import Kept

IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Axis:
    """One dimension of a tensor, position by position.

    Attributes:
        first: Global unit of each position, -1 for always kept; shape (length,).
        second: A second unit each position also lives by, -1 for none; shape (length,).
    """

    first: IntArray
    second: IntArray

    def __len__(self) -> int:
        """Positions in the dense network."""
        return len(self.first)

    @property
    def can_change(self) -> bool:
        """Whether any position can go."""
        return bool((self.first >= 0).any() or (self.second >= 0).any())

    def mask(self, alive: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which positions stay; ``alive`` has shape (units + 1,), its last entry True."""
        return alive[self.first] & alive[self.second]


@dataclass(frozen=True, slots=True)
class Count:
    """Length of an axis as a polynomial in the kept counts.

    ``constant + sum(m * kept[t]) + sum(m * kept[t] * kept[u])``.
    """

    constant: int
    linear: tuple[tuple[int, int], ...] = ()
    bilinear: tuple[tuple[int, int, int], ...] = ()

    @property
    def is_constant(self) -> bool:
        """Whether no target changes this length."""
        return not (self.linear or self.bilinear)

    @property
    def targets(self) -> frozenset[int]:
        """Indices of the targets that change this length."""
        return frozenset([t for t, _ in self.linear]) | frozenset(
            u for t, v, _ in self.bilinear for u in (t, v)
        )

    def __call__(self, kept: Kept) -> IntArray:
        """Length at ``kept`` (batched: shape (..., targets) gives (...))."""
        total = np.full(kept.shape[:-1], self.constant, dtype=np.int64)
        for target, times in self.linear:
            total = total + times * kept[..., target]
        for target, other, times in self.bilinear:
            total = total + times * kept[..., target] * kept[..., other]
        return total


@dataclass(frozen=True, eq=False)
class Terms:
    """Products ``coefficient * prod(lengths[factors])``, padded to one rectangle."""

    coefficients: IntArray  # (terms,)
    factors: IntArray  # (terms, most factors), padded with -1

    @classmethod
    def of(cls, terms: Sequence[tuple[int, tuple[int, ...]]]) -> Terms:
        """From a coefficient and its factors each."""
        most = max((len(factors) for _, factors in terms), default=0)
        table = np.full((len(terms), most), -1, dtype=np.int64)
        for row, (_, factors) in enumerate(terms):
            table[row, : len(factors)] = factors
        return cls(np.array([c for c, _ in terms], dtype=np.int64), table)


def products(lengths: IntArray, terms: Terms) -> IntArray:
    """Every term at lengths of shape (..., axes); shape (..., terms)."""
    one = np.ones((*lengths.shape[:-1], 1), dtype=np.int64)
    padded = np.concatenate([lengths, one], axis=-1)  # index -1 is the padding's 1
    return np.asarray(padded[..., terms.factors].prod(-1) * terms.coefficients, dtype=np.int64)


def count_axis(axis: Axis, offsets: IntArray) -> Count:
    """The polynomial that gives an axis's length.

    Raises:
        ValueError: If the units of a target do not occur equally often, so that no polynomial
            in the counts exists.
    """
    constant = int(((axis.first < 0) & (axis.second < 0)).sum())
    single = np.where(axis.second < 0, axis.first, np.where(axis.first < 0, axis.second, -1))
    linear = tuple(_even_occurrences(single[single >= 0], offsets))
    both = (axis.first >= 0) & (axis.second >= 0)
    bilinear = tuple(_even_pairs(axis.first[both], axis.second[both], offsets))
    return Count(constant, linear, bilinear)


def _even_occurrences(units: IntArray, offsets: IntArray) -> Iterator[tuple[int, int]]:
    occurrences = np.bincount(units, minlength=int(offsets[-1]))
    for target in np.unique(np.searchsorted(offsets, units, side="right") - 1).tolist():
        times = occurrences[offsets[target] : offsets[target + 1]]
        if not (times == times[0]).all():
            raise ValueError(f"units of target {target} occur unevenly in an axis")
        yield target, int(times[0])


def _even_pairs(
    first: IntArray, second: IntArray, offsets: IntArray
) -> Iterator[tuple[int, int, int]]:
    owner = [np.searchsorted(offsets, units, side="right") - 1 for units in (first, second)]
    for target, other in sorted(set(zip(owner[0].tolist(), owner[1].tolist(), strict=True))):
        here = (owner[0] == target) & (owner[1] == other)
        rows, columns = offsets[target + 1] - offsets[target], offsets[other + 1] - offsets[other]
        cells = (first[here] - offsets[target]) * columns + (second[here] - offsets[other])
        times = np.bincount(cells, minlength=int(rows * columns))
        if not (times == times[0]).all():
            raise ValueError(f"targets {target} and {other} do not form a full rectangle")
        yield target, other, int(times[0])


def encode_runs(values: IntArray) -> list[list[int]]:
    """Runs ``[start, step, length]`` with step 0 or 1, so that JSON stays short."""
    runs: list[list[int]] = []
    for value in values.tolist():
        if runs:
            start, step, length = runs[-1]
            if length == 1 and value - start in (0, 1):
                runs[-1] = [start, value - start, 2]
                continue
            if length > 1 and value == start + step * length:
                runs[-1][2] += 1
                continue
        runs.append([value, 0, 1])
    return runs


def decode_runs(runs: Sequence[Sequence[int]]) -> IntArray:
    """Undoes :func:`encode_runs`."""
    pieces = [start + step * np.arange(length) for start, step, length in runs]
    return np.concatenate([np.zeros(0, dtype=np.int64), *pieces]).astype(np.int64)
