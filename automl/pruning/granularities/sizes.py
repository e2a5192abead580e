"""The shape of a weight as granularities count it; plain arithmetic, batched, without torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Sizes:
    """A weight as (out, into, *kernel), whatever order its module stores it in.

    ``out`` and ``into`` may be arrays of one shape: a batch of slim networks.

    Attributes:
        out: Rows: channels or features written (entries, of an embedding).
        into: Columns: channels or features read, per group (the width, of an embedding).
        kernel: Spatial kernel, () for linear layers and embeddings.
    """

    out: Ints | int
    into: Ints | int
    kernel: tuple[int, ...] = ()

    @property
    def taps(self) -> int:
        """Positions of the kernel; 1 without one."""
        return int(np.prod(self.kernel, dtype=np.int64))

    @property
    def weights(self) -> Ints:
        """Number of weights; batched."""
        return np.asarray(self.out, np.int64) * self.into * self.taps
