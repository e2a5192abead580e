"""Bytes of a weight matrix under each format of storage: the more zeros, the larger the table.

A matrix has one row per output and one column per weight of an output, as an unrolled convolution
has. Every format gives two figures: the exact bits of one mask, and the expected bits at a density
d, where every weight is non-zero with probability d, independently of all others.

| format | stored |
|---|---|
| dense | every weight |
| bitmap | one bit per weight, and the non-zero weights |
| table | the non-zero weights, each with its place in the whole matrix |
| csc | by columns: the non-zero weights, the row of each, and where every column starts |
| csc_relative | the same with the number of zeros since the last entry in place of the row; a run too long for the field costs entries that hold a zero |
| nm24 | two of every four neighbours in a row, with two bits each for which two |

Values are 32, 16 or 8 bits, or 4-bit codes into a table of 16 shared values per matrix.
``csc_relative`` with 4-bit codes and 4-bit distances is what EIE computes on (S. Han et al.,
arXiv 1602.01528, section III).
"""  # noqa: E501 - a table's row is one line

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    import pandas as pd

Mask = NDArray[np.bool_]
Shape = tuple[int, int]

#: Positions and starts are stored in the narrowest of these that holds them, bits.
_WIDTHS = (16, 32, 64)


@dataclass(frozen=True, slots=True)
class Values:
    """How one value is stored.

    Attributes:
        bits: Of one value.
        codebook_bits: Of the table that codes point into, once per matrix; 0 without codes.
    """

    bits: int
    codebook_bits: int = 0


FLOAT32, FLOAT16, INT8 = Values(32), Values(16), Values(8)

#: 4-bit codes into 16 shared floats.
CODEBOOK = Values(4, 16 * 32)


class Format(Protocol):
    """A way to store one matrix."""

    @property
    def name(self) -> str:
        """Name of the format with its values."""

    @property
    def values(self) -> Values:
        """How values are stored."""

    def bits(self, mask: Mask) -> int:
        """Exact bits of a matrix that is non-zero where ``mask`` is; mask (rows, columns)."""

    def expected_bits(self, shape: Shape, density: float) -> float:
        """Mean bits over masks whose entries are set independently; NaN where it cannot be."""


@dataclass(frozen=True, slots=True)
class Dense:
    """Every weight, zeros included."""

    name: str
    values: Values = FLOAT32

    def bits(self, mask: Mask) -> int:
        """See ``Format``."""
        return mask.size * self.values.bits + self.values.codebook_bits

    def expected_bits(self, shape: Shape, density: float) -> float:
        """See ``Format``."""
        return float(shape[0] * shape[1] * self.values.bits + self.values.codebook_bits)


@dataclass(frozen=True, slots=True)
class Bitmap:
    """One bit per weight, and the values of those that are set."""

    name: str
    values: Values = FLOAT32

    def bits(self, mask: Mask) -> int:
        """See ``Format``."""
        stored = int(np.count_nonzero(mask))
        return mask.size + stored * self.values.bits + self.values.codebook_bits

    def expected_bits(self, shape: Shape, density: float) -> float:
        """See ``Format``."""
        size = shape[0] * shape[1]
        return size * (1 + density * self.values.bits) + self.values.codebook_bits


@dataclass(frozen=True, slots=True)
class Table:
    """Values, each with its position in the whole matrix."""

    name: str
    values: Values = FLOAT32

    def bits(self, mask: Mask) -> int:
        """See ``Format``."""
        return int(np.count_nonzero(mask)) * self._entry(mask.shape) + self.values.codebook_bits

    def expected_bits(self, shape: Shape, density: float) -> float:
        """See ``Format``."""
        stored = density * shape[0] * shape[1]
        return stored * self._entry(shape) + self.values.codebook_bits

    def _entry(self, shape: Sequence[int]) -> int:
        return self.values.bits + width(shape[0] * shape[1] - 1)


@dataclass(frozen=True, slots=True)
class Csc:
    """Compressed sparse columns: values, their rows, and the start of every column and the end.

    Starts are as wide as the full matrix would need, so that the format does not change with the
    mask.
    """

    name: str
    values: Values = FLOAT32

    def bits(self, mask: Mask) -> int:
        """See ``Format``."""
        return int(np.count_nonzero(mask)) * self._entry(mask.shape) + self._fixed(mask.shape)

    def expected_bits(self, shape: Shape, density: float) -> float:
        """See ``Format``."""
        return density * shape[0] * shape[1] * self._entry(shape) + self._fixed(shape)

    def _entry(self, shape: Sequence[int]) -> int:
        return self.values.bits + width(shape[0] - 1)

    def _fixed(self, shape: Sequence[int]) -> int:
        starts = (shape[1] + 1) * width(shape[0] * shape[1])
        return starts + self.values.codebook_bits


