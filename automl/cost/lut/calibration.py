"""From sums of operators to whole networks, and how far that can be trusted.

A network takes ``slope * sum + offset``: the offset is what every forward pass costs besides its
operators (the interpreter, modules calling modules), the slope what operators cost more, or less,
among their neighbours than alone. Both are fitted to whole networks that were measured, and
checked on fresh ones that took no part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from automl.types import InputError

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Check:
    """Predictions beside measurements of the same networks, the dense one first.

    Attributes:
        predicted_ms: Predicted latencies.
        measured_ms: Measured latencies.
    """

    predicted_ms: tuple[float, ...]
    measured_ms: tuple[float, ...]

    def __post_init__(self) -> None:
        """Checks the numbers.

        Raises:
            ValueError: There are fewer than two networks, or a measurement is not positive.
        """
        if len(self.predicted_ms) != len(self.measured_ms) or len(self.measured_ms) < 2:
            raise ValueError(f"Check.measured_ms must be >= 2 pairs, got {self.measured_ms}")
        if not all(0 < value < float("inf") for value in self.measured_ms):
            raise ValueError(f"Check.measured_ms must be positive, got {self.measured_ms}")

    @property
    def errors(self) -> Floats:
        """Relative error of each prediction, signed."""
        return np.array(self.predicted_ms) / np.array(self.measured_ms) - 1

    @property
    def mape(self) -> float:
        """Mean absolute relative error, the dense network left out."""
        return float(np.abs(self.errors[1:]).mean())

    @property
    def worst(self) -> float:
        """Largest absolute relative error, the dense network left out."""
        return float(np.abs(self.errors[1:]).max())

    @property
    def rho(self) -> float:
        """Spearman's rank correlation, the dense network included; 0 where all are equal."""
        ranks = [_ranks(np.array(v)) for v in (self.predicted_ms, self.measured_ms)]
        spread = [rank.std() for rank in ranks]
        if min(spread) == 0:
            return 0.0
        centred = [rank - rank.mean() for rank in ranks]
        return float((centred[0] * centred[1]).mean() / (spread[0] * spread[1]))

    @property
    def ratio_error(self) -> float:
        """Mean absolute error of the latency as a fraction of dense: .02 is two points."""
        ratios = [np.array(v)[1:] / v[0] for v in (self.predicted_ms, self.measured_ms)]
        return float(np.abs(ratios[0] - ratios[1]).mean())

    def __str__(self) -> str:
        """One line of figures."""
        return (
            f"MAPE {100 * self.mape:.1f} % (worst {100 * self.worst:.1f} %), "
            f"Spearman rho {self.rho:.3f}, error of the ratio to dense "
            f"{100 * self.ratio_error:.1f} points, {len(self.measured_ms) - 1} networks"
        )

    def to_dict(self) -> dict[str, list[float]]:
        """Plain data."""
        return {"predicted_ms": list(self.predicted_ms), "measured_ms": list(self.measured_ms)}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Check:
        """Reads what :meth:`to_dict` wrote."""
        names = ("predicted_ms", "measured_ms")
        return cls(*(tuple(float(v) for v in document[name]) for name in names))


def _ranks(values: Floats) -> Floats:
    """Ranks from 0, ties shared."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    first = np.cumsum(counts) - counts
    return np.asarray((first + (counts - 1) / 2)[inverse], np.float64)


@dataclass(frozen=True, slots=True)
class Calibration:
    """How the sum of a network's operators becomes its latency.

    Attributes:
        slope: What a millisecond of operators takes.
        offset_ms: What a pass takes besides.
        fitted: The networks it was fitted to.
        held_out: Fresh networks it was checked on; None before ``lut check``.
        date: UTC day, ISO 8601.
    """

    slope: float
    offset_ms: float
    fitted: Check
    held_out: Check | None = None
    date: str = ""

    def predict(self, sums_ms: Floats) -> Floats:
        """Latencies of networks whose operators take ``sums_ms`` together."""
        return np.asarray(self.slope * sums_ms + self.offset_ms, np.float64)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; :meth:`from_dict` reads it back."""
        return {
            "slope": self.slope,
            "offset_ms": self.offset_ms,
            "fitted": self.fitted.to_dict(),
            "held_out": None if self.held_out is None else self.held_out.to_dict(),
            "date": self.date,
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Calibration:
        """Reads what :meth:`to_dict` wrote.

        Raises:
            InputError: It is something else.
        """
        try:
            held_out = document["held_out"]
            return cls(
                slope=float(document["slope"]),
                offset_ms=float(document["offset_ms"]),
                fitted=Check.from_dict(document["fitted"]),
                held_out=None if held_out is None else Check.from_dict(held_out),
                date=str(document["date"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"the table's calibration is not readable: {error!r}") from error


def calibrate(
    sums_ms: Sequence[float], measured_ms: Sequence[float], date: str = ""
) -> Calibration:
    """Fits slope and offset by least squares on relative errors.

    Args:
        sums_ms: Sums of the operators of each network, the dense one first, shape (networks,).
        measured_ms: Their measured latencies.
        date: Kept beside.

    Raises:
        InputError: The measurements do not grow with the sums, so that nothing can be predicted.
    """
    sums, measured = np.asarray(sums_ms, np.float64), np.asarray(measured_ms, np.float64)
    # Divided by the measurements: an error of a tenth weighs alike for small and large networks.
    columns = np.stack([sums, np.ones_like(sums)], axis=1) / measured[:, None]
    (slope, offset), *_ = np.linalg.lstsq(columns, np.ones_like(sums), rcond=None)
    if not slope > 0:
        raise InputError(
            "latencies of whole networks do not grow with those of their operators: "
            "measure again on a quiet machine"
        )
    predicted = slope * sums + offset
    fitted = Check(tuple(predicted.tolist()), tuple(measured.tolist()))
    return Calibration(round(float(slope), 6), round(float(offset), 6), fitted, None, date)
