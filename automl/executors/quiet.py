"""Whether anything else keeps this machine busy, so that times mean something."""

from __future__ import annotations

import os
import time
from pathlib import Path

from automl.types import InputError

#: Cores that others may keep busy: what a desktop or a monitoring agent takes.
MOST_CORES = 0.2
_LOOK_S = 0.4
_STAT = Path("/proc/stat")


def busy_cores(seconds: float = _LOOK_S, stat: Path = _STAT) -> float | None:
    """How many cores other processes, or other guests of the host, keep busy.

    Args:
        seconds: How long to look; this process sleeps meanwhile.
        stat: Where the system counts.

    Returns:
        Cores, or None where the system does not tell.
    """
    before = _ticks(stat)
    time.sleep(seconds)
    after = _ticks(stat)
    if before is None or after is None:
        return None
    used = after - before
    return max(0.0, used / (seconds * os.sysconf("SC_CLK_TCK")))


def _ticks(stat: Path) -> int | None:
    """Clock ticks of all cores that were not idle since the system started."""
    try:
        words = stat.read_text(encoding="utf-8").split("\n", 1)[0].split()
        counts = [int(word) for word in words[1:9]]
    except (OSError, ValueError):
        return None
    # user, nice, system, idle, iowait, irq, softirq, steal
    return sum(counts) - counts[3] - counts[4] if len(counts) == 8 else None


def require_quiet(wait_s: float = 0.0, stat: Path = _STAT) -> None:
    """Returns once the machine is quiet.

    Args:
        wait_s: How long to wait for it.
        stat: See :func:`busy_cores`.

    Raises:
        InputError: It is not, even after waiting.
    """
    end = time.monotonic() + wait_s
    while True:
        busy = busy_cores(stat=stat)
        if busy is None or busy <= MOST_CORES:
            return
        if time.monotonic() >= end:
            raise InputError(
                f"this machine is not quiet: other work keeps {busy:.1f} cores busy, and times "
                "measured beside it would be wrong; stop it, wait for it with latency.wait_s=600, "
                "or measure all the same with latency.allow_busy=true"
            )
        time.sleep(1.0)
