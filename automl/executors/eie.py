"""EIE's storage: 4-bit distances and 4-bit shared weights by columns, dealt out to elements.

S. Han et al., "EIE: Efficient inference engine on compressed deep neural network" (arXiv
1602.01528), section III: rows are dealt out to N processing elements in turn, element k holding
rows k, k + N, ... Each stores its part by columns. An entry is the number of zeros between it and
the one before it in the column (4 bits), and a code into 16 shared weights (4 bits); where there
are more than 15 zeros an entry with the code of zero is put in, and counting starts again. Each
element has pointers of its own to where its columns start.

Deviations: a pointer has 32 bits here, not 16, so that one element may hold a whole layer; shared
weights and activations are float32, not 16-bit fixed point (``EieModel`` counts the paper's bits).
On a CPU one element is fastest: there is nothing to run beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from automl.executors.csc import active
from automl.executors.kernels.csc import eie, encode
from automl.executors.packed import FiniteLinear
from automl.executors.rows import Float32, Rows, as_bias, as_finite, as_weight
from automl.executors.shared_weights import share


@dataclass(frozen=True, eq=False)
class EieLinear(FiniteLinear):
    """A packed layer.

    Attributes:
        elements: Processing elements that rows are dealt out to.
        starts: First entry of every column of every element and the end, shape
            (elements, in_features + 1); positions in ``entries``.
        entries: Zeros before it (upper 4 bits) and code (lower 4 bits), all elements.
        codebook: What codes stand for, zero at code 0, shape (16).
    """

    elements: int
    starts: NDArray[np.int32]
    entries: NDArray[np.uint8]
    codebook: Float32

    kind: ClassVar[str] = "eie"

    @property
    def name(self) -> str:
        """See ``PackedLinear``."""
        return "eie"

    def rows_of(self, element: int) -> range:
        """Rows that an element computes."""
        return range(element, self.out_features, self.elements)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Entries of every column of every element, shape (elements, in_features)."""
        return self.starts[:, 1:].astype(np.int64) - self.starts[:, :-1]

    @property
    def padding(self) -> int:
        """Entries that only carry on a distance."""
        return int(np.count_nonzero((self.entries & 15) == 0))

    def column(self, element: int, column: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """Rows (counted within the element) and codes of a column's entries, padding included."""
        part = self.entries[self.starts[element, column] : self.starts[element, column + 1]]
        return np.cumsum((part >> 4).astype(np.int64) + 1) - 1, part & np.uint8(15)

    def to_dense(self) -> Float32:
        """See ``PackedLinear``."""
        dense = np.zeros((self.out_features, self.in_features), np.float32)
        step = (self.entries >> 4).astype(np.int64) + 1
        passed = np.concatenate([[0], np.cumsum(step)])
        for element in range(self.elements):
            first, last = self.starts[element, 0], self.starts[element, -1]
            columns = np.repeat(np.arange(self.in_features), self.counts[element])
            rows = passed[first + 1 : last + 1] - passed[self.starts[element]][columns] - 1
            codes = self.entries[first:last] & 15
            used = codes != 0
            rows = element + self.elements * rows[used]
            dense[rows, columns[used]] = self.codebook[codes[used]]
        return dense

    def multiply(self, x: Float32) -> Float32:
        """See ``FiniteLinear``."""
        columns, values, count = active(x)
        height = -(-self.out_features // self.elements)
        sums = np.zeros(self.elements * height, np.float32)
        for element, starts in enumerate(self.starts):
            eie(
                columns, values, count, starts, self.entries, self.codebook,
                element * height, sums,
            )  # fmt: skip
        y: Float32 = sums.reshape(self.elements, height).T.reshape(-1)[: self.out_features]
        return y + self.bias


@dataclass(frozen=True, slots=True)
class Eie:
    """The format's settings.

    Attributes:
        elements: Processing elements that rows are dealt out to.
    """

    elements: int = 1

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
            ValueError: There is no element.
        """
        if self.elements < 1:
            raise ValueError(f"Eie.elements must be at least 1, got {self.elements}")

    @property
    def name(self) -> str:
        """See ``Format``."""
        return "eie"

    def unfit(self, weight: ArrayLike) -> str | None:
        """See ``Format``."""
        finite = np.isfinite(np.asarray(weight)).all()
        return None if finite else "holds NaN or infinite weights"

    def pack(self, weight: ArrayLike, bias: ArrayLike | None = None) -> EieLinear:
        """See ``Format``."""
        matrix = as_finite(as_weight(weight), "a codebook")
        codes = np.zeros(matrix.shape, np.uint8)
        codes[matrix != 0], codebook = share(matrix[matrix != 0])
        return self.pack_codes(codes, codebook, bias)

    def pack_codes(
        self, codes: NDArray[np.uint8], codebook: Float32, bias: ArrayLike | None = None
    ) -> EieLinear:
        """Packs a layer whose weights are shared already.

        Args:
            codes: Shape (out_features, in_features), 0 to 15.
            codebook: Shape (16), zero at code 0.
            bias: Shape (out_features).
        """
        out_features, in_features = codes.shape
        starts = np.zeros((self.elements, in_features + 1), np.int32)
        parts, total = [], 0
        for element in range(self.elements):
            own = np.ascontiguousarray(codes[element :: self.elements].T)
            entries, first = _encode(own)
            starts[element] = first + total
            total += len(entries)
            parts.append(entries)
        return EieLinear(
            in_features=in_features,
            bias=as_bias(bias, out_features),
            elements=self.elements,
            starts=starts,
            entries=np.concatenate(parts),
            codebook=np.asarray(codebook, np.float32),
        )


def _encode(codes: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Entries and starts of columns, given the codes by columns: (in_features, rows)."""
    columns = Rows.of(codes)  # type: ignore[arg-type]  # Codes are "not zero" as weights are.
    most = len(columns.values) + codes.shape[0] * (codes.shape[1] // 16)
    entries, starts = np.empty(most, np.uint8), np.zeros(codes.shape[0] + 1, np.int64)
    count = encode(columns.starts, columns.columns, columns.values, entries, starts)
    return entries[:count].copy(), starts
