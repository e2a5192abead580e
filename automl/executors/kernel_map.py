"""Which rows a sparse convolution reads for which it writes, offset by offset.

Places are sorted once by a key of 62 bits that holds batch, x, y and z as digits. A neighbour at
an offset then has the key plus a constant, and one merge of the keys with themselves finds all
pairs of the offset; where the offset's mirror image is in the kernel too, its pairs are the same
with the sides exchanged, so that half of the merges do. Maps are kept as long as the tensor of
coordinates that they were made for lives, and are shared by all layers that read it: coordinates
must not be changed in place.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from automl.executors.kernels import kernel_map as kernels
from automl.types import InputError

Triple = tuple[int, int, int]
Rows = NDArray[np.int32]
Whole = NDArray[np.int64]

#: Targets that are added to while they stay in the cache.
BLOCK = 256

#: Rows listed behind the last pair, which kernels read ahead but do not use.
SPARE = 16

_KEY_LIMIT = 2**62


@dataclass(frozen=True, eq=False)
class KernelMap:
    """Pairs of rows for every offset of a kernel, x before y before z, z fastest.

    Attributes:
        source: Rows that are read, int32, offset by offset, with ``SPARE`` zeros behind.
        target: Rows that are added to, likewise.
        starts: First pair of every offset and the end, shape (offsets + 1).
        bounds: First pair of every offset in every block of targets and the end, shape
            (offsets, blocks + 1).
        source_order: Rows that are read, sorted by their place; shape (rows).
        target_order: Rows that are added to likewise; each block is a piece of it.
    """

    source: Rows
    target: Rows
    starts: Whole
    bounds: Whole
    source_order: Rows
    target_order: Rows

    @property
    def sizes(self) -> Whole:
        """Pairs of every offset."""
        return np.diff(self.starts)

    def pairs(self, offset: int) -> tuple[Rows, Rows]:
        """Rows read and rows added to of one offset."""
        here = slice(self.starts[offset], self.starts[offset + 1])
        return self.source[here], self.target[here]

    @cached_property
    def transposed(self) -> KernelMap:
        """The map with the sides exchanged, for gradients."""
        # Both sides rise with the places within an offset, so pairs stay in their order.
        place = np.empty(len(self.source_order), np.int32)
        place[self.source_order] = np.arange(len(place), dtype=np.int32)
        places = [place[self.pairs(offset)[0]] for offset in range(len(self.sizes))]
        bounds = _bounds(places, self.starts, len(place))
        return KernelMap(
            self.target, self.source, self.starts, bounds, self.target_order, self.source_order
        )


def _bounds(places: list[Rows], starts: Whole, count: int) -> Whole:
    """First pair of every offset in every block of targets; places rise within an offset."""
    edges = np.append(np.arange(0, count, BLOCK), count)
    found = [np.searchsorted(own, edges) for own in places]
    return np.asarray(starts[:-1, None] + np.reshape(found, (len(places), -1)), np.int64)


def _assembled(pairs: list[tuple[Rows, Rows]], source_order: Rows, target_order: Rows) -> KernelMap:
    """A map from the places (not rows) of every offset's pairs."""
    spare = np.zeros(SPARE, np.int32)
    starts = np.cumsum([0, *(len(source) for source, _ in pairs)])
    bounds = _bounds([target for _, target in pairs], starts, len(target_order))
    source = np.concatenate([*(source_order[one] for one, _ in pairs), spare])
    target = np.concatenate([*(target_order[one] for _, one in pairs), spare])
    return KernelMap(source, target, starts, bounds, source_order, target_order)


@dataclass(frozen=True, eq=False)
class _Places:
    """Occupied places in the order of their keys.

    Attributes:
        coordinates: (batch, x, y, z), int64, shape (places, 4).
        order: Row of each.
        low: Smallest of each column.
        high: Largest of each column.
        maps: What was made of them: settings -> map and the targets' coordinates.
    """

    coordinates: Whole
    order: Rows
    low: tuple[int, ...]
    high: tuple[int, ...]
    maps: dict[Any, tuple[KernelMap, Tensor | None]] = field(default_factory=dict)


_known: Any = WeakTensorKeyDictionary()


def submanifold_map(coordinates: Tensor, kernel: Triple) -> KernelMap:
    """The map of a convolution whose outputs are at the places of its inputs.

    An even kernel reads one place more on the upper side, as ``padding="same"`` of torch does.

    Args:
        coordinates: int32, shape (rows, 4): batch, x, y, z; in any order.
        kernel: Size in x, y and z.

    Raises:
        InputError: Two rows are at one place, a batch is negative, or the places span too much.
        TypeError: Coordinates are not int32 on the CPU.
        ValueError: They are of another shape.
    """
    places = _places(coordinates)
    known = places.maps.get(kernel)
    if known is None:
        known = places.maps[kernel] = _submanifold(places, kernel), None
    return known[0]


def strided_map(
    coordinates: Tensor, kernel: Triple, stride: Triple, padding: Triple
) -> tuple[KernelMap, Tensor]:
    """The map of a convolution with outputs wherever its kernel reaches an input.

    The output at o reads the inputs at ``stride * o - padding + offset``; o may be negative.

    Args:
        coordinates: As in :func:`submanifold_map`.
        kernel: Size in x, y and z.
        stride: Likewise.
        padding: Likewise; moves the outputs.

    Returns:
        The map, and the outputs' coordinates, int32, sorted.

    Raises:
        InputError: See :func:`submanifold_map`.
    """
    places = _places(coordinates)
    known = places.maps.get((kernel, stride, padding))
    if known is None:
        made = _strided(places, kernel, stride, padding)
        known = places.maps[kernel, stride, padding] = made
    assert known[1] is not None
    return known[0], known[1]


