"""CIFAR-10's binary version: records of one label byte and 3,072 pixel bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from automl.data.cache import Decoding, Images, Labels
from automl.data.formats.cifar import SIDE, check_labels
from automl.types import InputError

FOLDERS = ("", "cifar-10-batches-bin", "cifar10", "cifar10/cifar-10-batches-bin")
FILES = {
    "train": tuple(f"data_batch_{index}.bin" for index in range(1, 6)),
    "test": ("test_batch.bin",),
}
PIXELS = 3 * SIDE * SIDE
RECORD = 1 + PIXELS


def find(root: Path, part: str) -> list[Path]:
    """The files of ``part`` (``train`` or ``test``) under ``root``, in order; [] if none.

    Raises:
        InputError: Some of the files are missing.
    """
    return find_batches(root, FOLDERS, FILES[part])


def find_batches(root: Path, folders: Sequence[str], names: Sequence[str]) -> list[Path]:
    """All of ``names`` in the first of ``folders`` under ``root`` that has any of them.

    Raises:
        InputError: That folder lacks one.
    """
    for folder in folders:
        files = [root / folder / name for name in names]
        if any(file.is_file() for file in files):
            for file in files:
                if not file.is_file():
                    raise InputError(f"{file.parent} lacks {file.name}: unpack the archive again")
            return files
    return []


def start(files: Sequence[Path]) -> Decoding:
    """Starts reading.

    Raises:
        InputError: A file does not hold whole records.
    """
    count = 0
    for file in files:
        records, rest = divmod(file.stat().st_size, RECORD)
        if rest or not records:
            raise InputError(
                f"{file} must be records of {RECORD} bytes, got {file.stat().st_size} bytes: "
                "unpack the archive again"
            )
        count += records
    return Decoding((count, 3, SIDE, SIDE), _chunks(files))


def _chunks(files: Sequence[Path]) -> Iterator[tuple[Images, Labels]]:
    for file in files:
        records = np.fromfile(file, dtype=np.uint8).reshape(-1, RECORD)
        labels = check_labels(records[:, 0].astype(np.int64), file)
        yield records[:, 1:].reshape(-1, 3, SIDE, SIDE), labels
