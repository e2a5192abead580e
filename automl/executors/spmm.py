"""Sparse times dense for batches, in tiles of columns whose activations stay in the cache.

With many examples a weight is fetched once and used for all of them, so memory no longer bounds the
product, arithmetic does: examples become the lanes of vectors, and every entry is one fused
multiply-add per 16 of them. A tile's activations (64 columns of 64 examples are 16 KiB) stay in the
first-level cache while all rows pass. Rows with equally many entries in a tile follow each other,
so that the processor can guess where each ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from automl.executors.kernels import cpu, spmm
from automl.executors.packed import FiniteLinear, scratch
from automl.executors.rows import Float32, Rows, as_bias, as_weight


@dataclass(frozen=True, eq=False)
class SpmmLinear(FiniteLinear):
    """A packed layer, exact.

    Attributes:
        tile: Columns of a tile.
        tiles: First listed row of every tile and the end.
        rows: Rows that have entries in a tile, tile by tile; in the first tile all rows.
        starts: First entry of every listed row and the end.
        index: Column in its tile of every entry.
        value: Weight of every entry.
    """

    tile: int
    tiles: NDArray[np.int64]
    rows: NDArray[np.int32]
    starts: NDArray[np.int64]
    index: NDArray[np.uint8]
    value: Float32

    kind: ClassVar[str] = "spmm_float32"

    @property
    def name(self) -> str:
        """See ``PackedLinear``."""
        return "spmm"

    @property
    def columns(self) -> NDArray[np.int64]:
        """Column of every entry."""
        tile = np.repeat(np.arange(len(self.tiles) - 1), np.diff(self.tiles))
        return np.repeat(tile * self.tile, np.diff(self.starts)) + self.index

    def to_dense(self) -> Float32:
        """See ``PackedLinear``."""
        dense = np.zeros((self.out_features, self.in_features), np.float32)
        dense[np.repeat(self.rows, np.diff(self.starts)), self.columns] = self.value
        return dense

    def multiply(self, x: Float32) -> Float32:
        """See ``FiniteLinear``."""
        return self.multiply_batch(x[None]).reshape(-1)

    def multiply_batch(self, x: Float32) -> Float32:
        """See ``PackedLinear``."""
        x = np.ascontiguousarray(x)
        y = np.empty((len(x), self.out_features), np.float32)
        done = 0
        while done < len(x):
            width = 64 if len(x) - done > 48 else 16
            self._panel(x, done, width, y)
            done += width
        return y

    def _panel(self, x: Float32, first: int, width: int, y: Float32) -> None:
        # Kept memory: fresh pages would take longer to fill than the panel.
        size = self.in_features * width
        memory = scratch(size + self.out_features * width)
        lanes, sums = memory[:size], memory[size:]
        vectors = cpu.supports(cpu.FLOATS)
        spmm.to_panel(x, first, width, lanes, vectors)
        spmm.fill(self.bias, width, sums)
        matrix = (self.tile, self.tiles, self.rows, self.starts, self.index, self.value)
        if not vectors:
            spmm.multiply_plain(lanes, *matrix, width, sums)
        elif width == 64:
            spmm.multiply_64(lanes, *matrix, sums)
        else:
            spmm.multiply_16(lanes, *matrix, sums)
        spmm.from_panel(sums, first, width, y, vectors)


@dataclass(frozen=True, slots=True)
class Spmm:
    """The format's settings.

    Attributes:
        tile: Columns of a tile, 1 to 256.
    """

    tile: int = 128

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
            ValueError: A tile is too wide for 8-bit indices, or empty.
        """
        if not 1 <= self.tile <= 256:
            raise ValueError(f"Spmm.tile must be in 1..256, got {self.tile}")

    @property
    def name(self) -> str:
        """See ``Format``."""
        return "spmm"

    def unfit(self, weight: ArrayLike) -> str | None:
        """See ``Format``."""
        return None

    def pack(self, weight: ArrayLike, bias: ArrayLike | None = None) -> SpmmLinear:
        """See ``Format``."""
        matrix = as_weight(weight)
        entries = Rows.of(matrix)
        out_features, in_features = matrix.shape
        tiles = -(-in_features // self.tile)
        part = entries.columns // self.tile * out_features + entries.row_of
        counts = np.bincount(part, minlength=tiles * out_features).reshape(tiles, out_features)
        order = np.argsort(counts, axis=1, kind="stable")
        rank = np.empty_like(order)
        np.put_along_axis(rank, order, np.arange(out_features)[None], 1)
        # Entries by tile, then by the place of their row in it, then by column.
        place = part // out_features * out_features + rank.reshape(-1)[part]
        sorted_entries = np.argsort(place, kind="stable")
        listed = np.take_along_axis(counts, order, 1).reshape(-1)
        used = listed > 0
        # Where sums start, every row is listed.
        used[:out_features] = True
        starts = np.zeros(np.count_nonzero(used) + 1, np.int64)
        np.cumsum(listed[used], out=starts[1:])
        bounds = np.zeros(tiles + 1, np.int64)
        np.cumsum(used.reshape(tiles, out_features).sum(1), out=bounds[1:])
        return SpmmLinear(
            in_features=in_features,
            bias=as_bias(bias, out_features),
            tile=self.tile,
            tiles=bounds,
            rows=order.reshape(-1)[used].astype(np.int32),
            starts=starts,
            index=(entries.columns % self.tile)[sorted_entries].astype(np.uint8),
            value=entries.values[sorted_entries],
        )
