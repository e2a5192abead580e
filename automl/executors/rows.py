"""A weight matrix by rows: its non-zero entries with their columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Rows:
    """Non-zero weights by rows.

    Attributes:
        shape: (out_features, in_features).
        starts: First entry of every row and the end, shape (out_features + 1).
        columns: Column of every entry, ascending within a row.
        values: The entries' weights; NaN and infinities count as non-zero.
    """

    shape: tuple[int, int]
    starts: NDArray[np.int64]
    columns: NDArray[np.int64]
    values: Float32

    @classmethod
    def of(cls, weight: Float32) -> Rows:
        """From a matrix of shape (out_features, in_features)."""
        mask = weight != 0
        starts = np.zeros(len(weight) + 1, np.int64)
        np.cumsum(mask.sum(1), out=starts[1:])
        columns = np.nonzero(mask)[1]
        rows, width = weight.shape
        return cls((rows, width), starts, columns, weight[mask])

    @property
    def counts(self) -> NDArray[np.int64]:
        """Entries of every row."""
        return np.diff(self.starts)

    @property
    def row_of(self) -> NDArray[np.int64]:
        """Row of every entry."""
        return np.repeat(np.arange(self.shape[0]), self.counts)


def as_weight(weight: ArrayLike) -> Float32:
    """A weight as a contiguous float32 matrix.

    Raises:
        TypeError: It does not hold floating-point numbers.
        ValueError: It is not a matrix, or has no rows or columns.
    """
    array = np.asarray(weight)
    if not np.issubdtype(array.dtype, np.floating):
        raise TypeError(f"Format.weight must hold floating-point numbers, got {array.dtype}")
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"Format.weight must be a matrix with entries, got shape {array.shape}")
    return np.ascontiguousarray(array, np.float32)


def as_bias(bias: ArrayLike | None, rows: int) -> Float32:
    """A bias as a new float32 vector; zeros for None.

    Raises:
        TypeError: It does not hold floating-point numbers.
        ValueError: It has not one number per row.
    """
    if bias is None:
        return np.zeros(rows, np.float32)
    array = np.asarray(bias)
    if not np.issubdtype(array.dtype, np.floating):
        raise TypeError(f"Format.bias must hold floating-point numbers, got {array.dtype}")
    if array.shape != (rows,):
        raise ValueError(f"Format.bias must have shape ({rows},), got {array.shape}")
    return array.astype(np.float32)


def as_finite(weight: Float32, form: str) -> Float32:
    """The weight itself, for forms that cannot hold NaN and infinities.

    Raises:
        ValueError: It holds one.
    """
    if not np.isfinite(weight).all():
        raise ValueError(f"Format.weight must be finite to be stored as {form}, got NaN or inf")
    return weight
