"""Tables of other programs and devices: CSV, JSON, and the pickle of the official NetAdapt.

CSV files and JSON lists of objects have the columns of our own tables, of which kind, channels,
kernel, stride, groups, height, width and ``median_us`` must be there; a kernel or a stride may be
one size for all dimensions. NetAdapt
(github.com/denru01/netadapt) writes a pickle of layer name -> properties and seconds by
``(in_channels, out_channels)``; layers of equal shape are one entry here, under their shape.

Such tables mostly know convolutions and linear layers alone. They are marked so
(``Fingerprint.covers``): then activations, padding and bias do not count when a layer is looked
up, and all other operators count as nothing.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from automl.cost.lut.entry import Entry
from automl.cost.lut.fingerprint import LAYERS_ONLY, Fingerprint
from automl.cost.lut.safe_pickle import load_plain
from automl.cost.lut.signature import Signature
from automl.cost.lut.table import COLUMNS, Row, Table, json_file, read_rows
from automl.types import InputError

FORMATS = ("csv", "json", "netadapt")

#: Operators that tables of layers know, and how many sizes their kernels and strides have.
_SPATIAL = {
    "conv1d": 1, "conv2d": 2, "conv3d": 3,
    "conv_transpose1d": 1, "conv_transpose2d": 2, "conv_transpose3d": 3,
    "linear": 0,
}  # fmt: skip
LAYER_KINDS = frozenset(_SPATIAL)

_KINDS = {"Conv2d": "conv2d", "ConvTranspose2d": "conv_transpose2d", "Linear": "linear"}


def import_table(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    device: str,
    form: str | None = None,
    batch: int = 1,
) -> Table:
    """Reads a foreign table and writes it as one of ours.

    Args:
        source: The file to read.
        out: The JSON file to write, which must not exist; a CSV file goes beside it.
        device: What it was measured on, in words.
        form: One of ``FORMATS``; None goes by the suffix of ``source``.
        batch: Examples in a pass, where the file does not say.

    Raises:
        InputError: The file cannot be read, holds nothing, contradicts itself, or ``out`` exists.
    """
    source, out = Path(source), json_file(Path(out))
    if out.exists() or out.with_suffix(".csv").exists():
        raise InputError(f"{out} is there already; choose another file")
    form = form or _form(source)
    readers = {"csv": _read_csv, "json": _read_json, "netadapt": _read_netadapt}
    found = list(readers[form](source, batch))
    if not found:
        raise InputError(f"{source} holds no operators")
    whole = all(signature.detail != "{}" for signature, _ in found)
    if not whole:
        _require_layers({signature.kind for signature, _ in found}, source)
    rows = _once(found if whole else [(bare(s), e) for s, e in found], source)
    table = Table(out, _fingerprint(device, f"{form} file", rows, whole))
    table.add(rows.items())
    return table


def _require_layers(kinds: Collection[str], source: Path) -> None:
    """Refuses kinds that are layers by another name, since no layer would be found under them.

    Other operators count as nothing in a table of layers, and may be there.
    """
    known = {kind.replace("_", ""): kind for kind in _SPATIAL}
    for kind in sorted(set(kinds) - LAYER_KINDS):
        meant = known.get(kind.lower().replace("_", ""))
        if meant is not None:
            raise InputError(f"{source} has the kind {kind!r}; write {meant!r}")
    if LAYER_KINDS.isdisjoint(kinds):
        raise InputError(
            f"{source} holds no layers: kinds are {', '.join(_SPATIAL)}, got {min(kinds)!r}"
        )


def bare(signature: Signature) -> Signature:
    """A layer without what tables of others do not say: activation, padding and bias."""
    if signature.kind == "linear":  # rows of tokens, for which such tables have no column
        return replace(signature, fused=(), detail="{}", kernel=(), stride=())
    return replace(signature, fused=(), detail="{}")


def _findable(row: Row) -> Row:
    """A row as it is looked up: one size of a kernel or a stride stands for all dimensions.

    Raises:
        ValueError: No layer would ever be found under it, or it took no time.
    """
    signature, entry = row
    if not entry.median_us > 0:
        raise ValueError(f"median_us must be > 0, got {entry.median_us:g}")
    if not _SPATIAL.get(signature.kind):
        return row
    kernel, stride = (_per_dimension(signature, name) for name in ("kernel", "stride"))
    return replace(signature, kernel=kernel, stride=stride), entry


def _per_dimension(signature: Signature, name: str) -> tuple[int, ...]:
    sizes: tuple[int, ...] = getattr(signature, name)
    dims = _SPATIAL[signature.kind]
    if len(sizes) not in (1, dims) or min(sizes) < 1:
        given = "x".join(map(str, sizes)) or "none"
        raise ValueError(f"the {name} of a {signature.kind} must be {dims} sizes >= 1, got {given}")
    return sizes * dims if len(sizes) == 1 else sizes


def _form(source: Path) -> str:
    forms = {".csv": "csv", ".json": "json", ".pkl": "netadapt", ".pickle": "netadapt"}
    if source.suffix not in forms:
        raise InputError(f"cannot tell the format of {source}; say it with --from")
    return forms[source.suffix]


def _fingerprint(
    device: str, source: str, rows: Mapping[Signature, Entry], whole: bool
) -> Fingerprint:
    first = next(iter(rows))
    return Fingerprint(
        device="other",
        processor=device,
        capability="",
        cores=0,
        threads=0,
        torch="unknown",
        dtype=first.dtype,
        layout=first.layout,
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        source=source,
        covers="" if whole else LAYERS_ONLY,
    )


def _once(rows: list[Row], source: Path) -> dict[Signature, Entry]:
    """Rows by signature; a signature that occurs twice must say the same."""
    found: dict[Signature, Entry] = {}
    for signature, entry in rows:
        before = found.setdefault(signature, entry)
        # Layers of one shape that were measured each on its own: tolerate noise, not nonsense.
        if not before.median_us / 2 <= entry.median_us <= before.median_us * 2:
            raise InputError(
                f"{source} says two things of {signature}: {before.median_us:g} us and "
                f"{entry.median_us:g} us"
            )
    return found


# ---- CSV and JSON


def _text(source: Path) -> str:
    try:
        return source.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{source} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{source} is no text: {error.reason}") from error


def _read_csv(source: Path, batch: int) -> Iterator[Row]:
    try:
        yield from read_rows(_text(source), str(source), batch, _findable)
    except csv.Error as error:
        raise InputError(f"{source} is no CSV: {error}") from error


def _read_json(source: Path, batch: int) -> Iterator[Row]:
    try:
        document = json.loads(_text(source))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source} is no JSON: {error}") from error
    if not isinstance(document, list) or not all(isinstance(row, dict) for row in document):
        raise InputError(f"{source} must be a list of objects, one per operator")
    columns = dict.fromkeys(name for row in document for name in row)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [name for name in columns if name in COLUMNS], restval="")
    writer.writeheader()
    writer.writerows(
        {name: _cell(name, row[name]) for name in row if name in COLUMNS} for row in document
    )
    try:
        yield from read_rows(buffer.getvalue(), str(source), batch, _findable)
    except csv.Error as error:
        raise InputError(f"{source} holds what is too long for a table: {error}") from error


def _cell(name: str, value: Any) -> Any:
    if isinstance(value, list):
        return ("+" if name == "fused" else "x").join(map(str, value))
    return json.dumps(value) if isinstance(value, dict) else value


# ---- NetAdapt


def _read_netadapt(source: Path, batch: int) -> Iterator[Row]:
    document = load_plain(source)
    if not isinstance(document, dict):
        raise InputError(f"{source} is no table of NetAdapt: it holds no dictionary of layers")
    for name, layer in document.items():
        try:
            yield from _layer_rows(layer, batch)
        except (
            KeyError,
            TypeError,
            ValueError,
            IndexError,
            AttributeError,
            OverflowError,
        ) as error:
            raise InputError(
                f"{source} is no table of NetAdapt: layer {str(name)[:60]!r} cannot be read "
                f"({error!r})"
            ) from None


def _layer_rows(layer: Mapping[str, Any], batch: int) -> Iterator[Row]:
    kind = _KINDS.get(layer["layer_type_str"])
    if kind is None:
        raise ValueError(f"unknown layer type {layer['layer_type_str']!r}")
    spatial = kind != "linear"
    height, width = _whole(layer["input_feature_map_size"])[2:4] if spatial else (1, 1)
    for channels, seconds in layer["latency"].items():
        into, out = _whole(channels)
        time_us = float(seconds) * 1e6
        if not 0 < time_us < float("inf"):
            raise ValueError(f"{seconds!r} is no time in seconds")
        groups = into if layer["is_depthwise"] else _whole([layer["groups"]])[0]
        signature = Signature(
            kind=kind,
            batch=batch,
            in_channels=into,
            out_channels=out,
            height=height,
            width=width,
            kernel=_whole(layer["kernel_size"]) if spatial else (),
            stride=_whole(layer["stride"]) if spatial else (),
            groups=groups,
        )
        yield _findable((signature, Entry(1, round(time_us, 3), 0.0)))


def _whole(values: Any) -> tuple[int, ...]:
    """Whole numbers >= 1, which may be written as floats."""
    numbers = tuple(int(value) for value in values)
    if any(number < 1 or number != value for number, value in zip(numbers, values, strict=True)):
        raise ValueError(f"{values!r} are no sizes")
    return numbers
