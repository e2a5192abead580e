"""The command as a person starts it, and a search small enough for a test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

#: A real search on the digits, small enough for a test.
SEARCH = (
    "search", "model=digits", "data=digits", "strategy=random", "budget.macs=0.5", "trials=12",
    "seed=3", "threads=1", "device=cpu",
    "repair.calibration_images=64", "repair.refine=null", "latency_budget_s=0.05",
)  # fmt: skip


@dataclass(frozen=True)
class Result:
    """What a call of the command did."""

    code: int
    out: str
    err: str


def start(*arguments: object, cwd: Path | None = None) -> subprocess.Popen[str]:
    """Starts the command in a process of its own, with its output piped."""
    return subprocess.Popen(
        [sys.executable, "-m", "automl.cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        # Test runners in the background may hand down an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for_trials(journal: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Returns as soon as the journal holds so many lines.

    Raises:
        AssertionError: The process ended, or a minute passed, before it did.
    """
    end = time.monotonic() + 60
    while not journal.exists() or journal.read_bytes().count(b"\n") < count:
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            raise AssertionError(f"no {count} trials: {process.communicate()}")
        time.sleep(0.002)
