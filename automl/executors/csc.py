"""Compressed sparse columns: a column whose activation is zero is never read.

After a ReLU most activations are zero (60 to 80 % in the layers of arXiv 1602.01528, table III).
Stored by columns, a matrix then costs nothing for them. Two ways to say which rows a column has
entries in: a 16-bit number each (``csc``), for one addition to memory per weight; or a bit for
every row (``bitmap``), for one vector addition per 16 rows, which wins from a density of about
15 % on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from automl.executors.kernels import cpu, csc
from automl.executors.packed import PackedLinear, aligned_zeros
from automl.executors.rows import Float32, Rows, as_bias, as_finite, as_weight

_LANES = 16
#: Columns of ``csc`` are filled up to multiples of this.
_QUAD = 4
#: Words of so many entries, with rows of 16 and of 32 bits.
_NARROW_WORDS, _WIDE_WORDS = 6, 8
#: Words fetched ahead.
_AHEAD = 2048


@dataclass(frozen=True, eq=False)
class CscLinear(PackedLinear):
    """A packed layer, exact.

    Attributes:
        wide: Whether rows have 32 bits, not 16.
        starts: First word of every column and the end, shape (in_features + 1).
        stream: Four entries at a time: their rows, ascending in a column, then their weights.
            Columns are filled up with entries of row ``out_features`` and weight zero.
    """

    wide: bool
    starts: NDArray[np.int64]
    stream: NDArray[np.uint32]

    kind: ClassVar[str] = "csc_float32"

    @property
    def name(self) -> str:
        """See ``PackedLinear``."""
        return "csc"

    @property
    def rows(self) -> NDArray[np.int64]:
        """Row of every entry."""
        words = np.ascontiguousarray(self._fours()[:, :-_QUAD])
        return words.view(np.uint32 if self.wide else np.uint16).astype(np.int64).reshape(-1)

    @property
    def value(self) -> Float32:
        """Weight of every entry."""
        return np.ascontiguousarray(self._fours()[:, -_QUAD:]).view(np.float32).reshape(-1)

    def to_dense(self) -> Float32:
        """See ``PackedLinear``."""
        dense = np.zeros((self.out_features + 1, self.in_features), np.float32)
        entries = np.diff(self.starts) // self._words * _QUAD
        columns = np.repeat(np.arange(self.in_features), entries)
        dense[self.rows, columns] = self.value
        return dense[:-1]

    @cached_property
    def _arguments(self) -> tuple[Any, ...]:
        ahead = _columns_ahead(len(self.stream), self.in_features)
        return self.wide, ahead, self.starts, self.stream, self.bias

    def multiply_into(self, x: Float32, y: Float32) -> bool:
        """See ``PackedLinear``."""
        done: bool = csc.csc_call(x, y, *self._arguments)
        return done

    @property
    def _words(self) -> int:
        """Words of four entries."""
        return _WIDE_WORDS if self.wide else _NARROW_WORDS

    def _fours(self) -> NDArray[np.uint32]:
        return self.stream.reshape(-1, self._words)


@dataclass(frozen=True, slots=True)
class Csc:
    """The format; it has no settings."""

    @property
    def name(self) -> str:
        """See ``Format``."""
        return "csc"

    def unfit(self, weight: ArrayLike) -> str | None:
        """See ``Format``."""
        return _unfit(as_weight(weight))

    def pack(self, weight: ArrayLike, bias: ArrayLike | None = None) -> CscLinear:
        """See ``Format``."""
        matrix = as_finite(as_weight(weight), self.name)
        columns = Rows.of(np.ascontiguousarray(matrix.T))
        starts = np.zeros(len(columns.starts), np.int64)
        np.cumsum(-(-columns.counts // _QUAD), out=starts[1:])
        at = np.arange(len(columns.values))
        at += np.repeat(_QUAD * starts[:-1] - columns.starts[:-1], columns.counts)
        wide = len(matrix) >= 2**16
        rows = np.full(_QUAD * starts[-1], len(matrix), np.uint32 if wide else np.uint16)
        rows[at] = columns.columns
        value = np.zeros(_QUAD * starts[-1], np.float32)
        value[at] = columns.values
        words = _WIDE_WORDS if wide else _NARROW_WORDS
        places = rows.view(np.uint32).reshape(-1, words - _QUAD)
        fours = (places, value.view(np.uint32).reshape(-1, _QUAD))
        stream = aligned_zeros(int(starts[-1]) * words, np.uint32)
        stream[:] = np.concatenate(fours, axis=1).reshape(-1)
        bias = as_bias(bias, len(matrix))
        return CscLinear(matrix.shape[1], bias, wide, starts * words, stream)


@dataclass(frozen=True, eq=False)
class BitmapLinear(PackedLinear):
    """A packed layer, exact.

    Attributes:
        starts: First entry of every column and the end, shape (in_features + 1).
        masks: Which of each 16 rows a column has entries in, shape (in_features, blocks).
        value: Weight of every entry, and 16 zeros.
    """

    starts: NDArray[np.int64]
    masks: NDArray[np.uint16]
    value: Float32

    kind: ClassVar[str] = "bitmap_float32"

    @property
    def name(self) -> str:
        """See ``PackedLinear``."""
        return "bitmap"

    def to_dense(self) -> Float32:
        """See ``PackedLinear``."""
        bits = np.unpackbits(self.masks.view(np.uint8), axis=1, bitorder="little")
        dense = np.zeros((self.in_features, self.out_features), np.float32)
        dense[bits[:, : self.out_features] != 0] = self.value[:-_LANES]
        return np.ascontiguousarray(dense.T)

    @cached_property
    def _arguments(self) -> tuple[Any, ...]:
        ahead = _columns_ahead(len(self.value), self.in_features)
        fast = True if cpu.supports(cpu.FLOATS) else None
        return ahead, self.starts, self.masks, self.value, self.bias, fast

    def multiply_into(self, x: Float32, y: Float32) -> bool:
        """See ``PackedLinear``."""
        done: bool = csc.bitmap_call(x, y, *self._arguments)
        return done


@dataclass(frozen=True, slots=True)
class Bitmap:
    """The format; it has no settings."""

    @property
    def name(self) -> str:
        """See ``Format``."""
        return "bitmap"

    def unfit(self, weight: ArrayLike) -> str | None:
        """See ``Format``."""
        return _unfit(as_weight(weight))

    def pack(self, weight: ArrayLike, bias: ArrayLike | None = None) -> BitmapLinear:
        """See ``Format``."""
        matrix = as_finite(as_weight(weight), self.name)
        rows, columns = matrix.shape
        mask = np.zeros((columns, -(-rows // _LANES) * _LANES), bool)
        mask[:, :rows] = matrix.T != 0
        starts = np.zeros(columns + 1, np.int64)
        np.cumsum(mask.sum(1), out=starts[1:])
        value = aligned_zeros(int(starts[-1]) + _LANES, np.float32)
        value[:-_LANES] = matrix.T[mask[:, :rows]]
        masks = np.packbits(mask, axis=1, bitorder="little").view(np.uint16)
        return BitmapLinear(columns, as_bias(bias, rows), starts, masks, value)


def _unfit(matrix: Float32) -> str | None:
    """Weights that are no numbers would be passed by where an activation is zero."""
    return None if bool(np.isfinite(matrix).all()) else "holds NaN or infinite weights"


def _columns_ahead(words: int, columns: int) -> int:
    """How many columns make up what is to be fetched ahead."""
    return min(max(_AHEAD // (words // columns + 1), 1), 64)


def active(x: Float32) -> tuple[NDArray[np.int64], Float32, int]:
    """Columns with activations that are not zero, the activations, and how many there are."""
    columns, values = np.empty(len(x) + 1, np.int64), np.empty(len(x) + 1, np.float32)
    return columns, values, csc.active_columns(x, columns, values)
