"""How fast memory can be read: what no kernel on cold weights can beat."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from automl.executors.kernels.options import OPTIONS
from automl.executors.kernels.vectors import prefetch


@njit(**(OPTIONS | {"fastmath": {"reassoc", "nsz"}}))
def read(words: Any) -> Any:
    """The sum of a float32 buffer, whose length is a multiple of 1024."""
    total = np.float32(0)
    for page in range(0, words.shape[0], 1024):
        for line in range(64):
            prefetch(words, page + 2048 + 16 * line)
        for word in words[page : page + 1024]:
            total += word
    return total
