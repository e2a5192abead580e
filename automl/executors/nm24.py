"""2:4 sparsity: two of every four neighbouring weights of a row, in one packed stream.

What a matrix of this pattern costs is known before it is pruned: half of the values and two bits
each for where they stand, 1.88 times less than dense float32. A product that reads weights once is
bound by memory, so this is also the most it can gain. Values and places lie in one stream, in the
order in which they are used, so that there is one address to fetch ahead of.

A *block* is four rows by 128 columns: 64 bytes of places, then the values. float32: four chunks of
32 columns; in each, one 32-bit word of places a row, entry i in bits 2i; then 16 values a row.
bfloat16: two chunks of 64 columns; in each, four 16-bit words of places a row, entry i in word
i % 4, bits 2 (i // 4); then 32 values a row. int8: one chunk; in it, 16 bytes of places a row,
entry i in byte i % 16, bits 2 (i // 16); then 64 values a row. Matrices are filled up with zeros to
whole blocks.

A. Mishra et al., "Accelerating sparse deep neural networks" (arXiv 2104.08378),
section 3, has the pattern.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from automl.executors.kernels import checks, cpu, nm24
from automl.executors.packed import FiniteLinear, aligned_zeros
from automl.executors.rounding import check_int8_row, quantise_rows, round_to_bfloat16
from automl.executors.rows import Float32, as_bias, as_finite, as_weight

_ROWS, _COLUMNS = 4, 128


@dataclass(frozen=True, eq=False)
class Nm24Linear(FiniteLinear):
    """A packed layer; subclasses say what a weight is.

    Attributes:
        stream: Places and values, 32-bit words.
    """

    stream: NDArray[np.uint32]

    #: Columns of a chunk.
    chunk: ClassVar[int]

    @property
    def blocks(self) -> int:
        """Blocks of four rows."""
        return -(-self.in_features // _COLUMNS)

    def to_dense(self) -> Float32:
        """See ``PackedLinear``."""
        places, values = self.unpack()
        quads = -(-self.out_features // _ROWS)
        shape = (quads, self.blocks * _COLUMNS // self.chunk, _ROWS, self.chunk // 4, 4)
        dense = np.zeros(shape, np.float32)
        pairs = (*shape[:3], self.chunk // 4, 2)
        np.put_along_axis(dense, places.reshape(pairs), values.reshape(pairs), -1)
        matrix = dense.transpose(0, 2, 1, 3, 4).reshape(quads * _ROWS, -1)
        return np.ascontiguousarray(matrix[: self.out_features, : self.in_features])

    def unpack(self) -> tuple[NDArray[np.int64], Float32]:
        """Places in their four columns, and values, each in the order of the stream."""
        raise NotImplementedError

    def _words(self) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        """Words of places, shape (blocks of the matrix, 16), and of values."""
        quads = -(-self.out_features // _ROWS)
        blocks = self.stream.reshape(quads * self.blocks, -1)
        return np.ascontiguousarray(blocks[:, :16]), np.ascontiguousarray(blocks[:, 16:])

    def _sums(self, kernel: Any, x: NDArray[Any]) -> Float32:
        sums = np.empty(-(-self.out_features // _ROWS) * _ROWS, np.float32)
        kernel(x, self.stream, self.blocks, sums)
        y: Float32 = sums[: self.out_features] + self.bias
        return y


@dataclass(frozen=True, eq=False)
class Nm24Float32(Nm24Linear):
    """Exact: 4.25 bytes an entry."""

    kind: ClassVar[str] = "nm24_float32"
    chunk: ClassVar[int] = 32

    @property
    def name(self) -> str:
        """See ``PackedLinear``."""
        return "nm24"

    def unpack(self) -> tuple[NDArray[np.int64], Float32]:
        """See ``Nm24Linear``."""
        places, values = self._words()
        shifts = np.arange(0, 32, 2, dtype=np.uint32)
        return (places[..., None] >> shifts & 3).astype(np.int64), values.view(np.float32)

    def multiply(self, x: Float32) -> Float32:
        """See ``FiniteLinear``."""
        padded = checks.padded_float32(x, self.blocks * _COLUMNS - len(x))
        return self._sums(nm24.float32 if cpu.supports(cpu.FLOATS) else nm24.float32_plain, padded)


@dataclass(frozen=True, eq=False)
class Nm24Bfloat16(Nm24Linear):
    """Weights and activations rounded to bfloat16, sums in float32: 2.25 bytes an entry."""

    kind: ClassVar[str] = "nm24_bfloat16"
    chunk: ClassVar[int] = 64

    @property
    def name(self) -> str:
        """See ``PackedLinear``."""
        return "nm24_bf16"

    def unpack(self) -> tuple[NDArray[np.int64], Float32]:
        """See ``Nm24Linear``."""
        places, values = self._words()
        halves = places.view(np.uint16).reshape(len(places), -1, 1, 4)
        shifts = np.arange(0, 16, 2, dtype=np.uint16)[:, None]
        words = values.view(np.uint16).astype(np.uint32) << 16
        return (halves >> shifts & 3).astype(np.int64), words.view(np.float32)

    def multiply(self, x: Float32) -> Float32:
        """See ``PackedLinear``."""
        padded = checks.padded_bfloat16(x.view(np.uint32), self.blocks * _COLUMNS - len(x))
        fast = cpu.supports(cpu.WORDS)
        return self._sums(nm24.bfloat16 if fast else nm24.bfloat16_plain, padded)


@dataclass(frozen=True, eq=False)
class Nm24Int8(Nm24Linear):
    """8-bit weights scaled by row, 8-bit activations scaled by example: 1.25 bytes an entry.

    Activations are rounded as those of ``PellInt8``; sums are exact.

    Attributes:
        scale: What a weight of 1 stands for, by row, shape (out_features).
        offset: Sum of each row's 8-bit weights, for the level of zero, shape (out_features).
    """

    scale: Float32
    offset: NDArray[np.int32]

    kind: ClassVar[str] = "nm24_int8"
    chunk: ClassVar[int] = 128

    @property
    def name(self) -> str:
        """See ``PackedLinear``."""
        return "nm24_int8"

    def unpack(self) -> tuple[NDArray[np.int64], Float32]:
        """See ``Nm24Linear``: whole numbers, without the rows' scales."""
        places, values = self._words()
        bytes_ = places.view(np.uint8).reshape(len(places), _ROWS, 1, 16)
        shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
        return (bytes_ >> shifts & 3).astype(np.int64), values.view(np.int8).astype(np.float32)

    def to_dense(self) -> Float32:
        """See ``PackedLinear``."""
        return super().to_dense() * self.scale[:, None]

    def multiply(self, x: Float32) -> Float32:
        """See ``FiniteLinear``."""
        step, zero = checks.levels(x)
        padded = checks.padded_uint8(x, 1 / step, zero, self.blocks * _COLUMNS - len(x))
        sums = np.empty(-(-self.out_features // _ROWS) * _ROWS, np.int32)
        kernel = nm24.int8 if cpu.supports(cpu.BYTES) else nm24.int8_plain
        kernel(padded, self.stream, self.blocks, sums)
        y = np.empty(self.out_features, np.float32)
        nm24.finish_int8(sums, step, zero, self.scale, self.offset, self.bias, y)
        return y


@dataclass(frozen=True, slots=True)
class Nm24:
    """The format's settings.

    Attributes:
        value: How weights are stored: ``float32``, ``bfloat16`` or ``int8``.
    """

    value: str = "float32"

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
            ValueError: There is no such type.
        """
        if self.value not in _PACKERS:
            raise ValueError(f"Nm24.value must be one of {sorted(_PACKERS)}, got {self.value!r}")

    @property
    def name(self) -> str:
        """See ``Format``."""
        return {"float32": "nm24", "bfloat16": "nm24_bf16"}.get(self.value, f"nm24_{self.value}")

    def unfit(self, weight: ArrayLike) -> str | None:
        """See ``Format``."""
        if self.value == "int8" and not np.isfinite(np.asarray(weight)).all():
            return "holds NaN or infinite weights"
        most = int(np.count_nonzero(_fours(np.asarray(weight)), axis=-1).max(initial=0))
        return None if most <= 2 else f"has {most} of 4 neighbours that are not zero"

    def pack(self, weight: ArrayLike, bias: ArrayLike | None = None) -> Nm24Linear:
        """See ``Format``."""
        matrix = as_weight(weight)
        if self.value == "int8":
            as_finite(matrix, "int8")
        reason = self.unfit(matrix)
        if reason:
            raise ValueError(f"Format.weight must have at most 2 of 4 non-zeros, but {reason}")
        return _PACKERS[self.value](matrix, as_bias(bias, len(matrix)))


def _fours(matrix: NDArray[Any]) -> NDArray[Any]:
    """Neighbours in a row by fours, filled up with zeros: (rows, fours, 4)."""
    padded = np.pad(matrix, ((0, 0), (0, -matrix.shape[1] % 4)))
    return padded.reshape(len(matrix), -1, 4)


def _two_of_four(matrix: Float32) -> tuple[NDArray[np.int64], Float32]:
    """Places and values of the entries, each (rows, columns / 2)."""
    fours = _fours(matrix)
    # Where there are fewer than two, zeros are taken along.
    places = np.sort(np.argsort(fours == 0, axis=-1, kind="stable")[..., :2], axis=-1)
    values = np.take_along_axis(fours, places, -1)
    return places.reshape(len(matrix), -1), values.reshape(len(matrix), -1)


def _by_block(entries: NDArray[Any], chunk: int) -> NDArray[Any]:
    """Entries in the order of the stream: (blocks, chunks, rows, entries of a chunk)."""
    shape = (len(entries) // _ROWS, _ROWS, -1, _COLUMNS // chunk, chunk // 2)
    ordered = entries.reshape(shape).transpose(0, 2, 3, 1, 4)
    return ordered.reshape(-1, *ordered.shape[2:])


def _stream(places: NDArray[Any], values: NDArray[Any]) -> NDArray[np.uint32]:
    words = [np.ascontiguousarray(a).reshape(len(a), -1).view(np.uint32) for a in (places, values)]
    joined = np.concatenate(words, axis=1)
    stream = aligned_zeros(joined.size, np.uint32)
    stream[:] = joined.reshape(-1)
    return np.asarray(stream, np.uint32)


def _padded(matrix: Float32) -> tuple[NDArray[np.int64], Float32]:
    """As :func:`_two_of_four`, of the matrix filled up to whole blocks."""
    rows, columns = matrix.shape
    padded = np.zeros((rows + -rows % _ROWS, columns + -columns % _COLUMNS), np.float32)
    padded[:rows, :columns] = matrix
    return _two_of_four(padded)


def _pack_float32(weight: Float32, bias: Float32) -> Nm24Linear:
    places, values = _padded(weight)
    shifted = _by_block(places, 32).astype(np.uint32) << np.arange(0, 32, 2, dtype=np.uint32)
    words = np.bitwise_or.reduce(shifted, axis=-1)
    return Nm24Float32(weight.shape[1], bias, _stream(words, _by_block(values, 32)))


def _pack_bfloat16(weight: Float32, bias: Float32) -> Nm24Linear:
    places, values = _padded(weight)
    ordered = _by_block(places, 64).astype(np.uint16)
    fours = ordered.reshape(*ordered.shape[:-1], 8, 4)
    shifts = np.arange(0, 16, 2, dtype=np.uint16)[:, None]
    words = np.bitwise_or.reduce(fours << shifts, axis=-2)
    halves = (round_to_bfloat16(_by_block(values, 64)).view(np.uint32) >> 16).astype(np.uint16)
    return Nm24Bfloat16(weight.shape[1], bias, _stream(words, halves))


def _pack_int8(weight: Float32, bias: Float32) -> Nm24Linear:
    scale, quantised = quantise_rows(weight)
    check_int8_row(int(np.count_nonzero(quantised, axis=1).max()))
    places, values = _padded(quantised)
    ordered = _by_block(places, 128).astype(np.uint8)
    sixteens = ordered.reshape(*ordered.shape[:-1], 4, 16)
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    bytes_ = np.bitwise_or.reduce(sixteens << shifts, axis=-2)
    stream = _stream(bytes_, _by_block(values, 128).astype(np.int8))
    offset = quantised.sum(1).astype(np.int32)
    return Nm24Int8(weight.shape[1], bias, stream, scale, offset)


_PACKERS = {"float32": _pack_float32, "bfloat16": _pack_bfloat16, "int8": _pack_int8}
