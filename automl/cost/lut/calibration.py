"""From sums of operators to whole networks, and how far that can be trusted.

A network takes ``slope * sum + offset``: the offset is what every forward pass costs besides its
operators (the interpreter, modules calling modules), the slope what operators cost more, or less,
among their neighbours than alone. Both are fitted to whole networks that were measured, and
checked on fresh ones that took no part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from automl.types import InputError, Kept

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Check:
    """Predictions beside measurements of the same networks, the dense one first.

    Attributes:
        predicted_ms: Predicted latencies, as of the calibration.
        measured_ms: Measured latencies.
        slowdown: How many times as long networks take as when the table was calibrated: the speed
            of shared machines changes from minute to minute.
    """

    predicted_ms: tuple[float, ...]
    measured_ms: tuple[float, ...]
    slowdown: float = 1.0

    def __post_init__(self) -> None:
        """Checks the numbers.

        Raises:
            ValueError: There are fewer than two networks, or a number is not positive.
        """
        if len(self.predicted_ms) != len(self.measured_ms) or len(self.measured_ms) < 2:
            raise ValueError(f"Check.measured_ms must be >= 2 pairs, got {self.measured_ms}")
        if not all(0 < value < float("inf") for value in (*self.measured_ms, self.slowdown)):
            raise ValueError(f"Check.measured_ms must be positive, got {self.measured_ms}")

    @property
    def errors(self) -> Floats:
        """Relative error of each prediction at the machine's present speed, signed."""
        predicted = np.array(self.predicted_ms) * self.slowdown
        return np.asarray(predicted / np.array(self.measured_ms) - 1)

    @property
    def mape(self) -> float:
        """Mean absolute relative error at the present speed, the dense network left out."""
        return float(np.abs(self.errors[1:]).mean())

    @property
    def mape_as_calibrated(self) -> float:
        """The same without allowance for the machine's speed."""
        errors = np.array(self.predicted_ms) / np.array(self.measured_ms) - 1
        return float(np.abs(errors[1:]).mean())

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
        speed = ""
        if abs(self.slowdown - 1) >= 0.005:
            speed = (
                f"; the machine takes {self.slowdown:.3f} times as long as when calibrated "
                f"(MAPE {100 * self.mape_as_calibrated:.1f} % without allowance for that)"
            )
        return (
            f"MAPE {100 * self.mape:.1f} % (worst {100 * self.worst:.1f} %), "
            f"Spearman rho {self.rho:.3f}, error of the ratio to dense "
            f"{100 * self.ratio_error:.1f} points, {len(self.measured_ms) - 1} networks{speed}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data; :meth:`from_dict` reads it back."""
        return {
            "predicted_ms": list(self.predicted_ms),
            "measured_ms": list(self.measured_ms),
            "slowdown": self.slowdown,
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Check:
        """Reads what :meth:`to_dict` wrote.

        Raises:
            KeyError, TypeError, ValueError: It is something else.
        """
        names = ("predicted_ms", "measured_ms")
        times = [tuple(float(v) for v in document[name]) for name in names]
        return cls(times[0], times[1], float(document["slowdown"]))


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
        kept: Their kept counts, the dense one's first.
        held_out: Fresh networks it was last checked on.
        date: UTC day, ISO 8601.
    """

    slope: float
    offset_ms: float
    fitted: Check
    kept: tuple[tuple[int, ...], ...]
    held_out: Check
    date: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data; :meth:`from_dict` reads it back."""
        return {
            "slope": self.slope,
            "offset_ms": self.offset_ms,
            "fitted": self.fitted.to_dict(),
            "kept": [list(counts) for counts in self.kept],
            "held_out": self.held_out.to_dict(),
            "date": self.date,
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Calibration:
        """Reads what :meth:`to_dict` wrote.

        Raises:
            InputError: It is something else.
        """
        try:
            return cls(
                slope=float(document["slope"]),
                offset_ms=float(document["offset_ms"]),
                fitted=Check.from_dict(document["fitted"]),
                kept=tuple(tuple(int(n) for n in counts) for counts in document["kept"]),
                held_out=Check.from_dict(document["held_out"]),
                date=str(document["date"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"the table's calibration is not readable: {error!r}") from error


def fit(sums_ms: Floats, measured_ms: Floats) -> tuple[float, float]:
    """Slope and offset by least squares on relative errors.

    Args:
        sums_ms: Sums of the operators of each network, shape (networks,).
        measured_ms: Their measured latencies.

    Raises:
        InputError: The measurements do not grow with the sums, so that nothing can be predicted.
    """
    # Divided by the measurements: an error of a tenth weighs alike for small and large networks.
    columns = np.stack([sums_ms, np.ones_like(sums_ms)], axis=1) / measured_ms[:, None]
    (slope, offset), *_ = np.linalg.lstsq(columns, np.ones_like(sums_ms), rcond=None)
    if not slope > 0:
        raise InputError(
            "latencies of whole networks do not grow with those of their operators: "
            "measure again on a quiet machine"
        )
    return round(float(slope), 6), round(float(offset), 6)


def calibrate(
    kept: Kept, sums_ms: Floats, measured_ms: Floats, seen: int, date: str = ""
) -> Calibration:
    """Fits to the first networks and checks on the others.

    Args:
        kept: Kept counts of each network, the dense one first, shape (networks, targets).
        sums_ms: Sums of their operators, shape (networks,).
        measured_ms: Their latencies, measured side by side.
        seen: So many, from the first, are fitted to.
        date: Kept beside.

    Raises:
        InputError: See :func:`fit`.
    """
    slope, offset = fit(sums_ms[:seen], measured_ms[:seen])
    predicted = slope * sums_ms + offset
    fresh = np.r_[0, seen : len(sums_ms)]
    fitted = compare(predicted[:seen], measured_ms[:seen])
    held_out = compare(predicted[fresh], measured_ms[fresh])
    counts = tuple(map(tuple, kept[:seen].tolist()))
    return Calibration(slope, offset, fitted, counts, held_out, date)


def compare(predicted_ms: Floats, measured_ms: Floats, slowdown: float = 1.0) -> Check:
    """Predictions beside measurements, to a nanosecond; see :class:`Check`."""
    times = [tuple(np.round(values, 6).tolist()) for values in (predicted_ms, measured_ms)]
    return Check(times[0], times[1], round(slowdown, 6))
