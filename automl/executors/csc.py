"""Compressed sparse columns: a column whose activation is zero is never read.

After a ReLU most activations are zero (60 to 80 % in the layers of arXiv 1602.01528, table III).
Stored by columns, a matrix then costs 6 bytes for every non-zero weight of the other columns only;
what it pays for that is one addition to memory per weight, which no vector instruction does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from automl.executors.packed import PackedLinear
from automl.executors.rows import Float32, Rows, as_bias, as_weight


@dataclass(frozen=True, eq=False)
class CscLinear(PackedLinear):
    """A packed layer, exact.

    Attributes:
        starts: First entry of every column and the end, shape (in_features + 1).
        rows: Row of every entry, ascending in a column; 16 bits where they suffice.
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
        dense = np.zeros((self.out_features, self.in_features), np.float32)
        columns = np.repeat(np.arange(self.in_features), np.diff(self.starts))
        dense[self.rows, columns] = self.value
        return dense

    def multiply(self, x: Float32) -> Float32:
        """See ``PackedLinear``."""
        from automl.executors.kernels.csc import csc_float32

        columns, values, count = active(x)
        y = self.bias.copy()
        csc_float32(columns, values, count, self.starts, self.rows, self.value, y)
        return y


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
        width = np.uint16 if len(matrix) <= 2**16 else np.uint32
        return CscLinear(
            in_features=matrix.shape[1],
            bias=as_bias(bias, len(matrix)),
            starts=columns.starts,
            rows=columns.columns.astype(width),
            value=columns.values,
        )


def active(x: Float32) -> tuple[NDArray[np.int64], Float32, int]:
    """Columns with activations that are not zero, the activations, and how many there are."""
    from automl.executors.kernels.csc import active_columns

    columns, values = np.empty(len(x) + 1, np.int64), np.empty(len(x) + 1, np.float32)
    return columns, values, active_columns(x, columns, values)
