"""A dense matrix times one vector, on one thread: read once, from front to back."""

from __future__ import annotations

from typing import Any

from automl.executors.kernels.options import kernel
from automl.executors.kernels.vectors import (
    fma,
    load_float32x16,
    prefetch,
    total,
    zeros_float32x16,
)

#: Floats fetched ahead in each row.
_AHEAD = 256


@kernel
def gemv(weight: Any, x: Any, y: Any) -> None:
    """Adds the products of four rows at a time to ``y``.

    Args:
        weight: Shape (rows * columns); rows are a multiple of 4, columns of 16.
        x: Shape (columns).
        y: Shape (rows).
    """
    columns = x.shape[0]
    for row in range(0, y.shape[0], 4):
        first = row * columns
        second, third, fourth = first + columns, first + 2 * columns, first + 3 * columns
        a, b = zeros_float32x16(), zeros_float32x16()
        c, d = zeros_float32x16(), zeros_float32x16()
        for column in range(0, columns, 16):
            for start in (first, second, third, fourth):
                prefetch(weight, start + column + _AHEAD)
            inputs = load_float32x16(x, column)
            a = fma(load_float32x16(weight, first + column), inputs, a)
            b = fma(load_float32x16(weight, second + column), inputs, b)
            c = fma(load_float32x16(weight, third + column), inputs, c)
            d = fma(load_float32x16(weight, fourth + column), inputs, d)
        y[row] += total(a)
        y[row + 1] += total(b)
        y[row + 2] += total(c)
        y[row + 3] += total(d)
