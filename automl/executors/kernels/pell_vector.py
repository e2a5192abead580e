"""Permute-ELL products with AVX-512; ``pell.py`` has the layout, ``pell_plain.py`` plain loops.

All take
    x: activations of the form's type, zeros behind the last for one window;
    tile: columns of a tile;
    blocks: first block of each segment, and the end, shape (segments + 1);
    advance: how far the window moves before each step, in units of the form;
    index: 64 bytes a block, one per entry: where in the window its activation is;
    value: the entries' weights, in the order in which steps take them;
    sums: one partial sum per lane of every group, added to.
"""

from __future__ import annotations

from typing import Any

from automl.executors.kernels.options import kernel
from automl.executors.kernels.vectors import (
    add,
    choose,
    dot4,
    fma,
    load_codes,
    load_float32x16,
    load_int8x64,
    load_int16x32,
    load_int32x16,
    lower_halves,
    peek,
    pick,
    pick2_float32x16,
    pick2_int8x64,
    pick2_int16x32,
    pick_int8x64,
    prefetch,
    shift_right,
    store,
    upper_halves,
    zeros_float32x16,
)


@kernel
def float32(
    x: Any, tile: int, blocks: Any, advance: Any, index: Any, value: Any, sums: Any
) -> None:
    """Two steps of two rounds of 16 entries a block; a window is eight registers."""
    groups = sums.shape[0] // 16
    for segment in range(blocks.shape[0] - 1):
        lane = 16 * (segment % groups)
        start = (segment // groups) * tile
        even, odd = load_float32x16(sums, lane), zeros_float32x16()
        for block in range(peek(blocks, segment), peek(blocks, segment + 1)):
            word = load_int32x16(index, 64 * block)
            prefetch(index, 64 * block + 512)
            for step in range(2):
                start += 16 * peek(advance, 2 * block + step)
                a, b = load_float32x16(x, start), load_float32x16(x, start + 16)
                c, d = load_float32x16(x, start + 32), load_float32x16(x, start + 48)
                e, f = load_float32x16(x, start + 64), load_float32x16(x, start + 80)
                g, h = load_float32x16(x, start + 96), load_float32x16(x, start + 112)
                for turn in range(2):
                    at = 4 * block + 2 * step + turn
                    i = shift_right(word, 16 * step + 8 * turn)
                    low = choose(i, 32, pick2_float32x16(a, i, b), pick2_float32x16(c, i, d))
                    high = choose(i, 32, pick2_float32x16(e, i, f), pick2_float32x16(g, i, h))
                    weight = load_float32x16(value, 16 * at)
                    prefetch(value, 16 * at + 512)
                    even, odd = odd, fma(choose(i, 64, low, high), weight, even)
        store(sums, lane, add(even, odd))


@kernel
def codebook(
    x: Any, tile: int, blocks: Any, advance: Any, index: Any, value: Any, sums: Any
) -> None:
    """Four steps of 16 entries a block; index and code share a byte; a window is one register."""
    groups = sums.shape[0] // 16
    shared = load_float32x16(value, 0)
    for segment in range(blocks.shape[0] - 1):
        lane = 16 * (segment % groups)
        start = (segment // groups) * tile
        even, odd = load_float32x16(sums, lane), zeros_float32x16()
        for block in range(peek(blocks, segment), peek(blocks, segment + 1)):
            word = load_int32x16(index, 64 * block)
            prefetch(index, 64 * block + 2048)
            for step in range(4):
                start += peek(advance, 4 * block + step)
                picked = pick(load_float32x16(x, start), shift_right(word, 8 * step))
                weight = pick(shared, shift_right(word, 8 * step + 4))
                even, odd = odd, fma(picked, weight, even)
        store(sums, lane, add(even, odd))


@kernel
def bfloat16(
    x: Any, tile: int, blocks: Any, advance: Any, index: Any, value: Any, sums: Any
) -> None:
    """Two steps of 32 entries a block, two of a row side by side; a window is four registers."""
    groups = sums.shape[0] // 16
    for segment in range(blocks.shape[0] - 1):
        lane = 16 * (segment % groups)
        start = (segment // groups) * tile
        low, high = load_float32x16(sums, lane), zeros_float32x16()
        for block in range(peek(blocks, segment), peek(blocks, segment + 1)):
            word = load_int16x32(index, 64 * block)
            prefetch(index, 64 * block + 1024)
            for step in range(2):
                at = 2 * block + step
                start += 32 * peek(advance, at)
                i = shift_right(word, 8 * step)
                a = pick2_int16x32(load_int16x32(x, start), i, load_int16x32(x, start + 32))
                b = pick2_int16x32(load_int16x32(x, start + 64), i, load_int16x32(x, start + 96))
                picked = choose(i, 64, a, b)
                weight = load_int16x32(value, 32 * at)
                prefetch(value, 32 * at + 1024)
                low = fma(lower_halves(picked), lower_halves(weight), low)
                high = fma(upper_halves(picked), upper_halves(weight), high)
        store(sums, lane, add(low, high))


@kernel
def int8(x: Any, tile: int, blocks: Any, advance: Any, index: Any, value: Any, sums: Any) -> None:
    """One step of 64 entries a block, four of a row side by side; a window is four registers."""
    groups = sums.shape[0] // 16
    for segment in range(blocks.shape[0] - 1):
        lane = 16 * (segment % groups)
        start = (segment // groups) * tile
        total = load_int32x16(sums, lane)
        for block in range(peek(blocks, segment), peek(blocks, segment + 1)):
            start += 64 * peek(advance, block)
            i = load_int8x64(index, 64 * block)
            prefetch(index, 64 * block + 1024)
            a = pick2_int8x64(load_int8x64(x, start), i, load_int8x64(x, start + 64))
            b = pick2_int8x64(load_int8x64(x, start + 128), i, load_int8x64(x, start + 192))
            weight = load_int8x64(value, 64 * block)
            prefetch(value, 64 * block + 1024)
            total = dot4(total, choose(i, 128, a, b), weight)
        store(sums, lane, total)


@kernel
def codebook_int8(
    x: Any, tile: int, blocks: Any, advance: Any, index: Any, codes: Any, tables: Any, sums: Any
) -> None:
    """As ``int8``, with ``codes`` into ``tables``.

    Args:
        x: See above, as the others.
        tile: See above.
        blocks: See above.
        advance: See above.
        index: See above.
        codes: 32 bytes a block, see ``PellCodebookInt8``.
        tables: Shared weights less what is 128 times a byte, and those bytes, each four times
            over, shape (128).
        sums: Sums of either, shape (2 x lanes).
    """
    lanes = sums.shape[0] // 2
    groups = lanes // 16
    fine, coarse = load_int8x64(tables, 0), load_int8x64(tables, 64)
    for segment in range(blocks.shape[0] - 1):
        lane = 16 * (segment % groups)
        start = (segment // groups) * tile
        low, high = load_int32x16(sums, lane), load_int32x16(sums, lanes + lane)
        for block in range(peek(blocks, segment), peek(blocks, segment + 1)):
            start += 64 * peek(advance, block)
            i = load_int8x64(index, 64 * block)
            prefetch(index, 64 * block + 1024)
            a = pick2_int8x64(load_int8x64(x, start), i, load_int8x64(x, start + 64))
            b = pick2_int8x64(load_int8x64(x, start + 128), i, load_int8x64(x, start + 192))
            picked = choose(i, 128, a, b)
            code = load_codes(codes, 32 * block)
            prefetch(codes, 32 * block + 1024)
            low = dot4(low, picked, pick_int8x64(fine, code))
            high = dot4(high, picked, pick_int8x64(coarse, code))
        store(sums, lane, low)
        store(sums, lanes + lane, high)
