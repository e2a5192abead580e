"""CIFAR-10 as torchvision unpacks it: pickled batches, read without running any code.

A pickle may name any function and have it called. This reader knows three names, and each stands
for a few lines here that accept plain uint8 arrays and nothing else.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from automl.data.cache import Decoding, Images, Labels
from automl.data.formats.cifar import SIDE, check_labels
from automl.data.formats.cifar_binary import PIXELS, find_batches
from automl.pickles import check_places
from automl.types import InputError

FOLDERS = ("", "cifar-10-batches-py", "cifar10", "cifar10/cifar-10-batches-py")
FILES = {
    "train": tuple(f"data_batch_{index}" for index in range(1, 6)),
    "test": ("test_batch",),
}


def find(root: Path, part: str) -> list[Path]:
    """The files of ``part`` (``train`` or ``test``) under ``root``, in order; [] if none.

    Raises:
        InputError: Some of the files are missing.
    """
    return find_batches(root, FOLDERS, FILES[part])


def start(files: Sequence[Path]) -> Decoding:
    """Reads all files, since only their content says how many images they hold.

    Raises:
        InputError: A file is damaged, or is more than a CIFAR-10 batch.
    """
    chunks = [_read(file) for file in files]
    return Decoding((sum(len(labels) for _, labels in chunks), 3, SIDE, SIDE), chunks)


def _read(file: Path) -> tuple[Images, Labels]:
    content = _load(file)
    data, labels = content.get("data"), content.get("labels")
    pixels = data.values if isinstance(data, _Array) else None
    if pixels is None or pixels.ndim != 2 or pixels.shape[1] != PIXELS or not len(pixels):
        raise InputError(f"{file} must hold 'data', a uint8 array of shape (n, {PIXELS})")
    if not isinstance(labels, list) or [type(label) for label in labels] != [int] * len(pixels):
        raise InputError(f"{file} must hold 'labels', a list of {len(pixels)} whole numbers")
    images = pixels.reshape(-1, 3, SIDE, SIDE)
    return images, check_labels(np.array(labels, dtype=np.int64), file)


def _load(file: Path) -> dict[str, Any]:
    try:
        raw = file.read_bytes()
        check_places(raw)
        # The published files come from Python 2: their strings, pixels too, are bytes here.
        content = _Unpickler(io.BytesIO(raw), encoding="bytes").load()
    except _RefusedError as error:
        raise InputError(
            f"{file} is no CIFAR-10 batch: it {error}, which could run code; use the files of "
            "cifar-10-python.tar.gz"
        ) from error
    except Exception as error:
        # Damaged bytes make the unpickler raise nearly anything, from EOFError to IndexError.
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{file} is damaged ({reason}): unpack the archive again") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} must hold a dictionary, got {type(content).__name__}")
    return {
        key.decode("latin1") if isinstance(key, bytes) else str(key): value
        for key, value in content.items()
    }


class _RefusedError(Exception):
    """The pickle asks for something that is not on the list."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module.startswith(("numpy.core.", "numpy._core.")):
            return _reconstruct
        if module == "numpy" and name in ("ndarray", "dtype"):
            return _Array if name == "ndarray" else _DType
        if (module, name) == ("_codecs", "encode"):
            return _encode
        raise _RefusedError(f"names {module}.{name}")


class _DType:
    """Stands for ``numpy.dtype``; only the code is looked at."""

    def __init__(self, code: object, *_: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment: nothing that uint8 has."""


class _Array:
    """Stands for ``numpy.ndarray``; takes uint8 in C order."""

    values: Images | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran_order, raw = state
        if not isinstance(dtype, _DType) or dtype.code not in ("u1", b"u1"):
            raise _RefusedError("holds an array that is not uint8")
        if fortran_order or not isinstance(raw, bytes):
            raise _RefusedError("holds an array that is not plain bytes in C order")
        self.values = np.frombuffer(raw, dtype=np.uint8).reshape(shape)


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _encode(text: object, encoding: object = "latin1") -> bytes:
    """How Python 3 writes bytes into an old pickle protocol."""
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise _RefusedError("encodes text other than as latin1")
    return text.encode("latin1")
