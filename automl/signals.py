"""Ctrl-C, SIGTERM and SIGHUP as exceptions, so that locks and files are in order; a second ends.

Nothing depends on it: whatever is on the disk is whole at any moment, and a process that is killed
outright loses no finished trial. It is for the line that says how to go on.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP: a scheduler, a shutdown or a closed terminal wants this process to end.

    Args:
        number: Of the signal.
    """

    def __init__(self, number: int = signal.SIGTERM) -> None:
        """Keeps the number."""
        super().__init__(number)
        self.number = number


def exit_code(stop: KeyboardInterrupt) -> int:
    """The code that shells give a process which ended by this signal: 130, 143 or 129."""
    return 128 + (stop.number if isinstance(stop, Terminated) else signal.SIGINT)


def word(stop: KeyboardInterrupt) -> str:
    """``interrupted`` or ``terminated``."""
    return "terminated" if isinstance(stop, Terminated) else "interrupted"


def behind(error: BaseException) -> KeyboardInterrupt | None:
    """The signal that an error is due to: raised while that one was on its way out."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, KeyboardInterrupt):
        seen = seen.__cause__ if seen.__suppress_context__ else seen.__context__
    return seen


@contextmanager
def as_exceptions() -> Iterator[None]:
    """Within it, the first signal raises ``KeyboardInterrupt`` and the second ends the process.

    Signals that are ignored (as under ``nohup``) or handled by someone else are left alone, and so
    is everything outside of the main thread.
    """
    replaced = {}
    if threading.current_thread() is threading.main_thread():
        usual = (signal.SIG_DFL, signal.default_int_handler)
        for number in _SIGNALS:
            if signal.getsignal(number) in usual:
                replaced[number] = signal.signal(number, _first)
    try:
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)


def _first(number: int, _frame: FrameType | None) -> NoReturn:
    for other in _SIGNALS:
        if signal.getsignal(other) is _first:
            signal.signal(other, _second)
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)


def _second(number: int, _frame: FrameType | None) -> NoReturn:
    # No print(): the first signal may have come in the middle of one.
    os.write(2, b"\nprunepilot: stopped at once; what is finished is on the disk\n")
    os._exit(128 + number)
