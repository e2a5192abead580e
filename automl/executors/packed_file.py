"""Packed layers on disk: a safetensors file of arrays beside a JSON file that describes them.

The arrays are mapped, not read, so that layers are ready at once and processes share them. Those
that kernels stream come first, each starting at a cache line; any safetensors reader can read them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from automl.executors import formats
from automl.executors.packed import PackedLinear
from automl.executors.packed_check import check_layer
from automl.paths import atomic_write
from automl.types import InputError

VERSION = 1
_ARRAYS, _DESCRIPTION = "packed.safetensors", "packed.json"
_LINE = 64

#: numpy's name of a type -> that of safetensors.
_TYPES = {
    "uint8": "U8", "int8": "I8", "uint16": "U16", "int32": "I32", "uint32": "U32",
    "int64": "I64", "float32": "F32",
}  # fmt: skip

#: What reading a damaged header may raise.
_DAMAGED = (
    ValueError, KeyError, TypeError, AttributeError, OverflowError, IndexError, RecursionError,
)  # fmt: skip


def save(layers: Mapping[str, PackedLinear], folder: str | os.PathLike[str]) -> None:
    """Writes packed layers to ``packed.safetensors`` and ``packed.json`` in a folder.

    Args:
        layers: Name -> layer.
        folder: Created if need be.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        f"{name}/{field}": np.ascontiguousarray(array)
        for name, layer in layers.items()
        for field, array in layer.arrays.items()
    }
    content = _safetensors(arrays)
    description = {
        "version": VERSION,
        "sha256": hashlib.sha256(content).hexdigest(),
        "layers": {name: _describe(layer) for name, layer in layers.items()},
    }
    # The description names the arrays' checksum, so it is written last.
    atomic_write(folder / _ARRAYS, content)
    atomic_write(folder / _DESCRIPTION, json.dumps(description, indent=2) + "\n")


def load(folder: str | os.PathLike[str], *, verify: bool = True) -> dict[str, PackedLinear]:
    """Maps packed layers into memory.

    Args:
        folder: Where ``save`` wrote them.
        verify: Whether to compare the checksum, which reads the file once, and to see to it that
            kernels can trust the layers, which takes as long as packing them. Without, only for
            files of your own.

    Returns:
        Name -> layer, in the order in which they were saved.

    Raises:
        InputError: A file is missing, damaged, or written by a newer version.
    """
    folder = Path(folder)
    description = _read_description(folder / _DESCRIPTION)
    memory = _map(folder / _ARRAYS)
    if verify and hashlib.sha256(memory.data).hexdigest() != description["sha256"]:
        raise InputError(f"{folder / _ARRAYS} is damaged: its checksum is wrong; save it again")
    arrays = dict(_parse(memory, folder / _ARRAYS))
    kinds: dict[str, Any] = {kind.kind: kind for kind in _packed_classes()}
    try:
        layers: dict[str, PackedLinear] = {
            name: kinds[layer["kind"]](
                **layer["settings"],
                **{field: arrays[f"{name}/{field}"] for field in layer["arrays"]},
            )
            for name, layer in description["layers"].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{folder / _DESCRIPTION} does not describe the arrays beside it ({error}); save again"
        ) from error
    for name, layer in layers.items() if verify else ():
        check_layer(layer, name)
    return layers


def _describe(layer: PackedLinear) -> dict[str, Any]:
    arrays = list(layer.arrays)
    settings = {f.name: getattr(layer, f.name) for f in fields(layer) if f.name not in arrays}
    return {"kind": layer.kind, "format": layer.name, "settings": settings, "arrays": arrays}


def _safetensors(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """The format of safetensors: length of the header, header, arrays without gaps."""
    # Whole lines first keep every array that is made of them at the start of a line.
    order = sorted(arrays, key=lambda name: arrays[name].nbytes % _LINE != 0)
    header, at = {}, 0
    for name in order:
        array = arrays[name]
        header[name] = {
            "dtype": _TYPES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [at, at + array.nbytes],
        }
        at += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _LINE)
    parts = [len(text).to_bytes(8, "little"), text, *(arrays[name].tobytes() for name in order)]
    return b"".join(parts)


def _read_description(path: Path) -> dict[str, Any]:
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        version = description["version"]
        if type(version) is not int:
            raise TypeError("version")
        _ = description["sha256"], description["layers"].items()
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; give the folder of a packed model") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} does not describe a packed model; save it again") from error
    if version > VERSION:
        raise InputError(f"{path} has version {version}, newer than {VERSION}: upgrade prunepilot")
    return dict(description)


def _map(path: Path) -> NDArray[np.uint8]:
    try:
        # Copy on write: the arrays look writable, as those of fresh layers do, but for us alone.
        return np.memmap(path, np.uint8, mode="c").view(np.ndarray)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; give the folder of a packed model") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be mapped ({error}); save it again") from error


def _parse(memory: NDArray[np.uint8], path: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    types = {short: np.dtype(name) for name, short in _TYPES.items()}
    try:
        length = int.from_bytes(memory[:8].tobytes(), "little")
        header = json.loads(memory[8 : 8 + length].tobytes())
        for name, entry in header.items():
            first, last = (8 + length + offset for offset in entry["data_offsets"])
            array = memory[first:last].view(types[entry["dtype"]])
            yield name, array.reshape(entry["shape"])
    except _DAMAGED as error:
        raise InputError(f"{path} is not a safetensors file of packed layers") from error


def _packed_classes() -> Iterator[type[PackedLinear]]:
    """All kinds of packed layers of the formats in conf/executor."""
    _import_formats()
    waiting = list(PackedLinear.__subclasses__())
    while waiting:
        kind = waiting.pop()
        waiting.extend(kind.__subclasses__())
        if hasattr(kind, "kind"):
            yield kind


@cache
def _import_formats() -> None:
    """Imports the modules that define the packed layers of conf/executor; once a process."""
    for name in formats.names():
        formats.load(name)
