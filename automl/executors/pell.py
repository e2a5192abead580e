"""Permute-ELL: rows side by side in the lanes of a vector, activations picked from registers.

EIE deals the rows of a matrix out to processing elements that run ahead of each other within the
depth of a queue (arXiv 1602.01528, section III). Here the elements are the 16 lanes of a 512-bit
vector, and the queue is a window of activations in registers, from which a permutation gives every
lane the one that its next entry needs:

- Rows are sorted by how many entries they have; 16 neighbours in that order are a *group*.
- A group is worked through in *steps*. Each moves the window to the lane that is furthest behind
  and takes the next entries (as many as the form is deep) that every lane has in the window. Lanes
  without take zeros; ``PellLinear.fill`` is the fraction of slots that do not.
- An entry is one byte, its place in the window, and its weight. Codebook entries hold both in one
  byte: 4 bits each. 64 such bytes are a *block*, 4 to each 32-bit lane. Of a lane's entries in one
  step, 16-bit ones sit side by side in pairs and 8-bit ones in fours, as one instruction takes
  them; what one instruction takes is a *round*, and byte r of lane l belongs to round r.
- Wide matrices are cut into *tiles* of columns, so that a tile's activations stay in the cache.
  A *segment* is one group in one tile.

Nothing is gathered or scattered, there are no branches between segments, and all streams are read
once from front to back.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from automl.executors.kernels import cpu, pell_call
from automl.executors.kernels.pell_schedule import schedule
from automl.executors.packed import PackedLinear, aligned_zeros
from automl.executors.rounding import check_int8_row, quantise_rows, round_to_bfloat16
from automl.executors.rows import Float32, Rows, as_bias, as_finite, as_weight
from automl.executors.shared_weights import share

_LANES = 16
_BLOCK = 64


@dataclass(frozen=True, slots=True)
class Steps:
    """How a form of permute-ELL takes steps.

    Attributes:
        unit: Windows start at multiples of this many columns.
        window: Columns of a window.
        depth: Entries that a lane takes in one step.
        width: Entries that a lane takes in one round.
    """

    unit: int
    window: int
    depth: int
    width: int

    @property
    def per_block(self) -> int:
        """Steps whose indices fill 64 bytes."""
        return _BLOCK // (_LANES * self.depth)

    @property
    def rounds(self) -> int:
        """Rounds whose indices fill 64 bytes."""
        return _BLOCK // (_LANES * self.width)


@dataclass(frozen=True, eq=False)
class PellLinear(PackedLinear):
    """A packed layer; subclasses say what a weight is.

    Attributes:
        tile: Columns of a tile.
        place: Lane of every row, counted over all groups, shape (out_features).
        blocks: First block of every segment, and the end, shape (segments + 1).
        advance: Units by which every step moves the window, shape (steps).
        index: Place of every entry's activation in the window, shape (64 blocks).
        value: Weights in the order of steps; for codebooks the 16 shared weights.
    """

    tile: int
    place: NDArray[np.int32]
    blocks: NDArray[np.int64]
    advance: NDArray[np.uint8]
    index: NDArray[np.uint8]
    value: NDArray[Any]

    #: Name of the functions in ``kernels/pell_call.py`` and those that it calls.
    form: ClassVar[str]
    steps: ClassVar[Steps]
    needs: ClassVar[frozenset[str]]

    @property
    def groups(self) -> int:
        """Groups of 16 rows."""
        return -(-self.out_features // _LANES)

    @cached_property
    def call(self) -> tuple[Any, tuple[Any, ...]]:
        """What multiplies on this machine, and its arguments behind the example and its output."""
        fast = True if cpu.supports(self.needs) else None
        return getattr(pell_call, self.form), (*self._arguments(), fast)

    def _arguments(self) -> tuple[Any, ...]:
        arrays = (self.tile, self.blocks, self.advance, self.index, self.value)
        return (*arrays, self.place, self.bias)

    def multiply_into(self, x: Float32, y: Float32) -> bool:
        """See ``PackedLinear``."""
        kernel, arguments = self.call
        done: bool = kernel(x, y, *arguments)
        return done

    @abstractmethod
    def slot_weights(self) -> NDArray[np.float32]:
        """Weight in every slot, shape (blocks, rounds, 16, width), zero in empty ones."""

    def slot_offsets(self) -> NDArray[np.int64]:
        """Offset in the window of every slot's activation, shaped like ``slot_weights``."""
        return self._by_round(self.index).astype(np.int64)

    def _by_round(self, bytes_: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Bytes of blocks in the order of rounds: (blocks, rounds, 16, width)."""
        shape = (-1, _LANES, self.steps.width, self.steps.rounds)
        return bytes_.reshape(shape).transpose(0, 3, 1, 2)

    def to_dense(self) -> Float32:
        """See ``PackedLinear``."""
        steps = self.steps
        segments = len(self.blocks) - 1
        of_block = np.repeat(np.arange(segments), np.diff(self.blocks))
        moves = self.advance[: len(of_block) * steps.per_block].astype(np.int64) * steps.unit
        passed = np.cumsum(moves)
        first = np.concatenate([[0], passed])[self.blocks[:-1] * steps.per_block]
        of_step = np.repeat(of_block, steps.per_block)
        start = passed - first[of_step] + of_step // self.groups * self.tile
        start = np.repeat(start, steps.depth // steps.width)
        row_of_lane = np.full(self.groups * _LANES, self.out_features)
        row_of_lane[self.place] = np.arange(self.out_features)
        rows = row_of_lane.reshape(-1, _LANES)[of_block % self.groups][:, None, :, None]
        weights = self.slot_weights()
        columns = start.reshape(-1, steps.rounds)[:, :, None, None] + self.slot_offsets()
        used = weights != 0
        dense = np.zeros((self.out_features, self.in_features), np.float32)
        dense[np.broadcast_to(rows, weights.shape)[used], columns[used]] = weights[used]
        return dense

    @property
    def fill(self) -> float:
        """Fraction of slots that hold an entry."""
        return float(np.count_nonzero(self.slot_weights())) / max(len(self.index), 1)


@dataclass(frozen=True, eq=False)
class PellFloat32(PellLinear):
    """Exact: 5 bytes an entry, empty slots included."""

    kind: ClassVar[str] = "pell_float32"
    form: ClassVar[str] = "float32"
    steps: ClassVar[Steps] = Steps(unit=16, window=128, depth=2, width=1)
    needs: ClassVar[frozenset[str]] = cpu.FLOATS

    @property
    def name(self) -> str:
        """See ``PackedLinear``."""
        return "pell"

    def slot_weights(self) -> NDArray[np.float32]:
        """See ``PellLinear``."""
        return self.value.reshape(-1, 4, _LANES, 1)


@dataclass(frozen=True, eq=False)
class PellBfloat16(PellLinear):
    """Weights and activations rounded to bfloat16, sums in float32: 3 bytes an entry."""

    kind: ClassVar[str] = "pell_bfloat16"
    form: ClassVar[str] = "bfloat16"
    steps: ClassVar[Steps] = Steps(unit=32, window=128, depth=2, width=2)
    needs: ClassVar[frozenset[str]] = cpu.WORDS

    @property
    def name(self) -> str:
        """See ``PackedLinear``."""
        return "pell_bf16"

    def slot_weights(self) -> NDArray[np.float32]:
        """See ``PellLinear``."""
        words = (self.value.astype(np.uint32) << 16).view(np.float32)
        return words.reshape(-1, 2, _LANES, 2)


@dataclass(frozen=True, eq=False)
class PellCodebook(PellLinear):
    """Weights are 4-bit codes into 16 shared ones: 1 byte an entry; activations are float32."""

    kind: ClassVar[str] = "pell_codebook"
    form: ClassVar[str] = "codebook"
    steps: ClassVar[Steps] = Steps(unit=1, window=16, depth=1, width=1)
    needs: ClassVar[frozenset[str]] = cpu.FLOATS

    @property
    def name(self) -> str:
        """See ``PackedLinear``."""
        return "pell_codebook"

    def slot_weights(self) -> NDArray[np.float32]:
        """See ``PellLinear``."""
        weights: NDArray[np.float32] = self.value[self._by_round(self.index) >> 4]
        return weights

    def slot_offsets(self) -> NDArray[np.int64]:
        """See ``PellLinear``."""
        return (self._by_round(self.index) & 15).astype(np.int64)


@dataclass(frozen=True, eq=False)
class PellInt8(PellLinear):
    """8-bit weights scaled by row, 8-bit activations scaled by example: 2 bytes an entry.

    Activations are rounded to 256 levels between the smallest and the largest (zero is one of
    them); sums are exact.

    Attributes:
        scale: What a weight of 1 stands for, by row, shape (out_features).
        offset: Sum of each row's 8-bit weights, for the level of zero, shape (out_features).
    """

    scale: Float32
    offset: NDArray[np.int32]

    kind: ClassVar[str] = "pell_int8"
    form: ClassVar[str] = "int8"
    steps: ClassVar[Steps] = Steps(unit=64, window=256, depth=4, width=4)
    needs: ClassVar[frozenset[str]] = cpu.BYTES

    @property
    def name(self) -> str:
        """See ``PackedLinear``."""
        return "pell_int8"

    def slot_weights(self) -> NDArray[np.float32]:
        """See ``PellLinear``: whole numbers, without the rows' scales."""
        return self.value.astype(np.float32).reshape(-1, 1, _LANES, 4)

    def to_dense(self) -> Float32:
        """See ``PackedLinear``."""
        return super().to_dense() * self.scale[:, None]

    def _arguments(self) -> tuple[Any, ...]:
        return (*super()._arguments(), self.scale, self.offset)


@dataclass(frozen=True, slots=True)
class Pell:
    """The format's settings.

    Attributes:
        value: How weights are stored: ``float32``, ``bfloat16``, ``int8`` or ``codebook``.
        tile: Columns of a tile, a multiple of 256.
    """

    value: str = "float32"
    tile: int = 16384

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
            ValueError: One is out of its range.
        """
        if self.value not in _PACKERS:
            raise ValueError(f"Pell.value must be one of {sorted(_PACKERS)}, got {self.value!r}")
        if self.tile < 256 or self.tile % 256:
            raise ValueError(f"Pell.tile must be a multiple of 256, got {self.tile}")

    @property
    def name(self) -> str:
        """See ``Format``."""
        suffix = {"float32": "", "bfloat16": "_bf16"}.get(self.value, f"_{self.value}")
        return f"pell{suffix}"

    def unfit(self, weight: ArrayLike) -> str | None:
        """See ``Format``."""
        if self.value in ("int8", "codebook") and not np.isfinite(np.asarray(weight)).all():
            return "holds NaN or infinite weights"
        return None

    def pack(self, weight: ArrayLike, bias: ArrayLike | None = None) -> PellLinear:
        """See ``Format``."""
        matrix = as_weight(weight)
        return _PACKERS[self.value](matrix, as_bias(bias, len(matrix)), self.tile)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where every entry of a matrix goes."""

    fields: dict[str, Any]
    index_at: NDArray[np.int64]
    value_at: NDArray[np.int64]
    offset: NDArray[np.uint8]
    slots: int


def _pack_float32(weight: Float32, bias: Float32, tile: int) -> PellLinear:
    rows = Rows.of(weight)
    layout = _lay_out(rows, PellFloat32.steps, tile)
    value = aligned_zeros(layout.slots, np.float32)
    value[layout.value_at] = rows.values
    return PellFloat32(bias=bias, value=value, **_indexed(layout, layout.offset))


def _pack_bfloat16(weight: Float32, bias: Float32, tile: int) -> PellLinear:
    rows = Rows.of(round_to_bfloat16(weight))
    layout = _lay_out(rows, PellBfloat16.steps, tile)
    value = aligned_zeros(layout.slots, np.uint16)
    value[layout.value_at] = rows.values.view(np.uint32) >> 16
    return PellBfloat16(bias=bias, value=value, **_indexed(layout, layout.offset))


def _pack_codebook(weight: Float32, bias: Float32, tile: int) -> PellLinear:
    rows = Rows.of(as_finite(weight, "a codebook"))
    codes, codebook = share(rows.values)
    layout = _lay_out(rows, PellCodebook.steps, tile)
    fields = _indexed(layout, layout.offset | codes << np.uint8(4))
    return PellCodebook(bias=bias, value=codebook, **fields)


def _pack_int8(weight: Float32, bias: Float32, tile: int) -> PellLinear:
    scale, quantised = quantise_rows(as_finite(weight, "int8"))
    rows = Rows.of(quantised)
    check_int8_row(int(rows.counts.max()))
    layout = _lay_out(rows, PellInt8.steps, tile)
    value = aligned_zeros(layout.slots, np.int8)
    value[layout.value_at] = rows.values
    return PellInt8(
        bias=bias,
        value=value,
        scale=scale,
        offset=quantised.sum(1).astype(np.int32),
        **_indexed(layout, layout.offset),
    )


_PACKERS = {
    "float32": _pack_float32,
    "bfloat16": _pack_bfloat16,
    "codebook": _pack_codebook,
    "int8": _pack_int8,
}


def _lay_out(rows: Rows, steps: Steps, tile: int) -> _Layout:
    out_features, in_features = rows.shape
    groups, tiles = -(-out_features // _LANES), -(-in_features // tile)
    lanes = np.full(groups * _LANES, -1, np.int64)
    lanes[:out_features] = np.argsort(-rows.counts, kind="stable")
    entries = len(rows.values)
    taken = np.zeros(groups * tiles, np.int64)
    # Every step takes an entry, but for those that only move the window.
    most = entries + groups * tiles * (tile // (255 * steps.unit) + 1)
    advance = np.zeros(most, np.uint8)
    step_of, rank_of = np.zeros(entries, np.int64), np.zeros(entries, np.int64)
    offset_of = np.zeros(entries, np.uint8)
    total = schedule(
        rows.starts, rows.columns, lanes, tile, tiles, steps.unit, steps.window, steps.depth,
        taken, advance, step_of, rank_of, offset_of,
    )  # fmt: skip
    blocks = np.zeros(groups * tiles + 1, np.int64)
    np.cumsum(-(-taken // steps.per_block), out=blocks[1:])
    # Steps of a segment start at a block of their own.
    shift = blocks[:-1] * steps.per_block - (np.cumsum(taken) - taken)
    moved = np.arange(total) + np.repeat(shift, taken)
    padded = np.zeros(blocks[-1] * steps.per_block, np.uint8)
    padded[moved] = advance[:total]
    place = np.zeros(out_features, np.int32)
    place[lanes[:out_features]] = np.arange(out_features)
    lane = place[rows.row_of].astype(np.int64) % _LANES
    turn = moved[step_of] * (steps.depth // steps.width) + rank_of // steps.width
    side = rank_of % steps.width
    within = steps.rounds * side + turn % steps.rounds
    return _Layout(
        {"in_features": in_features, "tile": tile, "place": place, "blocks": blocks}
        | {"advance": padded},
        index_at=_BLOCK * (turn // steps.rounds) + 4 * lane + within,
        value_at=(turn * _LANES + lane) * steps.width + side,
        offset=offset_of,
        slots=int(blocks[-1]) * _BLOCK,
    )


def _indexed(layout: _Layout, entry: NDArray[np.uint8]) -> dict[str, Any]:
    index = aligned_zeros(layout.slots, np.uint8)
    index[layout.index_at] = entry
    return layout.fields | {"index": index}