# ---- places


def _places(coordinates: Tensor) -> _Places:
    known: _Places | None = _known.get(coordinates)
    if known is None:
        known = _known[coordinates] = _sorted(_checked(coordinates))
    return known


def _checked(coordinates: Tensor) -> NDArray[np.int32]:
    if coordinates.dtype != torch.int32 or coordinates.device.type != "cpu":
        found = f"{coordinates.dtype} on {coordinates.device}"
        raise TypeError(f"SparseTensor.coordinates must be int32 on the CPU, got {found}")
    if coordinates.dim() != 2 or coordinates.shape[1] != 4:
        shape = tuple(coordinates.shape)
        raise ValueError(f"SparseTensor.coordinates must be (rows, 4), got {shape}")
    return np.asarray(coordinates.numpy())


def _sorted(rows: NDArray[np.int32]) -> _Places:
    if not len(rows):
        return _Places(np.zeros((0, 4), np.int64), np.zeros(0, np.int32), (0,) * 4, (-1,) * 4)
    low, high = rows.min(axis=0).tolist(), rows.max(axis=0).tolist()
    if low[0] < 0:
        raise InputError(f"coordinates: batch must be >= 0, got {low[0]}; columns: batch, x, y, z")
    whole = rows.astype(np.int64)
    keys = (whole - low) @ _weights(low, high, (0, 0, 0))
    order = np.argsort(keys, kind="stable").astype(np.int32)
    twice = kernels.first_duplicate(keys[order])
    if twice >= 0:
        place = rows[order[twice]].tolist()
        raise InputError(
            f"coordinates: rows {order[twice - 1]} and {order[twice]} are both at {place}; "
            "keep one row per voxel (torch.unique), with the mean of their features"
        )
    return _Places(whole[order], order, tuple(low), tuple(high))


def _weights(low: Any, high: Any, margin: Triple) -> Whole:
    """What a step in each column adds to a key; ``margin`` places beyond each axis stay free.

    Raises:
        InputError: A key would not fit into 62 bits.
    """
    extents = [int(b) - int(a) + 1 for a, b in zip(low, high, strict=True)]
    sizes = [extent + free for extent, free in zip(extents, (0, *margin), strict=True)]
    if math.prod(sizes) >= _KEY_LIMIT:
        batches, x, y, z = extents
        raise InputError(
            f"coordinates span {x} x {y} x {z} voxels in {batches} clouds, more than 2^62 in all; "
            "move each cloud to the origin, drop outliers, or use larger voxels"
        )
    steps = [math.prod(sizes[axis + 1 :]) for axis in range(4)]
    return np.array(steps, np.int64)


# ---- maps


def _submanifold(places: _Places, kernel: Triple) -> KernelMap:
    below = tuple((size - 1) // 2 for size in kernel)
    weights = _weights(places.low, places.high, kernel)
    keys = (places.coordinates - places.low) @ weights
    source, target = np.empty((2, len(keys)), np.int32)
    found: dict[tuple[int, ...], tuple[Rows, Rows]] = {}
    for offset in itertools.product(*(range(size) for size in kernel)):
        mirror = tuple(2 * b - o for b, o in zip(below, offset, strict=True))
        if mirror in found:
            found[offset] = found[mirror][::-1]
        elif offset == below:
            everything = np.arange(len(keys), dtype=np.int32)
            found[offset] = everything, everything
        else:
            shift = int(np.subtract(offset, below) @ weights[1:])
            count = kernels.shifted_matches(keys, shift, source, target)
            found[offset] = source[:count].copy(), target[:count].copy()
    return _assembled(list(found.values()), places.order, places.order)


def _strided(
    places: _Places, kernel: Triple, stride: Triple, padding: Triple
) -> tuple[KernelMap, Tensor]:
    geometry = list(zip(kernel, stride, padding, strict=True))
    low, high = list(places.low), list(places.high)
    for axis, (size, step, pad) in enumerate(geometry, 1):
        low[axis] = (low[axis] + pad - size + 1) // step
        high[axis] = (high[axis] + pad) // step
    if min(low) < -(2**31) or max(high) >= 2**31:
        raise InputError("coordinates of the outputs leave int32: move the clouds to the origin")
    weights = _weights(low, high, (0, 0, 0))
    room = np.empty(len(places.order), np.int64), np.empty(len(places.order), np.int32)
    reached: list[tuple[Whole, Rows]] = []
    for offset in itertools.product(*(range(size) for size in kernel)):
        shape = (np.array(values) for values in (offset, stride, padding))
        count = kernels.reached(places.coordinates, *shape, weights, np.array(low), *room)
        reached.append((room[0][:count].copy(), room[1][:count].copy()))
    table = np.unique(np.concatenate([keys for keys, _ in reached]))
    pairs = []
    for keys, source in reached:
        target = np.empty(len(keys), np.int32)
        kernels.positions(table, keys, target)
        pairs.append((source, target))
    outputs = _decoded(table, weights, low)
    made = _assembled(pairs, places.order, np.arange(len(table), dtype=np.int32))
    return made, torch.from_numpy(outputs)


def _decoded(keys: Whole, weights: Whole, low: list[int]) -> NDArray[np.int32]:
    """Coordinates of keys."""
    columns = []
    for weight, least in zip(weights, low, strict=True):
        digit, keys = np.divmod(keys, weight)
        columns.append(digit + least)
    return np.stack(columns, axis=1).astype(np.int32)
