"""Whole k x k kernels: one input channel's slice of one filter (Mao et al., arXiv 1705.08922)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from automl.pruning.granularities.sizes import Ints, Sizes
from automl.pruning.granularities.tiles import Tiles


@dataclass(frozen=True)
class Kernel(Tiles):
    """A unit connects one input channel with one output channel of a convolution."""

    name: ClassVar[str] = "kernel"
    acceleration: ClassVar[str] = "convolutions that skip pairs of channels"

    def refusal(self, sizes: Sizes) -> str | None:
        """Layers whose kernels are single weights."""
        if sizes.taps > 1:
            return None
        return "its kernels are single weights; granularity=unstructured prunes those"

    def tile(self, sizes: Sizes) -> int:
        """Positions of the kernel."""
        return sizes.taps

    def units(self, sizes: Sizes) -> Ints:
        """Pairs of channels."""
        return np.asarray(sizes.out, np.int64) * sizes.into

    def unit_scores(self, saliency: Tensor) -> Tensor:
        """Sums over the kernel's positions."""
        return saliency.double().flatten(2).sum(2).flatten()

    def spread(self, tiles: Tensor, shape: tuple[int, ...]) -> Tensor:
        """One value for all positions of a kernel."""
        return tiles.reshape(*shape[:2], *[1] * (len(shape) - 2)).expand(shape).contiguous()
