"""What granularities share whose units are tiles of one size that do not overlap."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from torch import Tensor

from automl.pruning.granularities.ranking import top
from automl.pruning.granularities.sizes import Ints, Sizes
from automl.types import Kept


class Tiles(ABC):
    """Units are tiles of ``tile(sizes)`` weights; where they sit costs one bit a tile."""

    @abstractmethod
    def tile(self, sizes: Sizes) -> int:
        """Weights of one tile."""

    @abstractmethod
    def units(self, sizes: Sizes) -> Ints:
        """Tiles of a weight; batched."""

    @abstractmethod
    def unit_scores(self, saliency: Tensor) -> Tensor:
        """Sums over the tiles, shape (units,), float64."""

    @abstractmethod
    def spread(self, tiles: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Gives every weight the value of its tile: (units,) to ``shape``."""

    def nonzeros(self, kept: Kept, sizes: Sizes) -> Ints:
        """Weights in the tiles that stay; tiles at an edge count whole, as they are stored."""
        return np.minimum(np.asarray(kept, np.int64) * self.tile(sizes), sizes.weights)

    def index_bits(self, kept: Kept, sizes: Sizes) -> Ints:
        """One bit a tile; none for a dense weight."""
        units = self.units(sizes)
        return np.where(np.asarray(kept) < units, units, 0).astype(np.int64)

    def mask(self, saliency: Tensor, kept: int) -> Tensor:
        """The ``kept`` tiles with the highest sums."""
        return self.spread(top(self.unit_scores(saliency), kept), tuple(saliency.shape))