@dataclass(frozen=True, slots=True)
class RelativeCsc:
    """Compressed sparse columns with distances, as EIE has them.

    An entry is a value and the number of zeros between it and the entry before it in its column.
    Where that number does not fit, an entry that holds a zero is put in at the largest distance
    that does, and counting starts again behind it: a run of r zeros costs
    ``r // 2**index_bits`` entries. Zeros behind the last entry of a column cost nothing.

    Attributes:
        name: Name of the format.
        values: How values are stored.
        index_bits: Of a distance.
        lanes: Processing elements that rows are dealt out to in turn, each with columns and starts
            of its own.
    """

    name: str
    values: Values = FLOAT32
    index_bits: int = 4
    lanes: int = 1

    def entries(self, mask: Mask) -> int:
        """Stored entries, those that hold a zero included."""
        return int(np.count_nonzero(mask)) + self.padding(mask)

    def padding(self, mask: Mask) -> int:
        """Entries that hold a zero."""
        return sum(padding(mask[lane :: self.lanes], self.index_bits) for lane in self._lanes(mask))

    def expected_padding(self, shape: Shape, density: float) -> float:
        """Mean of ``padding`` over masks whose entries are set independently.

        A non-zero behind a run of at least m * 2**index_bits zeros adds one entry for every such
        m. At row i that has probability d (1 - d)**(m * 2**index_bits) if that many rows lie
        before it, so that a column of n rows has the mean
        d * sum over m of max(0, n - m * 2**index_bits) (1 - d)**(m * 2**index_bits).
        """
        heights = [len(range(lane, shape[0], self.lanes)) for lane in range(self.lanes)]
        run = 2**self.index_bits
        total = 0.0
        for height in heights:
            zeros = run * np.arange(1, height // run + 1)
            total += density * float(((height - zeros) * (1 - density) ** zeros).sum())
        return shape[1] * total

    def bits(self, mask: Mask) -> int:
        """See ``Format``."""
        return self.entries(mask) * self._entry + self._fixed(mask.shape)

    def expected_bits(self, shape: Shape, density: float) -> float:
        """See ``Format``."""
        stored = density * shape[0] * shape[1] + self.expected_padding(shape, density)
        return stored * self._entry + self._fixed(shape)

    @property
    def _entry(self) -> int:
        return self.values.bits + self.index_bits

    def _lanes(self, mask: Mask) -> range:
        return range(min(self.lanes, mask.shape[0]))

    def _fixed(self, shape: Sequence[int]) -> int:
        starts = self.lanes * (shape[1] + 1) * width(-(-shape[0] // self.lanes) * shape[1])
        return starts + self.values.codebook_bits


@dataclass(frozen=True, slots=True)
class TwoOfFour:
    """Two of every four neighbours in a row, with two bits each for their places.

    Rows are filled up with zeros to a multiple of four columns. The size does not depend on the
    mask, but not every mask can be stored.
    """

    name: str
    values: Values = FLOAT32

    def bits(self, mask: Mask) -> int:
        """See ``Format``.

        Raises:
            ValueError: More than two of four neighbours are set.
        """
        if not self.fits(mask):
            raise ValueError("TwoOfFour.mask must have at most 2 of every 4 neighbours in a row")
        return self._bits(mask.shape)

    def expected_bits(self, shape: Shape, density: float) -> float:
        """See ``Format``; the density of a mask that was made for it, NaN above one half."""
        return float(self._bits(shape)) if density <= 0.5 else float("nan")

    @staticmethod
    def fits(mask: Mask) -> bool:
        """Whether a mask can be stored."""
        fours = np.pad(mask, ((0, 0), (0, -mask.shape[1] % 4))).reshape(len(mask), -1, 4)
        return bool((fours.sum(-1) <= 2).all())

    def _bits(self, shape: Sequence[int]) -> int:
        fours = shape[0] * -(-shape[1] // 4)
        return fours * 2 * (self.values.bits + 2) + self.values.codebook_bits


#: What ``prunepilot storage`` compares.
FORMATS: tuple[Format, ...] = (
    Dense("dense fp32"),
    Dense("dense fp16", FLOAT16),
    Dense("dense int8", INT8),
    Dense("dense 4-bit codes", CODEBOOK),
    Table("index table fp32"),
    Bitmap("bitmap fp32"),
    Csc("CSC fp32"),
    RelativeCsc("CSC relative fp32"),
    Csc("CSC 4-bit codes", CODEBOOK),
    RelativeCsc("CSC relative 4-bit codes (EIE)", CODEBOOK),
    TwoOfFour("2:4 fp32"),
    TwoOfFour("2:4 fp16", FLOAT16),
)


def width(largest: int) -> int:
    """Bits of the narrowest unsigned integer that holds ``largest``: 16, 32 or 64."""
    return next(bits for bits in _WIDTHS if largest < 2**bits)


def padding(mask: Mask, index_bits: int = 4) -> int:
    """Entries holding a zero that relative indices need, exactly; see ``RelativeCsc``.

    Args:
        mask: Where the matrix is not zero, shape (rows, columns).
        index_bits: Of a distance.
    """
    column, row = np.nonzero(mask.T)
    before = np.full(len(row), -1)
    same = column[1:] == column[:-1]
    before[1:][same] = row[:-1][same]
    zeros = row - before - 1
    return int((zeros >> index_bits).sum())


def largest(weight: ArrayLike, density: float) -> Mask:
    """Marks the largest weights by magnitude, the nearest number to ``density`` of them.

    Equal magnitudes stay in the order of their positions.

    Args:
        weight: Any shape.
        density: Fraction to mark, in [0, 1].
    """
    magnitude = np.abs(np.asarray(weight))
    count = round(density * magnitude.size)
    mask = np.zeros(magnitude.size, bool)
    mask[np.argsort(-magnitude.ravel(), kind="stable")[:count]] = True
    return mask.reshape(magnitude.shape)


def as_matrix(weight: ArrayLike) -> NDArray[np.generic]:
    """A weight as a matrix: one row per output; inputs lie next to each other in a row.

    A convolution's columns are its kernel's positions, and within each the input channels, as
    channels-last kernels read them; that is what the four neighbours of 2:4 are counted along.
    Outputs are taken to be the first dimension; see ``outputs_first`` for where they are not.
    """
    if hasattr(weight, "detach"):  # a module's parameter, wherever it lies
        weight = weight.detach().cpu()
    array = np.asarray(weight)
    if array.ndim < 2:
        return array.reshape(1, -1)
    return np.moveaxis(array, 1, -1).reshape(len(array), -1)


def outputs_first(weight: ArrayLike, groups: int = 1) -> NDArray[np.generic]:
    """The weight of a transposed convolution as a convolution would have it.

    Args:
        weight: Shape (inputs, outputs of a group, *kernel); also that of ``x @ weight``.
        groups: Groups of channels that do not mix.

    Returns:
        Shape (outputs, inputs of a group, *kernel).
    """
    array = np.asarray(weight)
    inputs, outputs, *kernel = array.shape
    apart = array.reshape(groups, inputs // groups, outputs, *kernel)
    return apart.swapaxes(1, 2).reshape(groups * outputs, inputs // groups, *kernel)


@dataclass(frozen=True)
class Storage:
    """A network's weights as formats see them.

    Attributes:
        shapes: Name -> (rows, columns) of every weight matrix.
        other: Parameters that are no matrix (biases, normalisation), stored as 32-bit floats.
        masks: Name -> where the matrix is not zero; empty where only densities are asked for.
    """

    shapes: Mapping[str, Shape]
    other: int
    masks: Mapping[str, Mask] = field(default_factory=dict)

    @classmethod
    def of(cls, weights: Mapping[str, ArrayLike], other: int) -> Storage:
        """From the weights themselves, which are taken as they are, with their zeros."""
        masks = {name: as_matrix(weight) != 0 for name, weight in weights.items()}
        shapes = {name: (mask.shape[0], mask.shape[1]) for name, mask in masks.items()}
        return cls(shapes, other, masks)

    def thinned(self, masks: Mapping[str, Mask]) -> Storage:
        """The same network with other zeros; masks by name, of the weights' shapes."""
        return replace(self, masks={name: as_matrix(mask) != 0 for name, mask in masks.items()})

    @property
    def size(self) -> int:
        """Weights in matrices."""
        return sum(rows * columns for rows, columns in self.shapes.values())

    @property
    def density(self) -> float:
        """Fraction of the weights that are not zero."""
        return sum(int(mask.sum()) for mask in self.masks.values()) / max(self.size, 1)

    def bytes(self, form: Format) -> float:
        """Exact bytes with the zeros that the weights have; every matrix takes whole bytes.

        Matrices that are not 2:4 are stored densely by ``TwoOfFour``; NaN if that is all of them.
        """
        sizes = [_matrix_bytes(form, mask) for mask in self.masks.values()]
        if isinstance(form, TwoOfFour) and not any(map(form.fits, self.masks.values())):
            return float("nan")
        return float(sum(sizes) + 4 * self.other)

    def expected_bytes(self, form: Format, density: float) -> float:
        """Mean bytes if every weight is non-zero with probability ``density``."""
        bits = sum(form.expected_bits(shape, density) for shape in self.shapes.values())
        return bits / 8 + 4 * self.other

    def curve(
        self, densities: Iterable[float], formats: Sequence[Format] = FORMATS
    ) -> pd.DataFrame:
        """Expected bytes: one row per density, one column per format."""
        import pandas as pd

        rows = {d: {form.name: self.expected_bytes(form, d) for form in formats} for d in densities}
        frame = pd.DataFrame.from_dict(rows, orient="index")
        frame.index.name = "density"
        return frame


def _matrix_bytes(form: Format, mask: Mask) -> int:
    if isinstance(form, TwoOfFour) and not form.fits(mask):
        form = Dense(form.name, form.values)
    return -(-form.bits(mask) // 8)
