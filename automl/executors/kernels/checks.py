"""Checks and conversions of activations, in one pass each."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from automl.executors.kernels.options import OPTIONS

_MAGNITUDE, _INFINITY = np.uint32(0x7FFFFFFF), np.uint32(0x7F800000)


@njit(**OPTIONS)
def all_finite(bits: Any) -> bool:
    """Whether no float32, given by its bits, is NaN or infinite."""
    largest = np.uint32(0)
    for i in range(bits.shape[0]):
        # Without their signs, floats are in the order of their bits, NaN and infinities last.
        largest = max(largest, bits[i] & _MAGNITUDE)
    return bool(largest < _INFINITY)


@njit(**OPTIONS)
def _aligned(count: int, like: Any) -> Any:
    """Room for numbers of a type, from the start of a cache line on."""
    memory = np.empty(count + 64 // like.itemsize, like.dtype)
    first = (-memory.ctypes.data % 64) // like.itemsize
    return memory[first : first + count]


@njit(**OPTIONS)
def padded_float32(x: Any, extra: int) -> Any:
    """A copy of activations that starts at a cache line, with zeros behind it."""
    copy = _aligned(x.shape[0] + extra, x)
    copy[: x.shape[0]] = x
    copy[x.shape[0] :] = 0
    return copy


_WORDS = np.empty(0, np.uint16)
_BYTES = np.empty(0, np.uint8)


@njit(**OPTIONS)
def padded_bfloat16(bits: Any, extra: int) -> Any:
    """Finite float32, given by their bits, as finite bfloat16, to nearest, ties to even."""
    words = _aligned(bits.shape[0] + extra, _WORDS)
    for i in range(bits.shape[0]):
        word = bits[i]
        odd = (word >> np.uint32(16)) & np.uint32(1)
        near = (word + np.uint32(0x7FFF) + odd) >> np.uint32(16)
        # The largest would round to infinity, which times a padding zero is NaN.
        near -= np.uint32((near & np.uint32(0x7F80)) == np.uint32(0x7F80))
        words[i] = np.uint16(near)
    words[bits.shape[0] :] = 0
    return words


@njit(**OPTIONS)
def padded_uint8(x: Any, inverse: float, zero: int, extra: int) -> Any:
    """Activations times ``inverse`` plus ``zero``, rounded to whole numbers in [0, 255]."""
    levels = _aligned(x.shape[0] + extra, _BYTES)
    for i in range(x.shape[0]):
        levels[i] = np.uint8(np.int32(np.rint(x[i] * np.float32(inverse))) + np.int32(zero))
    levels[x.shape[0] :] = 0
    return levels


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
def finish(sums: Any, place: Any, bias: Any) -> Any:
    """y[r] = sums[place[r]] + bias[r]."""
    y = np.empty(bias.shape[0], np.float32)
    for row in range(y.shape[0]):
        y[row] = sums[place[row]] + bias[row]
    return y


@njit(**OPTIONS)
def finish_int8(
    sums: Any, place: Any, scale: Any, offset: Any, x_scale: float, x_zero: int, bias: Any
) -> Any:
    """y[r] = scale[r] x_scale (sums[place[r]] - x_zero offset[r]) + bias[r]."""
    y = np.empty(bias.shape[0], np.float32)
    for row in range(y.shape[0]):
        exact = sums[place[row]] - np.int32(x_zero) * offset[row]
        y[row] = np.float32(exact) * (scale[row] * np.float32(x_scale)) + bias[row]
    return y
