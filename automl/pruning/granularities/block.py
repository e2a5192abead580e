"""Blocks of the weight matrix, b x b or 1 x N (Gray et al., 2017; Narang et al., 1711.02782)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from automl.pruning.granularities.layout import as_rows, from_rows, padded
from automl.pruning.granularities.sizes import Ints, Sizes
from automl.pruning.granularities.tiles import Tiles
from automl.types import InputError


@dataclass(frozen=True)
class Block(Tiles):
    """A unit is ``rows`` neighbouring outputs times ``columns`` neighbouring inputs.

    In convolutions that is at one position of the kernel (see ``layout.py``). Blocks at an edge
    that do not fill up are padded by zeros, which is how executors store them, and count whole.

    Attributes:
        rows: Outputs of a block, >= 1.
        columns: Inputs of a block, >= 1.

    Raises:
        InputError: A size is below 1, or the block is one weight.
    """

    rows: int = 1
    columns: int = 16
    acceleration: ClassVar[str] = "block-sparse products with a vector register per block"

    def __post_init__(self) -> None:
        """Checks the sizes."""
        for size in (self.rows, self.columns):
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise InputError(f"granularity block has whole sizes >= 1, got {size!r}")
        if self.rows * self.columns == 1:
            raise InputError("a block of 1 x 1 is one weight; use granularity=unstructured")

    @classmethod
    def parse(cls, parameters: str) -> Block:
        """``ROWSxCOLUMNS``.

        Raises:
            InputError: It is not of that form.
        """
        found = re.fullmatch(r"([0-9]{1,6})x([0-9]{1,6})", parameters)
        if found is None:
            raise InputError(f"granularity block is block:ROWSxCOLUMNS, got {parameters!r}")
        return cls(int(found[1]), int(found[2]))

    @property
    def name(self) -> str:
        """``block:ROWSxCOLUMNS``."""
        return f"block:{self.rows}x{self.columns}"

    def refusal(self, sizes: Sizes) -> str | None:
        """Weights smaller than one block."""
        if sizes.out >= self.rows and sizes.into >= self.columns:
            return None
        return f"its {sizes.out} x {sizes.into} channels are smaller than a {self.name[6:]} block"

    def tile(self, sizes: Sizes) -> int:
        """Weights of a block."""
        return self.rows * self.columns

    def units(self, sizes: Sizes) -> Ints:
        """Blocks at all positions of the kernel."""
        down = -(-np.asarray(sizes.out, np.int64) // self.rows)
        return down * -(-np.asarray(sizes.into, np.int64) // self.columns) * sizes.taps

    def unit_scores(self, saliency: Tensor) -> Tensor:
        """Sums over the blocks, outputs first, then taps, then inputs."""
        rows = padded(as_rows(saliency.double()), self.rows, self.columns, 0.0)
        down, taps, across = rows.shape
        shape = (down // self.rows, self.rows, taps, across // self.columns, self.columns)
        return rows.reshape(shape).sum((1, 4)).flatten()

    def spread(self, tiles: Tensor, shape: tuple[int, ...]) -> Tensor:
        """One value for all weights of a block."""
        out, into = shape[:2]
        down, across = -(-out // self.rows), -(-into // self.columns)
        grid = tiles.reshape(down, -1, across)
        full = grid.repeat_interleave(self.rows, 0).repeat_interleave(self.columns, 2)
        return from_rows(full[:out, :, :into], shape)
