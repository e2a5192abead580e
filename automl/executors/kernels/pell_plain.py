"""Permute-ELL products in plain loops, for processors without the vector instructions.

Arguments as in ``pell_vector.py``; the results differ from it by the order of additions only.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from automl.executors.kernels.options import kernel


@kernel
def float32(
    x: Any, tile: int, blocks: Any, advance: Any, index: Any, value: Any, sums: Any
) -> None:
    """See ``pell_vector.float32``."""
    groups = sums.shape[0] // 16
    for segment in range(blocks.shape[0] - 1):
        total = sums[16 * (segment % groups) : 16 * (segment % groups) + 16]
        start = np.uint64((segment // groups) * tile)
        for at in range(4 * blocks[segment], 4 * blocks[segment + 1]):
            if at % 2 == 0:
                start += np.uint64(16) * np.uint64(advance[at // 2])
            first = 64 * (at // 4) + at % 4
            for lane in range(16):
                column = start + np.uint64(index[first + 4 * lane])
                total[lane] += value[16 * at + lane] * x[column]


@kernel
def codebook(
    x: Any, tile: int, blocks: Any, advance: Any, index: Any, value: Any, sums: Any
) -> None:
    """See ``pell_vector.codebook``."""
    groups = sums.shape[0] // 16
    for segment in range(blocks.shape[0] - 1):
        total = sums[16 * (segment % groups) : 16 * (segment % groups) + 16]
        start = np.uint64((segment // groups) * tile)
        for at in range(4 * blocks[segment], 4 * blocks[segment + 1]):
            start += np.uint64(advance[at])
            first = 64 * (at // 4) + at % 4
            for lane in range(16):
                byte = index[first + 4 * lane]
                column = start + np.uint64(byte & np.uint8(15))
                total[lane] += value[byte >> np.uint8(4)] * x[column]


@kernel
def bfloat16(
    x: Any, tile: int, blocks: Any, advance: Any, index: Any, value: Any, sums: Any
) -> None:
    """See ``pell_vector.bfloat16``; words become floats 16 at a time."""
    groups = sums.shape[0] // 16
    words = np.empty(32, np.uint32)
    products = words.view(np.float32)
    for segment in range(blocks.shape[0] - 1):
        total = sums[16 * (segment % groups) : 16 * (segment % groups) + 16]
        start = np.uint64((segment // groups) * tile)
        for at in range(2 * blocks[segment], 2 * blocks[segment + 1]):
            start += np.uint64(32) * np.uint64(advance[at])
            first = 64 * (at // 2) + at % 2
            for half in range(2):
                for lane in range(16):
                    column = start + np.uint64(index[first + 4 * lane + 2 * half])
                    words[lane] = np.uint32(x[column]) << np.uint32(16)
                    weight = np.uint32(value[32 * at + 2 * lane + half])
                    words[16 + lane] = weight << np.uint32(16)
                for lane in range(16):
                    total[lane] += products[lane] * products[16 + lane]


@kernel
def int8(x: Any, tile: int, blocks: Any, advance: Any, index: Any, value: Any, sums: Any) -> None:
    """See ``pell_vector.int8``."""
    groups = sums.shape[0] // 16
    for segment in range(blocks.shape[0] - 1):
        total = sums[16 * (segment % groups) : 16 * (segment % groups) + 16]
        start = np.uint64((segment // groups) * tile)
        for at in range(blocks[segment], blocks[segment + 1]):
            start += np.uint64(64) * np.uint64(advance[at])
            for entry in range(64):
                column = start + np.uint64(index[64 * at + entry])
                product = np.int32(value[64 * at + entry]) * np.int32(x[column])
                total[entry // 4] += product


@kernel
def codebook_int8(
    x: Any, tile: int, blocks: Any, advance: Any, index: Any, codes: Any, tables: Any, sums: Any
) -> None:
    """See ``pell_vector.codebook_int8``."""
    lanes = sums.shape[0] // 2
    groups = lanes // 16
    for segment in range(blocks.shape[0] - 1):
        first = 16 * (segment % groups)
        start = np.uint64((segment // groups) * tile)
        for at in range(blocks[segment], blocks[segment + 1]):
            start += np.uint64(64) * np.uint64(advance[at])
            for entry in range(64):
                level = np.int32(x[start + np.uint64(index[64 * at + entry])])
                code = codes[32 * at + entry % 32] >> np.uint8(entry // 32 * 4) & np.uint8(15)
                lane = first + entry // 4
                sums[lane] += np.int32(tables[code]) * level
                sums[lanes + lane] += np.int32(tables[np.int64(64) + code]) * level
