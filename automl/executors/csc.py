"""Compressed sparse columns: a column whose activation is zero is never read.

After a ReLU most activations are zero (60 to 80 % in the layers of arXiv 1602.01528, table III).
Stored by columns, a matrix then costs nothing for them. Two ways to say which rows a column has
entries in: a 16-bit number each (``csc``), for one addition to memory per weight; or a bit for
every row (``bitmap``), for one vector addition per 16 rows, which wins from a density of about
15 % on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from automl.executors.kernels import cpu, csc
from automl.executors.packed import PackedLinear, aligned_zeros
from automl.executors.rows import Float32, Rows, as_bias, as_weight

_LANES = 16
#: Columns of ``csc`` are filled up to multiples of this.
_QUAD = 4


@dataclass(frozen=True, eq=False)
class CscLinear(PackedLinear):
    """A packed layer, exact.

    Attributes:
        starts: First entry of every column and the end, shape (in_features + 1).
        rows: Row of every entry, ascending in a column; 16 bits where they suffice. Columns are
            filled up to a multiple of four with entries of row ``out_features`` and weight zero.
        value: Weight of every entry.
    """

    starts: NDArray[np.int64]
    rows: NDArray[Any]
    value: Float32

    kind: ClassVar[str] = "csc_float32"

    @property
    def name(self) -> str:
        """See ``PackedLinear``."""
        return "csc"

    def to_dense(self) -> Float32:
        """See ``PackedLinear``."""
        dense = np.zeros((self.out_features + 1, self.in_features), np.float32)
        columns = np.repeat(np.arange(self.in_features), np.diff(self.starts))
        dense[self.rows, columns] = self.value
        return dense[:-1]

    def multiply(self, x: Float32) -> Float32:
        """See ``PackedLinear``."""
        columns, values, count = active(x)
        y = np.empty(self.out_features + 1, np.float32)
        y[:-1], y[-1] = self.bias, 0
        narrow = self.rows.dtype == np.uint16
        kernel = csc.csc_float32 if narrow else csc.csc_float32_wide
        kernel(columns, values, count, self.starts, self.rows, self.value, y)
        return y[:-1]


@dataclass(frozen=True, slots=True)
class Csc:
    """The format; it has no settings."""

    @property
    def name(self) -> str:
        """See ``Format``."""
        return "csc"

    def unfit(self, weight: ArrayLike) -> str | None:
        """See ``Format``."""
        return None

    def pack(self, weight: ArrayLike, bias: ArrayLike | None = None) -> CscLinear:
        """See ``Format``."""
        matrix = as_weight(weight)
        columns = Rows.of(np.ascontiguousarray(matrix.T))
        starts = np.zeros(len(columns.starts), np.int64)
        np.cumsum(-(-columns.counts // _QUAD) * _QUAD, out=starts[1:])
        at = np.arange(len(columns.values))
        at += np.repeat(starts[:-1] - columns.starts[:-1], columns.counts)
        width = np.uint16 if len(matrix) < 2**16 else np.uint32
        rows = aligned_zeros(int(starts[-1]), width)
        rows[:] = len(matrix)
        rows[at] = columns.columns
        value = aligned_zeros(int(starts[-1]), np.float32)
        value[at] = columns.values
        return CscLinear(matrix.shape[1], as_bias(bias, len(matrix)), starts, rows, value)


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

    def multiply(self, x: Float32) -> Float32:
        """See ``PackedLinear``."""
        columns, values, count = active(x)
        y = np.zeros(self.masks.shape[1] * _LANES, np.float32)
        y[: self.out_features] = self.bias
        fast = cpu.supports(cpu.FLOATS)
        kernel = csc.bitmap_float32 if fast else csc.bitmap_float32_plain
        kernel(columns, values, count, self.starts, self.masks, self.value, y)
        return y[: self.out_features]


@dataclass(frozen=True, slots=True)
class Bitmap:
    """The format; it has no settings."""

    @property
    def name(self) -> str:
        """See ``Format``."""
        return "bitmap"

    def unfit(self, weight: ArrayLike) -> str | None:
        """See ``Format``."""
        return None

    def pack(self, weight: ArrayLike, bias: ArrayLike | None = None) -> BitmapLinear:
        """See ``Format``."""
        matrix = as_weight(weight)
        rows, columns = matrix.shape
        mask = np.zeros((columns, -(-rows // _LANES) * _LANES), bool)
        mask[:, :rows] = matrix.T != 0
        starts = np.zeros(columns + 1, np.int64)
        np.cumsum(mask.sum(1), out=starts[1:])
        value = aligned_zeros(int(starts[-1]) + _LANES, np.float32)
        value[:-_LANES] = matrix.T[mask[:, :rows]]
        masks = np.packbits(mask, axis=1, bitorder="little").view(np.uint16)
        return BitmapLinear(columns, as_bias(bias, rows), starts, masks, value)


def active(x: Float32) -> tuple[NDArray[np.int64], Float32, int]:
    """Columns with activations that are not zero, the activations, and how many there are."""
    columns, values = np.empty(len(x) + 1, np.int64), np.empty(len(x) + 1, np.float32)
    return columns, values, csc.active_columns(x, columns, values)
