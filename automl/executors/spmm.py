"""Sparse times dense for batches, in tiles of columns whose activations stay in the cache.

With many examples a weight is fetched once and used for all of them, so memory no longer bounds
the product, arithmetic does: examples become the lanes of vectors, and every entry is one fused
multiply-add per 16 of them. A tile's activations (128 columns of 64 examples are 32 KiB) stay in
the first-level cache while rows pass, and the sums of a block of rows in the second-level cache
while tiles do. Rows with equally many entries in a tile follow each other, and two of them go side
by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from automl.executors.kernels import cpu, spmm
from automl.executors.packed import PackedLinear, aligned_zeros, scratch
from automl.executors.rows import Float32, Rows, as_bias, as_weight

#: Rows of a block: their sums of 64 examples are 256 KiB.
BLOCK = 1024
#: Floats of a vector, and vectors of examples at once: more find no room in the first-level cache.
LANES, MOST = 16, 4


@dataclass(frozen=True, eq=False)
class SpmmLinear(PackedLinear):
    """A packed layer, exact.

    Attributes:
        tile: Columns of a tile.
        tiles: First listed row of every tile and the end; a tile is columns of a block of rows.
        rows: Rows that have entries in a tile, tile by tile; in a block's first tile all its rows.
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
        tiles = np.arange(len(self.tiles) - 1) % -(-self.in_features // self.tile)
        tile = np.repeat(tiles, np.diff(self.tiles))
        return np.repeat(tile * self.tile, np.diff(self.starts)) + self.index

    def to_dense(self) -> Float32:
        """See ``PackedLinear``."""
        dense = np.zeros((self.out_features, self.in_features), np.float32)
        dense[np.repeat(self.rows, np.diff(self.starts)), self.columns] = self.value
        return dense

    def multiply_into(self, x: Float32, y: Float32) -> bool:
        """See ``PackedLinear``."""
        return self.multiply_batch_into(np.ascontiguousarray(x)[None], y[None])

    def multiply_batch_into(self, x: Float32, y: Float32) -> bool:
        """See ``PackedLinear``."""
        matrix = (self.tile, BLOCK, self.tiles, self.rows, self.starts, self.index, self.value)
        vectors, done = cpu.supports(cpu.FLOATS), 0
        while done < len(x):
            count = min(-(-(len(x) - done) // LANES), MOST)
            width = LANES * count
            # Kept memory: fresh pages would take longer to fill than the panel.
            memory = scratch((self.in_features + min(BLOCK, self.out_features)) * width)
            like = (0,) * count if vectors else None
            if not spmm.multiply_batch(x, y, done, memory, *matrix, self.bias, width, like):
                return False
            done += width
        return True


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
        out_features, in_features = matrix.shape
        blocks = [
            _tiled(Rows.of(matrix[first : first + BLOCK]), self.tile)
            for first in range(0, out_features, BLOCK)
        ]
        rows = [block.rows + number * BLOCK for number, block in enumerate(blocks)]
        return SpmmLinear(
            in_features=in_features,
            bias=as_bias(bias, out_features),
            tile=self.tile,
            tiles=_bounds([block.listed for block in blocks]),
            rows=np.concatenate(rows).astype(np.int32),
            starts=_bounds([block.counts for block in blocks]),
            index=_joined([block.index for block in blocks]),
            value=_joined([block.value for block in blocks]),
        )


@dataclass(frozen=True, slots=True)
class _Tiled:
    """A block of rows, tile by tile.

    Attributes:
        listed: Listed rows of every tile.
        rows: All of them.
        counts: Entries of each.
        index: Column in its tile of every entry.
        value: Weight of every entry.
    """

    listed: NDArray[np.int64]
    rows: NDArray[np.int64]
    counts: NDArray[np.int64]
    index: NDArray[np.uint8]
    value: Float32


def _tiled(entries: Rows, tile: int) -> _Tiled:
    rows, columns = entries.shape
    tiles = -(-columns // tile)
    part = entries.columns // tile * rows + entries.row_of
    counts = np.bincount(part, minlength=tiles * rows).reshape(tiles, rows)
    order = np.argsort(counts, axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(rows)[None], 1)
    # Entries by tile, then by the place of their row in it, then by column.
    place = part // rows * rows + rank.reshape(-1)[part]
    sorted_entries = np.argsort(place, kind="stable")
    listed = np.take_along_axis(counts, order, 1)
    used = listed > 0
    # Where sums start, every row is listed.
    used[0] = True
    return _Tiled(
        listed=used.sum(1),
        rows=order[used],
        counts=listed[used],
        index=(entries.columns % tile)[sorted_entries].astype(np.uint8),
        value=entries.values[sorted_entries],
    )


def _bounds(counts: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Where parts of these sizes start, and the end."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(counts))])


def _joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    joined = aligned_zeros(sum(map(len, parts)), parts[0].dtype.type)
    np.concatenate(parts, out=joined)
    return joined
