"""What engines say in the same words."""

from __future__ import annotations

import re
import sysconfig
import traceback
from collections.abc import Collection
from pathlib import Path

from automl.types import InputError

_FRAME = re.compile(r'^ *File "(.+)", line (\d+)', re.MULTILINE)
_OWN = f"{Path(__file__).resolve().parents[1]}/"
_STDLIB = f"{sysconfig.get_path('stdlib')}/"


def one_line(error: BaseException) -> str:
    """The exception's type and message, without line breaks."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def place_of(error: BaseException | str) -> str:
    """Where in the user's own code an error was raised, such as `` (nets.py, line 3)``.

    Args:
        error: The error, or its traceback as text.

    Returns:
        In brackets, behind a space; empty where no code but that of libraries was running.
    """
    text = error if isinstance(error, str) else "".join(traceback.format_exception(error))
    found = [(file, line) for file, line in _FRAME.findall(text) if not _is_of_a_library(file)]
    return f" ({found[-1][0]}, line {found[-1][1]})" if found else ""


def _is_of_a_library(file: str) -> bool:
    return file.startswith((_OWN, _STDLIB, "<")) or "-packages/" in file


def require_open(engine: object, closed: bool) -> None:
    """Refuses a closed engine.

    Raises:
        RuntimeError: It is closed.
    """
    if closed:
        raise RuntimeError(f"{type(engine).__name__} is closed; make a new engine")


def require_handle(engine: object, handle: int, known: Collection[int]) -> None:
    """Refuses a handle that the engine did not give out.

    Raises:
        ValueError: It is not among ``known``.
    """
    if handle not in known:
        owner = type(engine).__name__
        raise ValueError(f"{owner}.submit: handle must be one that put returned, got {handle!r}")


def cannot_send(what: str, error: BaseException) -> InputError:
    """The error for data that cannot be pickled."""
    return InputError(
        f"{what} cannot be sent to another process ({one_line(error)}); "
        "leave open files, locks and the like out of it, or choose engine=serial"
    )


def lost(reason: str, attempts: int) -> str:
    """The error of an item whose processes were lost.

    Args:
        reason: What happened to the last one.
        attempts: How many there were.
    """
    times = "" if attempts == 1 else f" (tried {attempts} times)"
    return f"WorkerLost: {reason}{times}"


def too_slow(timeout_s: float) -> str:
    """The reason why an item's process was ended."""
    return f"no result within {timeout_s:g} s; engine.timeout_s allows more"
