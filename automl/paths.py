"""Where the package's own files lie, and how files are written whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
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
    """Why nothing can be written at a path, in the system's words; None where it seems to be.

    To be asked before what takes long, which would be lost.

    Args:
        path: A file or folder, there or not; folders above it may be missing, too.
    """
    places = (path.absolute(), *path.absolute().parents)
    try:
        there = next(place for place in places if place.exists())
    except OSError as error:
        return error.strerror
    if not there.is_dir() and there != path.absolute():
        return os.strerror(errno.ENOTDIR)
    wanted = os.W_OK | os.X_OK if there.is_dir() else os.W_OK
    effective = os.access in os.supports_effective_ids
    allowed = os.access(there, wanted, effective_ids=effective)
    return None if allowed else os.strerror(errno.EACCES)


def atomic_write(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Writes a file so that a reader, or a crash, sees the old content or the new, never a part.

    The content goes to a sibling file that is synced and renamed over ``path``; text is UTF-8.

    Args:
        path: File to create or replace; its directory must exist.
        content: The whole content.

    Raises:
        OSError: The directory is missing or not writable; ``path`` is then unchanged.
    """
    path = Path(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        # open() rather than tempfile: the final file gets the mode that the umask asks for.
        with open(partial, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
