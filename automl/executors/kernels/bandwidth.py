"""How fast memory can be read: what no kernel on cold weights can beat."""

from __future__ import annotations

from typing import Any

from automl.executors.kernels.options import kernel
from automl.executors.kernels.vectors import (
    add,
    load_float32x16,
    prefetch,
    total,
    zeros_float32x16,
)


@kernel
def read(words: Any) -> Any:
    """The sum of a float32 buffer, whose length is a multiple of 64; needs AVX-512."""
    # Four streams keep more reads in flight than one.
    quarter = words.shape[0] // 4
    a, b = zeros_float32x16(), zeros_float32x16()
    c, d = zeros_float32x16(), zeros_float32x16()
    for at in range(0, quarter, 16):
        for part in range(4):
            prefetch(words, part * quarter + at + 512)
        a = add(a, load_float32x16(words, at))
        b = add(b, load_float32x16(words, quarter + at))
        c = add(c, load_float32x16(words, 2 * quarter + at))
        d = add(d, load_float32x16(words, 3 * quarter + at))
    return total(add(add(a, b), add(c, d)))
