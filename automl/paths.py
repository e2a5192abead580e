"""Where the package's own files lie, and how files are written whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def conf_dir() -> Path:
    """The directory of Hydra groups: ``automl/conf`` in a wheel, ``conf/`` in a checkout."""
    return _data_dir("conf")


def lut_dir() -> Path:
    """The directory of measured tables: ``automl/lut`` in a wheel, ``lut/`` in a checkout."""
    return _data_dir("lut")


def _data_dir(name: str) -> Path:
    installed = _PACKAGE / name
    return installed if installed.is_dir() else _PACKAGE.parent / name


def cache_dir() -> Path:
    """Where what is measured once per machine lies: ``PRUNEPILOT_CACHE``, or the user's cache."""
    given = os.environ.get("PRUNEPILOT_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(base) / "prunepilot"


def why_not_writable(path: Path) -> str | None:
    """Why nothing can be written at a path, in the system's words; None where it can be.

    To be asked before what takes long, which would be lost. It is tried: there are places, such as
    below /proc, that only look writable. Nothing is left of the trial.

    Args:
        path: A file or folder, there or not; folders above it may be missing, too.
    """
    whole = path.absolute()
    places = (whole, *whole.parents)
    try:
        there = next(place for place in places if place.exists())
        if not there.is_dir():
            if there != whole:
                return os.strerror(errno.ENOTDIR)
            effective = os.access in os.supports_effective_ids
            if not os.access(there, os.W_OK, effective_ids=effective):
                return os.strerror(errno.EACCES)
            there = there.parent  # a file is replaced by a new one beside it
        missing = places[places.index(there) - 1] if there != whole else there
        # By its own name, which the file system may not take, where that is still free.
        probe = missing if not missing.exists() else _sibling(there / "probe")
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        return error.strerror
    return None


def _sibling(path: Path) -> Path:
    """A new name beside a path, for what is not whole yet."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to write into that becomes ``path`` at the end, whole or not at all.

    An empty folder that is there already stays the same folder, as somebody may stand in it: the
    files move into it one by one.

    Args:
        path: A folder that is not there yet, or an empty one; those above it are made.

    Raises:
        OSError: Something cannot be written; it names the place below ``path``.
    """
    named, path = path, path.absolute()
    is_there = path.is_dir()
    partial = _sibling(path / path.name if is_there else path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        yield partial
        if is_there:
            for file in partial.iterdir():
                os.replace(file, path / file.name)
            partial.rmdir()
        else:
            os.replace(partial, path)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError) and isinstance(error.filename, str):
            error.filename = error.filename.replace(str(partial), str(named))
        raise


def atomic_write(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Writes a file so that a reader, or a crash, sees the old content or the new, never a part.

    The content goes to a sibling file that is synced and renamed over ``path``; text is UTF-8.

    Args:
        path: File to create or replace; its directory must exist.
        content: The whole content.

    Raises:
        OSError: The directory is missing or not writable; it names ``path``, which is unchanged.
    """
    path = Path(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    partial = _sibling(path)
    try:
        # open() rather than tempfile: the final file gets the mode that the umask asks for.
        with open(partial, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
