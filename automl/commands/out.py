"""Whether results can be written where ``--out`` says: asked before anything takes time."""

from __future__ import annotations

from pathlib import Path

from automl.paths import why_not_writable
from automl.types import InputError


def check_new_folder(out: Path, name: str = "--out") -> None:
    """Refuses a folder that holds something, or that cannot be made.

    Args:
        out: The folder.
        name: The option or setting that it was given by.

    Raises:
        InputError: It is one of these.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{name} {out} is there already; choose a new folder")
    if (reason := why_not_writable(out)) is not None:
        raise InputError(f"{name} {out} cannot be made: {reason}")


def check_folder(out: Path, name: str = "--out") -> None:
    """Refuses a folder, there or not, that nothing can be written into.

    Args:
        out: The folder.
        name: The option or setting that it was given by.

    Raises:
        InputError: It is a file, or cannot be made or written into.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{name} {out} is a file; name a folder")
    if (reason := why_not_writable(out)) is not None:
        raise InputError(f"{name} {out} cannot be written into: {reason}")


def check_file(out: Path, *, new: bool = False) -> None:
    """Refuses a file that cannot be written.

    Args:
        out: The file.
        new: Whether it must not be there yet.

    Raises:
        InputError: It cannot be written, or is there already.
    """
    if new and out.exists():
        raise InputError(f"--out {out} is there already; choose another file")
    if (reason := why_not_writable(out)) is not None:
        raise InputError(f"--out {out} cannot be written: {reason}")
