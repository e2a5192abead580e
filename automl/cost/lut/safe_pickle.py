"""Reads pickles of plain data without executing anything that is in them.

A pickle is a program: loading one as it is runs whatever its author wrote. Here only dictionaries,
lists, tuples, text and numbers are ever made; a pickle that names any function or class
besides ``collections.OrderedDict`` is refused before that is even imported.
"""

from __future__ import annotations

import io
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

from automl.pickles import check_places
from automl.types import InputError

#: Larger files are refused unread: tables are small, and a pickle can ask for any memory.
_MOST_BYTES = 64 * 2**20


class _Refused(Exception):
    """The pickle names something that is no plain data."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        raise _Refused(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("an object outside of the file")


def load_plain(path: str | os.PathLike[str]) -> Any:
    """What a pickle of plain data holds.

    Args:
        path: The file.

    Raises:
        InputError: It cannot be read, is no whole pickle, or holds more than plain data.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InputError(f"{path} is larger than any table ({_MOST_BYTES >> 20} MiB)")
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    try:
        check_places(content)
        return _PlainUnpickler(io.BytesIO(content)).load()
    except _Refused as error:
        raise InputError(
            f"{path} is refused: it asks to call {error}, which no table needs and which could "
            "run anything"
        ) from None
    except Exception as error:  # whatever a broken pickle makes the machine stumble over
        raise InputError(f"{path} is no whole pickle of plain data: {error!r}") from None
