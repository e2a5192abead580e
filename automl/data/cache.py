"""Decoded images on disk, so that PNGs and JPEGs are decoded once per machine, not per run.

An entry is a folder with ``images.npy``, ``labels.npy`` and ``meta.json``; it appears whole or
not at all and is mapped into memory, so that processes share one copy. Entries are keyed by what
is decoded: path, size and modification time of every file. Deleting the folder is always safe.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from automl.types import InputError

#: Part of every key; to be raised when the meaning or form of an entry changes.
_FORMAT = 1
#: Age in seconds after which an unfinished entry is taken for a crash's, not another process's.
_STALE = 6 * 3600

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Decoding:
    """A decoder under way.

    Attributes:
        shape: (n, channels, height, width) of all images.
        chunks: Images and labels in order, a part at a time.
    """

    shape: tuple[int, int, int, int]
    chunks: Iterable[tuple[Images, Labels]]


@dataclass(frozen=True)
class Decoded:
    """Decoded images.

    Attributes:
        images: (n, channels, height, width), uint8; a private memory map where it was cached.
        labels: (n,), int64.
        digest: SHA-256 of shape, images and labels.
    """

    images: Images
    labels: Labels
    digest: str


def cache_dir() -> Path:
    """The user's cache folder for this package: ``XDG_CACHE_HOME``, else the platform's own."""
    chosen = os.environ.get("XDG_CACHE_HOME")
    if chosen:
        base = Path(chosen)
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path.home() / ".cache"
    return base / "prunepilot"


def decoded(
    kind: str, files: Sequence[Path], settings: str, decode: Callable[[], Decoding]
) -> Decoded:
    """The decoded content of ``files``: from the cache, or decoded now and put there.

    Args:
        kind: Short name of the data set, for the entry's folder.
        files: All files that are read.
        settings: Anything else that the result depends on.
        decode: Starts the decoding; called only where the cache has no entry.

    Raises:
        InputError: From ``decode``, or the disk is too full.
    """
    entry = cache_dir() / "decoded" / f"{kind}-{_key(files, settings)}"
    found = _open(entry)
    if found is not None:
        return found
    decoding = decode()
    try:
        partial = _begin(entry)
    except OSError as error:
        warnings.warn(
            f"decoded images are not kept: {cache_dir()} is not writable ({error.strerror}); "
            "set XDG_CACHE_HOME to a folder that is",
            RuntimeWarning,
            stacklevel=2,
        )
        return _in_memory(decoding)
    try:
        _write(partial, decoding)
        _publish(partial, entry)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    written = _open(entry)
    if written is None:
        raise InputError(f"the cache entry {entry} was damaged while it was written: try again")
    return written


def _key(files: Sequence[Path], settings: str) -> str:
    text = hashlib.sha256(f"{_FORMAT}\n{settings}\n".encode())
    for file in files:
        try:
            stat = file.stat()
        except OSError as error:  # such as a link to nowhere
            raise InputError(f"{file} cannot be read: {error.strerror}") from error
        text.update(f"{file.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return text.hexdigest()[:32]


def _open(entry: Path) -> Decoded | None:
    """The entry, or None where there is none or a crash of the machine left it damaged."""
    try:
        meta: dict[str, Any] = json.loads((entry / "meta.json").read_text("utf-8"))
        # Copy on write: a read-only map would not become a tensor, and the file stays as it is.
        images = np.load(entry / "images.npy", mmap_mode="c", allow_pickle=False)
        labels = np.load(entry / "labels.npy", allow_pickle=False)
        digest = str(meta["digest"])
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    if images.dtype != np.uint8 or labels.shape != images.shape[:1]:
        return None
    return Decoded(images, labels, digest)


def _begin(entry: Path) -> Path:
    """Makes an empty sibling of ``entry`` to write into, and clears those that crashes left."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    for left in entry.parent.glob(f".{entry.name}.*.partial"):
        with contextlib.suppress(FileNotFoundError):  # its process may finish meanwhile
            if left.stat().st_mtime < time.time() - _STALE:
                shutil.rmtree(left, ignore_errors=True)
    partial = entry.parent / f".{entry.name}.{secrets.token_hex(4)}.partial"
    partial.mkdir()
    return partial


def _write(partial: Path, decoding: Decoding) -> None:
    count, *rest = decoding.shape
    size = int(np.prod(decoding.shape, dtype=np.int64))
    free = shutil.disk_usage(partial).free
    if size > free:
        raise InputError(
            f"decoded images need {size / 1e9:.1f} GB and {partial.parent} has "
            f"{free / 1e9:.1f} GB free: set data.limit, or XDG_CACHE_HOME to a larger disk"
        )
    labels = []
    with open(partial / "images.npy", "wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, *rest)}
        np.lib.format.write_array_header_1_0(file, header)
        digest = _Digest(decoding.shape)
        for images, chunk_labels in decoding.chunks:
            file.write(np.ascontiguousarray(images).data)
            digest.update(images)
            labels.append(chunk_labels)
    all_labels = np.concatenate(labels)
    np.save(partial / "labels.npy", all_labels)
    meta = {"digest": digest.finish(all_labels), "shape": decoding.shape}
    (partial / "meta.json").write_text(json.dumps(meta), "utf-8")


def _publish(partial: Path, entry: Path) -> None:
    try:
        os.rename(partial, entry)
    except OSError:
        # Another process was faster, or a damaged entry is in the way.
        if _open(entry) is None:
            shutil.rmtree(entry, ignore_errors=True)
            os.rename(partial, entry)


def _in_memory(decoding: Decoding) -> Decoded:
    parts = list(decoding.chunks)
    images = np.concatenate([images for images, _ in parts])
    labels = np.concatenate([labels for _, labels in parts])
    digest = _Digest(decoding.shape)
    digest.update(images)
    return Decoded(images, labels, digest.finish(labels))


class _Digest:
    """SHA-256 over shape, images and labels, fed in parts."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._hash = hashlib.sha256(repr(tuple(shape)).encode())

    def update(self, images: Images) -> None:
        self._hash.update(np.ascontiguousarray(images).data)

    def finish(self, labels: Labels) -> str:
        self._hash.update(np.ascontiguousarray(labels, dtype="<i8").data)
        return self._hash.hexdigest()
