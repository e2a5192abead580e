"""Weights in fewer bits: bfloat16, and whole numbers of 8 bits with a scale for every row."""

from __future__ import annotations

import numpy as np

from automl.executors.rows import Float32

#: Largest whole number that is 128 times a signed byte plus one of -64..63, on both sides of zero.
MOST_INT15 = 127 * 128 + 63

#: Products of 8-bit numbers that a sum of 32 bits holds, whatever they are.
_MOST_PRODUCTS = 2**31 // (255 * 128)


def check_int8_row(entries: int) -> None:
    """Refuses a row whose sum could overflow.

    Args:
        entries: Non-zero weights of the fullest row.

    Raises:
        ValueError: They are too many.
    """
    if entries > _MOST_PRODUCTS:
        raise ValueError(
            f"Format.weight must have at most {_MOST_PRODUCTS:,} non-zeros in a row for int8, "
            f"got {entries:,}"
        )


def quantise_rows(weight: Float32) -> tuple[Float32, Float32]:
    """Rounds each row to -127..127 times a scale of its own.

    Returns:
        The scales, shape (rows), 1 for rows of zeros, and whole numbers of the weight's shape.
    """
    scale = np.abs(weight).max(1) / np.float32(127)
    # Below the smallest normal number a quotient would overflow.
    scale = np.where(scale < np.finfo(np.float32).tiny, np.float32(1), scale)
    return scale, np.rint(weight / scale[:, None])


def round_to_bfloat16(weight: Float32) -> Float32:
    """Weights rounded to bfloat16, to nearest, ties to even; NaN and infinities stay."""
    bits = weight.view(np.uint32).astype(np.uint64)
    near = (bits + 0x7FFF + (bits >> np.uint64(16) & np.uint64(1))) & np.uint64(0xFFFF0000)
    rounded: Float32 = near.astype(np.uint32).view(np.float32)
    # Half of a NaN could be an infinity.
    kept = np.where(np.isnan(weight), np.float32(np.nan), weight)
    return np.where(np.isfinite(weight), rounded, kept)
