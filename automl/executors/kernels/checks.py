"""Checks and conversions of activations, in one pass each."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from automl.executors.kernels.options import OPTIONS

_EXPONENT = np.uint32(0x7F800000)


@njit(**OPTIONS)
def all_finite(bits: Any) -> bool:
    """Whether no float32, given by its bits, is NaN or infinite."""
    bad = np.uint32(0)
    for word in bits:
        bad |= np.uint32((word & _EXPONENT) == _EXPONENT)
    return bool(bad == 0)


@njit(**OPTIONS)
def finish(sums: Any, place: Any, bias: Any, y: Any) -> None:
    """y[r] = sums[place[r]] + bias[r]."""
    for row in range(y.shape[0]):
        y[row] = sums[place[row]] + bias[row]


@njit(**OPTIONS)
def finish_int8(
    sums: Any, place: Any, scale: Any, offset: Any, x_scale: float, x_zero: int, bias: Any, y: Any
) -> None:
    """y[r] = scale[r] x_scale (sums[place[r]] - x_zero offset[r]) + bias[r]."""
    for row in range(y.shape[0]):
        exact = sums[place[row]] - np.int32(x_zero) * offset[row]
        y[row] = np.float32(exact) * (scale[row] * np.float32(x_scale)) + bias[row]


@njit(**OPTIONS)
def to_bfloat16(bits: Any, words: Any) -> None:
    """Rounds finite float32, given by their bits, to finite bfloat16, ties to even."""
    for i in range(bits.shape[0]):
        word = bits[i]
        odd = (word >> np.uint32(16)) & np.uint32(1)
        near = (word + np.uint32(0x7FFF) + odd) >> np.uint32(16)
        # The largest would round to infinity, which times a padding zero is NaN.
        near -= np.uint32((near & np.uint32(0x7F80)) == np.uint32(0x7F80))
        words[i] = np.uint16(near)


@njit(**OPTIONS)
def extremes(x: Any) -> Any:
    """The smallest and largest of zero and all activations."""
    low = np.float32(0)
    high = np.float32(0)
    for value in x:
        low = min(low, value)
        high = max(high, value)
    return low, high


@njit(**OPTIONS)
def to_uint8(x: Any, inverse: float, zero: int, q: Any) -> None:
    """Rounds x inverse + zero to whole numbers in [0, 255]."""
    for i in range(x.shape[0]):
        q[i] = np.uint8(np.int32(np.rint(x[i] * np.float32(inverse))) + np.int32(zero))
