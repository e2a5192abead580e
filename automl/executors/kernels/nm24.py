"""Products with 2:4 matrices in one packed stream; ``nm24.py`` beside this folder has the layout.

All take the activations with zeros behind the last up to a multiple of 128, the stream as 32-bit
words, the blocks of a row, and sums, one per row, which they overwrite.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from automl.executors.kernels import checks
from automl.executors.kernels.options import kernel
from automl.executors.kernels.vectors import (
    dot4,
    fma,
    load_float32x16,
    load_int8x64,
    load_int16x32,
    lower_halves,
    peek,
    peek_uint64,
    pick2_float32x16,
    pick2_int8x64,
    pick2_int16x32,
    prefetch,
    spread_places_int8x64,
    spread_places_int16x32,
    spread_places_int32x16,
    total,
    total_int32x16,
    upper_halves,
    zeros_float32x16,
    zeros_int32x16,
)

#: Words fetched ahead, a page: hardware prefetchers stop at its end.
_AHEAD = 1024


@kernel
def float32(x: Any, stream: Any, blocks: int, sums: Any) -> None:
    """Four chunks of 32 columns a block."""
    at = 0
    for row in range(0, sums.shape[0], 4):
        a, b = zeros_float32x16(), zeros_float32x16()
        c, d = zeros_float32x16(), zeros_float32x16()
        for block in range(blocks):
            for line in range(17):
                prefetch(stream, at + _AHEAD + 16 * line)
            for chunk in range(4):
                low = load_float32x16(x, 128 * block + 32 * chunk)
                high = load_float32x16(x, 128 * block + 32 * chunk + 16)
                places, values = at + 4 * chunk, at + 16 + 64 * chunk
                i = spread_places_int32x16(peek(stream, places))
                j = spread_places_int32x16(peek(stream, places + 1))
                k = spread_places_int32x16(peek(stream, places + 2))
                m = spread_places_int32x16(peek(stream, places + 3))
                a = fma(pick2_float32x16(low, i, high), load_float32x16(stream, values), a)
                b = fma(pick2_float32x16(low, j, high), load_float32x16(stream, values + 16), b)
                c = fma(pick2_float32x16(low, k, high), load_float32x16(stream, values + 32), c)
                d = fma(pick2_float32x16(low, m, high), load_float32x16(stream, values + 48), d)
            at += 272
        sums[row], sums[row + 1] = total(a), total(b)
        sums[row + 2], sums[row + 3] = total(c), total(d)


@kernel
def _pairs(low: Any, places: Any, high: Any, weights: Any, sums: Any) -> Any:
    """Adds 32 products of bfloat16 to 16 sums."""
    picked = pick2_int16x32(low, places, high)
    sums = fma(lower_halves(picked), lower_halves(weights), sums)
    return fma(upper_halves(picked), upper_halves(weights), sums)


@kernel
def bfloat16(x: Any, stream: Any, blocks: int, sums: Any) -> None:
    """Two chunks of 64 columns a block."""
    at = 0
    for row in range(0, sums.shape[0], 4):
        a, b = zeros_float32x16(), zeros_float32x16()
        c, d = zeros_float32x16(), zeros_float32x16()
        for block in range(blocks):
            for line in range(9):
                prefetch(stream, at + _AHEAD + 16 * line)
            for chunk in range(2):
                low = load_int16x32(x, 128 * block + 64 * chunk)
                high = load_int16x32(x, 128 * block + 64 * chunk + 32)
                places, values = at + 8 * chunk, at + 16 + 64 * chunk
                i = spread_places_int16x32(peek_uint64(stream, places))
                j = spread_places_int16x32(peek_uint64(stream, places + 2))
                k = spread_places_int16x32(peek_uint64(stream, places + 4))
                m = spread_places_int16x32(peek_uint64(stream, places + 6))
                a = _pairs(low, i, high, load_int16x32(stream, values), a)
                b = _pairs(low, j, high, load_int16x32(stream, values + 16), b)
                c = _pairs(low, k, high, load_int16x32(stream, values + 32), c)
                d = _pairs(low, m, high, load_int16x32(stream, values + 48), d)
            at += 144
        sums[row], sums[row + 1] = total(a), total(b)
        sums[row + 2], sums[row + 3] = total(c), total(d)


@kernel
def int8(x: Any, stream: Any, blocks: int, sums: Any) -> None:
    """One chunk of 128 columns a block; activations are uint8, sums int32."""
    at = 0
    for row in range(0, sums.shape[0], 4):
        a, b = zeros_int32x16(), zeros_int32x16()
        c, d = zeros_int32x16(), zeros_int32x16()
        for block in range(blocks):
            for line in range(5):
                prefetch(stream, at + _AHEAD + 16 * line)
            low = load_int8x64(x, 128 * block)
            high = load_int8x64(x, 128 * block + 64)
            i = spread_places_int8x64(stream, at)
            j = spread_places_int8x64(stream, at + 4)
            k = spread_places_int8x64(stream, at + 8)
            m = spread_places_int8x64(stream, at + 12)
            a = dot4(a, pick2_int8x64(low, i, high), load_int8x64(stream, at + 16))
            b = dot4(b, pick2_int8x64(low, j, high), load_int8x64(stream, at + 32))
            c = dot4(c, pick2_int8x64(low, k, high), load_int8x64(stream, at + 48))
            d = dot4(d, pick2_int8x64(low, m, high), load_int8x64(stream, at + 64))
            at += 80
        sums[row], sums[row + 1] = total_int32x16(a), total_int32x16(b)
        sums[row + 2], sums[row + 3] = total_int32x16(c), total_int32x16(d)


@kernel
def float32_plain(x: Any, stream: Any, blocks: int, sums: Any) -> None:
    """``float32`` without vector instructions."""
    values = stream.view(np.float32)
    for quad in range(sums.shape[0] // 4):
        for row in range(4):
            result = np.float32(0)
            for chunk in range(4 * blocks):
                at = 272 * (quad * blocks + chunk // 4)
                places = stream[at + 4 * (chunk % 4) + row]
                first = at + 16 + 64 * (chunk % 4) + 16 * row
                for entry in range(16):
                    place = places >> np.uint32(2 * entry) & np.uint32(3)
                    column = 32 * chunk + 4 * (entry // 2) + np.int64(place)
                    result += values[first + entry] * x[column]
            sums[4 * quad + row] = result


@kernel
def bfloat16_plain(x: Any, stream: Any, blocks: int, sums: Any) -> None:
    """``bfloat16`` without vector instructions."""
    halves = stream.view(np.uint16)
    bits = np.empty(2, np.uint32)
    pair = bits.view(np.float32)
    for quad in range(sums.shape[0] // 4):
        for row in range(4):
            result = np.float32(0)
            for chunk in range(2 * blocks):
                at = 288 * (quad * blocks + chunk // 2)
                places = at + 16 * (chunk % 2) + 4 * row
                first = at + 32 + 128 * (chunk % 2) + 32 * row
                for entry in range(32):
                    shift = np.uint16(2 * (entry // 4))
                    place = halves[places + entry % 4] >> shift & np.uint16(3)
                    column = 64 * chunk + 4 * (entry // 2) + np.int64(place)
                    bits[0] = np.uint32(halves[first + entry]) << np.uint32(16)
                    bits[1] = np.uint32(x[column]) << np.uint32(16)
                    result += pair[0] * pair[1]
            sums[4 * quad + row] = result


@kernel
def int8_plain(x: Any, stream: Any, blocks: int, sums: Any) -> None:
    """``int8`` without vector instructions."""
    places, values = stream.view(np.uint8), stream.view(np.int8)
    for quad in range(sums.shape[0] // 4):
        for row in range(4):
            result = np.int32(0)
            for block in range(blocks):
                at = 320 * (quad * blocks + block)
                for entry in range(64):
                    byte = places[at + 16 * row + entry % 16]
                    place = byte >> np.uint8(2 * (entry // 16)) & np.uint8(3)
                    column = 128 * block + 4 * (entry // 2) + np.int64(place)
                    weight = values[at + 64 + 64 * row + entry]
                    result += np.int32(weight) * np.int32(x[column])
            sums[4 * quad + row] = result


@kernel
def finish_int8(
    sums: Any, step: float, zero: int, scale: Any, offset: Any, bias: Any, y: Any
) -> None:
    """Sums of levels as numbers; ``scale`` and ``offset`` of every row as in ``Nm24Int8``."""
    for row in range(y.shape[0]):
        exact = sums[row] - np.int32(zero) * offset[row]
        y[row] = checks.scaled(exact, scale[row], step, bias[row])
