"""Single weights anywhere in a layer (Han et al., 2015, arXiv 1506.02626)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from automl.pruning.granularities.sizes import Ints, Sizes
from automl.pruning.granularities.tiles import Tiles


@dataclass(frozen=True)
class Unstructured(Tiles):
    """A unit is one weight: the finest grain, most accurate at a ratio, hardest to run fast."""

    name: ClassVar[str] = "unstructured"
    acceleration: ClassVar[str] = "sparse kernels (CSC, EIE, pELL) from about 70 % zeros on"

    def refusal(self, sizes: Sizes) -> str | None:
        """Never."""
        return None

    def tile(self, sizes: Sizes) -> int:
        """1."""
        return 1

    def units(self, sizes: Sizes) -> Ints:
        """All weights."""
        return sizes.weights

    def unit_scores(self, saliency: Tensor) -> Tensor:
        """The saliency itself."""
        return saliency.double().flatten()

    def spread(self, tiles: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Tiles are weights."""
        return tiles.reshape(shape)
