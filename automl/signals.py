"""Ctrl-C, SIGTERM and SIGHUP as exceptions, so that locks and files are in order; a second ends.

Python drops an exception that is raised while a finaliser or a callback of a weak reference runs.
One that a signal raised there is raised again a moment later. Some code makes another error of it,
which is then taken for what it is.

Nothing depends on it: whatever is on the disk is whole at any moment, and a process that is killed
outright loses no finished trial. It is for the line that says how to go on.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)

#: Seconds until a signal that was dropped is raised again: until its finaliser has ended.
_AGAIN_S = 0.01


class _State:
    """Of this process.

    Attributes:
        raised: The signal that ``as_exceptions`` has raised since it was entered.
    """

    raised: int | None = None


_state = _State()


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
    """The signal that an error is due to: raised while that one was on its way out, or after it."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, KeyboardInterrupt):
        seen = seen.__cause__ if seen.__suppress_context__ else seen.__context__
    return _exception(_state.raised) if seen is None and _state.raised is not None else seen


@contextmanager
def unmasked() -> Iterator[None]:
    """Errors from within that are due to a signal become its ``KeyboardInterrupt``."""
    try:
        yield
    except Exception as error:
        stop = behind(error)
        if stop is None:
            raise
        raise stop from error


@contextmanager
def as_exceptions() -> Iterator[None]:
    """Within it, the first signal raises ``KeyboardInterrupt`` and the second ends the process.

    Signals that are ignored (as under ``nohup``) or handled by someone else are left alone, and so
    is everything outside of the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = (signal.SIG_DFL, signal.default_int_handler)
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    replaced = {number: handler for number, handler in before.items() if handler in usual}
    hook = sys.unraisablehook
    try:
        for number in replaced:
            signal.signal(number, _first)
        if replaced:
            _state.raised = None
            sys.unraisablehook = lambda dropped: _raise_again(dropped, hook)
        yield
    finally:
        if replaced:
            sys.unraisablehook = hook
            _state.raised = None
        for number, handler in replaced.items():
            signal.signal(number, handler)


def _raise_again(dropped: Any, hook: Any) -> None:
    """Sends a signal again whose exception Python could not raise; all else is for the hook."""
    stop = dropped.exc_value
    ours = [number for number in _SIGNALS if signal.getsignal(number) in (_first, _second)]
    if not isinstance(stop, KeyboardInterrupt) or not ours:
        hook(dropped)
        return
    for number in ours:
        signal.signal(number, _first)
    again = threading.Timer(_AGAIN_S, _send_again, (exit_code(stop) - 128,))
    again.daemon = True
    again.start()


def _send_again(number: int) -> None:
    main = threading.main_thread().ident
    if main is not None and signal.getsignal(number) is _first:  # or else the command has ended
        signal.pthread_kill(main, number)  # to that thread, so that it wakes up if it waits


def _first(number: int, _frame: FrameType | None) -> NoReturn:
    for other in _SIGNALS:
        if signal.getsignal(other) is _first:
            signal.signal(other, _second)
    _state.raised = number
    raise _exception(number)


def _exception(number: int) -> KeyboardInterrupt:
    return KeyboardInterrupt() if number == signal.SIGINT else Terminated(number)


def _second(number: int, _frame: FrameType | None) -> NoReturn:
    # No print(): the first signal may have come in the middle of one.
    os.write(2, b"\nprunepilot: stopped at once; what is finished is on the disk\n")
    os._exit(128 + number)
