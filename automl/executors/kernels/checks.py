"""Checks and conversions of activations, in one pass each."""

from __future__ import annotations

from typing import Any

import numpy as np

from automl.executors.kernels.options import kernel

_TINY = float(np.finfo(np.float32).tiny)
_MAGNITUDE, _INFINITY = np.uint32(0x7FFFFFFF), np.uint32(0x7F800000)


@kernel
def all_finite(bits: Any) -> bool:
    """Whether no float32, given by its bits, is NaN or infinite."""
    largest = np.uint32(0)
    for i in range(bits.shape[0]):
        # Without their signs, floats are in the order of their bits, NaN and infinities last.
        largest = max(largest, bits[i] & _MAGNITUDE)
    return bool(largest < _INFINITY)


@kernel
def _aligned(count: int, like: Any) -> Any:
    """Room for numbers of a type, from the start of a cache line on."""
    memory = np.empty(count + 64 // like.itemsize, like.dtype)
    first = (-memory.ctypes.data % 64) // like.itemsize
    return memory[first : first + count]


@kernel
def padded_float32(x: Any, extra: int) -> Any:
    """A copy of activations that starts at a cache line, with zeros behind it."""
    copy = _aligned(x.shape[0] + extra, x)
    copy[: x.shape[0]] = x
    copy[x.shape[0] :] = 0
    return copy


_WORDS = np.empty(0, np.uint16)
_BYTES = np.empty(0, np.uint8)


@kernel
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


@kernel
def padded_uint8(x: Any, inverse: float, zero: int, extra: int) -> Any:
    """Activations times ``inverse`` plus ``zero``, rounded to whole numbers in [0, 255]."""
    levels = _aligned(x.shape[0] + extra, _BYTES)
    for i in range(x.shape[0]):
        level = np.int32(np.rint(x[i] * np.float32(inverse))) + np.int32(zero)
        # Where both ends lie between two levels, both are rounded up, to 256.
        levels[i] = np.uint8(min(max(level, np.int32(0)), np.int32(255)))
    levels[x.shape[0] :] = 0
    return levels


@kernel
def _ordered(bits: Any) -> Any:
    """Signed numbers in the order of the finite float32 whose bits they are; its own inverse."""
    return bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))


@kernel
def extremes(x: Any) -> Any:
    """The smallest and largest of zero and all activations, which are finite."""
    bits = x.view(np.int32)
    # As whole numbers, which can be compared 16 at a time.
    low, high = np.int32(0), np.int32(0)
    for i in range(bits.shape[0]):
        low = min(low, _ordered(bits[i]))
        high = max(high, _ordered(bits[i]))
    both = np.empty(2, np.int32)
    both[0], both[1] = _ordered(low), _ordered(high)
    floats = both.view(np.float32)
    return floats[0], floats[1]


@kernel
def levels(x: Any) -> Any:
    """The step between 256 levels of finite activations, zero among them, and the level of zero."""
    low, high = extremes(x)
    step = (np.float64(high) - np.float64(low)) / 255
    # Below the smallest normal number a quotient would overflow.
    if step < _TINY:
        return 1.0, 0
    return step, int(np.rint(-np.float64(low) / step))


@kernel
def scaled(exact: Any, scale: Any, step: float, bias: Any) -> Any:
    """A sum of whole numbers in float32; in between in float64, where no factor overflows."""
    return np.float32(np.float64(exact) * np.float64(scale) * step + np.float64(bias))
