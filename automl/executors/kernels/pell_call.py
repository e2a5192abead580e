"""Whole calls of permute-ELL layers: activations prepared, multiplied, and put in order.

One call of compiled code for each example, because what Python does around it takes as long as a
small layer. All take one example and where its output goes, the layer's arrays (see
``pell_vector.py``), ``place``, the lane of every row, and ``bias``; and ``fast``, which is None
where there are no vector instructions: Numba leaves out what None excludes, and nothing else. They
return whether all activations are finite; if not, the output is not to be used.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from automl.executors.kernels import checks, pell_plain, pell_vector
from automl.executors.kernels.options import kernel


@kernel
def _finish(sums: Any, place: Any, bias: Any, y: Any) -> None:
    for row in range(y.shape[0]):
        y[row] = sums[place[row]] + bias[row]


@kernel
def _lanes(bias: Any) -> Any:
    """Lanes of all groups of 16 rows."""
    return (bias.shape[0] + 15) // 16 * 16


@kernel
def float32(
    x: Any, y: Any, tile: int, blocks: Any, advance: Any, index: Any, value: Any, place: Any,
    bias: Any, fast: Any,
) -> bool:  # fmt: skip
    """Windows of 128 activations."""
    if not checks.all_finite(x.view(np.uint32)):
        return False
    padded = checks.padded_float32(x, 128)
    sums = np.zeros(_lanes(bias), np.float32)
    if fast is None:
        pell_plain.float32(padded, tile, blocks, advance, index, value, sums)
    else:
        pell_vector.float32(padded, tile, blocks, advance, index, value, sums)
    _finish(sums, place, bias, y)
    return True


@kernel
def codebook(
    x: Any, y: Any, tile: int, blocks: Any, advance: Any, index: Any, value: Any, place: Any,
    bias: Any, fast: Any,
) -> bool:  # fmt: skip
    """Windows of 16 activations."""
    if not checks.all_finite(x.view(np.uint32)):
        return False
    padded = checks.padded_float32(x, 16)
    sums = np.zeros(_lanes(bias), np.float32)
    if fast is None:
        pell_plain.codebook(padded, tile, blocks, advance, index, value, sums)
    else:
        pell_vector.codebook(padded, tile, blocks, advance, index, value, sums)
    _finish(sums, place, bias, y)
    return True


@kernel
def bfloat16(
    x: Any, y: Any, tile: int, blocks: Any, advance: Any, index: Any, value: Any, place: Any,
    bias: Any, fast: Any,
) -> bool:  # fmt: skip
    """Windows of 128 activations."""
    if not checks.all_finite(x.view(np.uint32)):
        return False
    padded = checks.padded_bfloat16(x.view(np.uint32), 128)
    sums = np.zeros(_lanes(bias), np.float32)
    if fast is None:
        pell_plain.bfloat16(padded, tile, blocks, advance, index, value, sums)
    else:
        pell_vector.bfloat16(padded, tile, blocks, advance, index, value, sums)
    _finish(sums, place, bias, y)
    return True


@kernel
def int8(
    x: Any, y: Any, tile: int, blocks: Any, advance: Any, index: Any, value: Any, place: Any,
    bias: Any, scale: Any, offset: Any, fast: Any,
) -> bool:  # fmt: skip
    """Windows of 256 activations; ``scale`` and ``offset`` of every row as in ``PellInt8``."""
    if not checks.all_finite(x.view(np.uint32)):
        return False
    step, zero = checks.levels(x)
    padded = checks.padded_uint8(x, 1 / step, zero, 256)
    sums = np.zeros(_lanes(bias), np.int32)
    if fast is None:
        pell_plain.int8(padded, tile, blocks, advance, index, value, sums)
    else:
        pell_vector.int8(padded, tile, blocks, advance, index, value, sums)
    for row in range(y.shape[0]):
        exact = sums[place[row]] - np.int32(zero) * offset[row]
        y[row] = checks.scaled(exact, scale[row], step, bias[row])
    return True


@kernel
def codebook_int8(
    x: Any, y: Any, tile: int, blocks: Any, advance: Any, index: Any, codes: Any, tables: Any,
    place: Any, bias: Any, scale: Any, offset: Any, fast: Any,
) -> bool:  # fmt: skip
    """Windows of 256 activations; ``tables`` as in ``pell_vector``, ``scale`` of all weights."""
    if not checks.all_finite(x.view(np.uint32)):
        return False
    step, zero = checks.levels(x)
    padded = checks.padded_uint8(x, 1 / step, zero, 256)
    lanes = _lanes(bias)
    sums = np.zeros(2 * lanes, np.int32)
    if fast is None:
        pell_plain.codebook_int8(padded, tile, blocks, advance, index, codes, tables, sums)
    else:
        pell_vector.codebook_int8(padded, tile, blocks, advance, index, codes, tables, sums)
    for row in range(y.shape[0]):
        lane = place[row]
        exact = np.int64(128) * sums[lanes + lane] + sums[lane] - np.int64(zero) * offset[row]
        y[row] = checks.scaled(exact, scale[0], step, bias[row])
    return True
