"""Latency as a cost: measured operators, summed, and calibrated on whole networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from automl.cost.lut.operators import Operators
from automl.cost.lut.signature import Signature
from automl.types import Kept, Resource

Floats = NDArray[np.float64]


class Times(Protocol):
    """Where times of operators come from."""

    def times_us(self, signatures: Sequence[Signature]) -> Floats:
        """Median times in microseconds, shape (signatures,), each signature once.

        Raises:
            InputError: One is not known and cannot be measured.
        """


class LatencySum:
    """Summed times of the operators of slim networks.

    Looked up in arrays: only signatures that were never asked for cost more than arithmetic.
    """

    def __init__(self, operators: Operators, times: Times) -> None:
        """Asks for nothing yet."""
        self.operators = operators
        self._times = times
        self._keys = np.zeros(0, np.uint64)
        self._values = np.zeros(0)

    def __call__(self, kept: Kept) -> Floats:
        """Milliseconds; batched: (..., targets) gives (...).

        Raises:
            InputError: An operator is not in the table and cannot be measured.
        """
        return np.asarray(self.each_us(kept).sum(-1) / 1e3, np.float64)

    def each_us(self, kept: Kept) -> Floats:
        """Microseconds of every operator; (..., targets) gives (..., operators).

        Raises:
            InputError: An operator is not in the table and cannot be measured.
        """
        kept = np.asarray(kept, np.int64)
        keys = self.operators.keys(kept)
        places, known = self._find(keys)
        if not known.all():
            # By its shape: where no channels can go, there is nothing to divide by.
            rows = kept.reshape(math.prod(kept.shape[:-1]), kept.shape[-1])
            self._learn(rows, keys, known)
            places, _ = self._find(keys)
        return np.asarray(self._values[places], np.float64)

    @property
    def frozen_ms(self) -> float:
        """The operators that no pruning changes."""
        frozen = self.operators.frozen
        times = dict.fromkeys(frozen, 0.0)
        times.update(zip(times, self._times.times_us(list(times)).tolist(), strict=True))
        return sum(times[signature] for signature in frozen) / 1e3

    def _find(self, keys: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Where keys stand, and which do."""
        if not len(self._keys):
            return np.zeros(keys.shape, np.int64), np.zeros(keys.shape, np.bool_)
        places = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return places, self._keys[places] == keys

    def _learn(self, kept: Kept, keys: NDArray[np.uint64], known: NDArray[np.bool_]) -> None:
        """Asks for the times behind unknown keys; ``kept`` has shape (networks, targets)."""
        missing, first = np.unique(keys[~known], return_index=True)
        cells = np.argwhere(~known.reshape(len(kept), -1))[first]
        lengths = self.operators.plan.lengths(kept)
        rows = {row: lengths[row].tolist() for row in set(cells[:, 0].tolist())}
        ops = self.operators.operators
        # In network order, so that what is measured is measured in the order of use.
        order = np.lexsort((cells[:, 0], cells[:, 1]))
        wanted = [ops[column].at(rows[row]) for row, column in cells[order].tolist()]
        distinct = list(dict.fromkeys(wanted))
        times = dict(zip(distinct, self._times.times_us(distinct).tolist(), strict=True))
        keys_now = np.concatenate([self._keys, missing[order]])
        values_now = np.concatenate([self._values, [times[signature] for signature in wanted]])
        sort = np.argsort(keys_now)
        self._keys, self._values = keys_now[sort], values_now[sort]


class Sum(Protocol):
    """Summed times of operators: :class:`LatencySum`, or that of networks with packed weights."""

    @property
    def frozen_ms(self) -> float:
        """The operators that no pruning changes."""

    def __call__(self, kept: Kept) -> Floats:
        """Milliseconds; batched: (..., targets) gives (...)."""


class LatencyCost:
    """Predicted latency of one pass; a cost model like any other, but not monotone.

    One channel more may be faster (31 channels take longer than 32 on many devices), so budgets
    are met, but a larger network within them may be missed (see ``automl.fitting``).
    """

    resource: ClassVar[Resource] = "latency_ms"

    def __init__(self, total: Sum, slope: float = 1.0, offset_ms: float = 0.0) -> None:
        """Joins sums and calibration; without one, the sum itself is the prediction.

        Args:
            total: Sums of operators.
            slope: What a millisecond of operators takes.
            offset_ms: What a pass takes besides.
        """
        self.total = total
        self.slope, self.offset_ms = slope, offset_ms

    def __call__(self, kept: Kept) -> Floats:
        """Milliseconds; batched: (..., targets) gives (...).

        Raises:
            InputError: An operator is not in the table and cannot be measured.
        """
        return self.slope * self.total(kept) + self.offset_ms

    @property
    def frozen_ms(self) -> float:
        """The part that no pruning changes."""
        return self.slope * self.total.frozen_ms + self.offset_ms
