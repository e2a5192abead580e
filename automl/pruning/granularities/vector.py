"""Rows or columns of kernels (Mao et al., "Exploring the Regularity", arXiv 1705.08922)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from torch import Tensor

from automl.pruning.granularities.sizes import Ints, Sizes
from automl.pruning.granularities.tiles import Tiles
from automl.types import InputError


@dataclass(frozen=True)
class Vector(Tiles):
    """A unit is one row (or column) of one kernel.

    Attributes:
        along: ``row`` (along the width) or ``column`` (along the height).

    Raises:
        InputError: ``along`` is anything else.
    """

    along: Literal["row", "column"] = "row"
    acceleration: ClassVar[str] = "convolutions that skip rows of kernels (1-D convolutions)"

    def __post_init__(self) -> None:
        """Checks the direction."""
        if self.along not in ("row", "column"):
            raise InputError(f"granularity vector goes along row or column, got {self.along!r}")

    @classmethod
    def parse(cls, parameters: str) -> Vector:
        """``row`` or ``column``."""
        return cls(parameters)  # type: ignore[arg-type]

    @property
    def name(self) -> str:
        """``vector:row`` or ``vector:column``."""
        return f"vector:{self.along}"

    @property
    def _dim(self) -> int:
        """The dimension a vector fills, of (out, into, height, width)."""
        return 3 if self.along == "row" else 2

    def refusal(self, sizes: Sizes) -> str | None:
        """Layers without two-dimensional kernels, or whose vectors are single weights."""
        if len(sizes.kernel) == 2 and self.tile(sizes) > 1:
            return None
        return f"its kernels have no {self.along}s; granularity=block or unstructured prunes it"

    def tile(self, sizes: Sizes) -> int:
        """Length of a vector."""
        return sizes.kernel[self._dim - 2]

    def units(self, sizes: Sizes) -> Ints:
        """Vectors of all kernels."""
        vectors = sizes.taps // self.tile(sizes)
        return np.asarray(sizes.out, np.int64) * sizes.into * vectors

    def unit_scores(self, saliency: Tensor) -> Tensor:
        """Sums along the vectors."""
        return saliency.double().sum(self._dim).flatten()

    def spread(self, tiles: Tensor, shape: tuple[int, ...]) -> Tensor:
        """One value for all positions of a vector."""
        single = [1 if dim == self._dim else size for dim, size in enumerate(shape)]
        return tiles.reshape(single).expand(shape).contiguous()
