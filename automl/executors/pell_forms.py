"""Permute-ELL: rows side by side in the lanes of a vector, activations picked from registers.

EIE deals the rows of a matrix out to processing elements that run ahead of each other within the
depth of a queue (arXiv 1602.01528, section III). Here the elements are the 16 lanes of a 512-bit
vector, and the queue is a window of activations in registers, from which a permutation gives every
lane the one that its next entry needs:

- Rows are sorted by how many entries they have; 16 neighbours in that order are a *group*.
- A group is worked through in *steps*. Each moves the window to the lane that is furthest behind
  and takes the next entries (as many as the form is deep) that every lane has in the window. Lanes
  without take zeros; ``PellLinear.fill`` is the fraction of slots that do not.
- An entry is one byte, its place in the window, and its weight. Those of ``PellCodebook`` hold both
  in one byte: 4 bits each. 64 such bytes are a *block*, 4 to each 32-bit lane. Of a lane's entries
  in one step, 16-bit ones sit side by side in pairs and 8-bit ones in fours, as one instruction
  takes them; what one instruction takes is a *round*, and byte r of lane l belongs to round r.
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
from numpy.typing import NDArray

from automl.executors.kernels import cpu, pell_call
from automl.executors.packed import PackedLinear
from automl.executors.rows import Float32

#: Rows of a group.
LANES = 16
#: Entries of a block.
BLOCK = 64


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
        return BLOCK // (LANES * self.depth)

    @property
    def rounds(self) -> int:
        """Rounds whose indices fill 64 bytes."""
        return BLOCK // (LANES * self.width)


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
        return -(-self.out_features // LANES)

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
        shape = (-1, LANES, self.steps.width, self.steps.rounds)
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
        row_of_lane = np.full(self.groups * LANES, self.out_features)
        row_of_lane[self.place] = np.arange(self.out_features)
        rows = row_of_lane.reshape(-1, LANES)[of_block % self.groups][:, None, :, None]
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
        return self.value.reshape(-1, 4, LANES, 1)


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
        return words.reshape(-1, 2, LANES, 2)


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
        return self.value.astype(np.float32).reshape(-1, 1, LANES, 4)

    def to_dense(self) -> Float32:
        """See ``PackedLinear``."""
        return super().to_dense() * self.scale[:, None]

    def _arguments(self) -> tuple[Any, ...]:
        return (*super()._arguments(), self.scale, self.offset)


@dataclass(frozen=True, eq=False)
class PellCodebookInt8(PellLinear):
    """4-bit codes into 16 shared weights, 8-bit activations: 1.5 bytes an entry.

    Shared weights are whole numbers of 15 bits with one scale, activations those of ``PellInt8``,
    and sums are exact. The window is sixteen times as wide as that of ``PellCodebook``, so that
    fewer slots stay empty, and an instruction multiplies four times as many.

    Attributes:
        codes: Codes of a block's entries, two to a byte, shape (32 blocks): entry i in the lower
            half of byte i, and entry 32 + i in its upper half.
        scale: What a weight of 1 stands for, shape (1).
        offset: Sum of each row's whole weights, for the level of zero, shape (out_features).
    """

    codes: NDArray[np.uint8]
    scale: Float32
    offset: NDArray[np.int32]

    kind: ClassVar[str] = "pell_codebook_int8"
    form: ClassVar[str] = "codebook_int8"
    steps: ClassVar[Steps] = PellInt8.steps
    needs: ClassVar[frozenset[str]] = cpu.BYTES

    @property
    def name(self) -> str:
        """See ``PackedLinear``."""
        return "pell_codebook_int8"

    def slot_weights(self) -> NDArray[np.float32]:
        """See ``PellLinear``: whole numbers, without the scale."""
        halves = self.codes.reshape(-1, 1, BLOCK // 2)
        codes = np.concatenate([halves & 15, halves >> 4], axis=1)
        weights: NDArray[np.float32] = self.value[codes].reshape(-1, 1, LANES, 4)
        return weights

    def to_dense(self) -> Float32:
        """See ``PackedLinear``."""
        return super().to_dense() * self.scale

    def _arguments(self) -> tuple[Any, ...]:
        with np.errstate(invalid="ignore"):  # of a damaged file, say
            whole = self.value.astype(np.int32)
        coarse = (whole + 64) >> 7
        tables = np.concatenate([np.tile(part, 4) for part in (whole - 128 * coarse, coarse)])
        arrays = (self.tile, self.blocks, self.advance, self.index, self.codes)
        sums = (self.place, self.bias, self.scale, self.offset)
        return (*arrays, tables.astype(np.int8), *sums)
