"""What a table says of one signature."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Entry:
    """Time of one operator, undisturbed.

    What else a machine does can slow a run down, never speed it up, and on shared machines it does
    so for seconds on end; so only the faster half of the runs counts.

    Attributes:
        count: How many runs it stands on: half of those made.
        median_us: Median wall time, microseconds.
        iqr_us: Distance between the quartiles of the wall times.
        cpu_us: Median CPU time of the calling thread; 0 where it says nothing (several threads,
            CUDA, tables of others).
    """

    count: int
    median_us: float
    iqr_us: float
    cpu_us: float = 0.0

    @classmethod
    def of(cls, wall_us: NDArray[np.float64], cpu_us: NDArray[np.float64] | None) -> Entry:
        """Sums up all runs of one operator.

        Args:
            wall_us: Wall times, shape (runs,).
            cpu_us: CPU times of the same runs, None where they say nothing.
        """
        faster = np.argsort(wall_us, kind="stable")[: (len(wall_us) + 1) // 2]
        low, middle, high = np.percentile(wall_us[faster], (25, 50, 75))
        cpu = 0.0 if cpu_us is None else float(np.median(cpu_us[faster]))
        return cls(len(faster), _short(middle), _short(high - low), _short(cpu))

    @property
    def spread(self) -> float:
        """Interquartile range as a share of the median."""
        return self.iqr_us / self.median_us if self.median_us > 0 else 0.0

    @property
    def waited(self) -> float:
        """Share of the wall time in which the thread did not run; 0 where that is not known."""
        if self.cpu_us <= 0 or self.median_us <= 0:
            return 0.0
        return max(0.0, 1 - self.cpu_us / self.median_us)


def _short(value: float) -> float:
    return round(float(value), 3)
