"""A measured table on disk: rows as CSV, and a JSON file that says what they are.

``NAME.csv`` holds one row per signature and only ever grows; ``NAME.json`` holds the fingerprint,
the calibrations, and a seal: how many bytes of the CSV count, and their SHA-256. Rows are appended
first and sealed after, by replacing the JSON file whole. A process that is killed between the two
leaves rows without a seal, which the next one drops; a CSV that is not what was sealed is refused.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from automl.cost.lut.calibration import Calibration
from automl.cost.lut.entry import Entry
from automl.cost.lut.fingerprint import Fingerprint
from automl.cost.lut.signature import Signature, canonical
from automl.paths import atomic_write
from automl.types import InputError

Row = tuple[Signature, Entry]

TABLE_SCHEMA = "prunepilot/latency-table"
TABLE_VERSION = 1

COLUMNS = (
    "kind", "in_channels", "out_channels", "kernel", "stride", "groups", "height", "width", "batch",
    "dtype", "layout", "fused", "format", "density", "detail",
    "count", "median_us", "iqr_us", "cpu_us",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Seal:
    """How much of the CSV counts."""

    bytes: int
    sha256: str
    rows: int


_EMPTY = _Seal(0, hashlib.sha256(b"").hexdigest(), 0)


class Table:
    """Entries by signature, in memory and on disk.

    Attributes:
        path: The JSON file.
        fingerprint: What was measured, and how.
        entries: Signature -> entry; read only.
        calibrations: Key of a network (see ``Operators.key``) -> calibration; read only.
    """

    def __init__(self, path: Path, fingerprint: Fingerprint) -> None:
        """An empty table that is on disk only once something is added."""
        self.path = path
        self.fingerprint = fingerprint
        self.entries: dict[Signature, Entry] = {}
        self.calibrations: dict[str, Calibration] = {}
        self._seal = _EMPTY

    @property
    def rows_path(self) -> Path:
        """The CSV file."""
        return self.path.with_suffix(".csv")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Table:
        """Reads a table.

        Args:
            path: Its JSON file, or its CSV file beside it.

        Raises:
            InputError: There is none, or it is damaged; the message says what to do.
        """
        path = json_file(Path(path))
        document = _document(path)
        table = cls(path, Fingerprint.from_dict(document["fingerprint"]))
        table._read(document)
        return table

    # ---- growing

    def add(self, found: Iterable[tuple[Signature, Entry]]) -> None:
        """Adds entries, in memory and on disk; signatures that are there already stay as they are.

        Raises:
            InputError: The folder cannot be written, or what is there is damaged.
        """
        with self._locked():
            self._catch_up()
            new = {sig: entry for sig, entry in found if sig not in self.entries}
            if self._seal.bytes and not self.path.exists():  # deleted meanwhile: all of it again
                self._seal, new = _EMPTY, {**self.entries, **new}
            if not new and self.path.exists():
                return
            text = _text(new.items(), header=self._seal.bytes == 0)
            self._append(text.encode("utf-8"), len(new))
            self.entries.update(new)

    def calibrate(self, key: str, calibration: Calibration) -> None:
        """Sets the calibration of a network, in memory and on disk.

        Where it is another than before, what was derived from that, under ``key@...``, is dropped.
        """
        with self._locked():
            self._catch_up()
            before = self.calibrations.get(key)
            if before is not None and before.fitted != calibration.fitted:
                for derived in [name for name in self.calibrations if name.startswith(f"{key}@")]:
                    del self.calibrations[derived]
            self.calibrations[key] = calibration
            self._write_json()

    def copy_to(self, path: Path) -> Table:
        """The same entries and calibrations as a table of its own, written on first change."""
        other = Table(path, self.fingerprint)
        if not path.exists():
            with other._locked():
                text = _text(self.entries.items(), header=True)
                other._append(text.encode("utf-8"), len(self.entries), self.calibrations)
        other._catch_up()
        return other

    def _append(
        self,
        content: bytes,
        rows: int,
        calibrations: Mapping[str, Calibration] | None = None,
    ) -> None:
        """Writes rows behind the sealed ones, then the seal."""
        if calibrations is not None:
            self.calibrations.update(calibrations)
        with open(self.rows_path, "ab") as file:
            file.truncate(self._seal.bytes)  # what was never sealed
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        whole = self.rows_path.read_bytes()
        self._seal = _Seal(len(whole), hashlib.sha256(whole).hexdigest(), self._seal.rows + rows)
        self._write_json()

    def _write_json(self) -> None:
        document = {
            "schema": TABLE_SCHEMA,
            "version": TABLE_VERSION,
            "fingerprint": self.fingerprint.to_dict(),
            "rows": self._seal.rows,
            "bytes": self._seal.bytes,
            "sha256": self._seal.sha256,
            "calibrations": {key: c.to_dict() for key, c in self.calibrations.items()},
        }
        atomic_write(self.path, json.dumps(document, indent=1) + "\n")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        from filelock import FileLock

        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path.with_name(f".{self.path.stem}.lock")):
                yield
        except OSError as error:
            reason = error.strerror or str(error)
            raise InputError(
                f"latency table {self.path} cannot be written: {reason}; "
                "choose another folder with latency.table=FOLDER"
            ) from error

    # ---- reading

    def _catch_up(self) -> None:
        """Takes over what other processes have written meanwhile."""
        if self.path.exists():
            document = _document(self.path)
            self._read_calibrations(document)
            if document["sha256"] != self._seal.sha256:
                self._read_rows(document)

    def _read(self, document: Mapping[str, Any]) -> None:
        self._read_calibrations(document)
        self._read_rows(document)

    def _read_calibrations(self, document: Mapping[str, Any]) -> None:
        self.calibrations = {
            key: Calibration.from_dict(value) for key, value in document["calibrations"].items()
        }

    def _read_rows(self, document: Mapping[str, Any]) -> None:
        self._seal = _Seal(document["bytes"], document["sha256"], document["rows"])
        rows = _sealed_rows(self.rows_path, self._seal)
        self.entries = dict(read_rows(rows, str(self.rows_path)))
        if len(self.entries) != self._seal.rows:
            raise InputError(f"{self.rows_path} is damaged: it holds a signature twice")


def json_file(path: Path) -> Path:
    """The JSON of a table that is named by either of its files, or without an ending.

    Raises:
        InputError: It is no name of a file.
    """
    if not path.name:
        raise InputError(f"{path} is no file; name a table, such as lut/mine.json")
    if path.suffix in (".json", ".csv"):
        return path.with_suffix(".json")
    return path.with_name(f"{path.name}.json")  # a device's name may have dots


def _document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"there is no latency table {path}; measure one with: prunepilot lut build "
            f"latency.table={path.parent} (a folder: the table gets the device's name)"
        ) from None
    except OSError as error:
        raise InputError(f"latency table {path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: it is no JSON; {_REMEDY}") from error
    found = document if isinstance(document, dict) else {}
    if found.get("schema") != TABLE_SCHEMA or found.get("version") != TABLE_VERSION:
        raise InputError(f"{path} is no latency table of version {TABLE_VERSION}; {_REMEDY}")
    kinds = {"fingerprint": dict, "rows": int, "bytes": int, "sha256": str, "calibrations": dict}
    for name, kind in kinds.items():
        if not isinstance(found.get(name), kind):
            raise InputError(f"{path} is damaged: {name} is missing or malformed; {_REMEDY}")
    return found


_REMEDY = "restore it, or delete both files and build it again"


def _sealed_rows(path: Path, seal: _Seal) -> str:
    try:
        content = path.read_bytes()[: seal.bytes]
    except FileNotFoundError:
        raise InputError(f"{path} is missing beside its JSON file; {_REMEDY}") from None
    except OSError as error:
        raise InputError(f"latency table {path} cannot be read: {error.strerror}") from error
    if len(content) < seal.bytes:
        raise InputError(
            f"{path} is truncated: {len(content)} of {seal.bytes} bytes are there; {_REMEDY}"
        )
    if hashlib.sha256(content).hexdigest() != seal.sha256:
        raise InputError(f"{path} is damaged: its rows are not those that were sealed; {_REMEDY}")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is damaged: it is no text; {_REMEDY}") from error


# ---- rows


def _text(found: Iterable[tuple[Signature, Entry]], header: bool) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    if header:
        writer.writerow(COLUMNS)
    writer.writerows(to_row(signature, entry) for signature, entry in found)
    return buffer.getvalue()


def to_row(signature: Signature, entry: Entry) -> list[str | int | float]:
    """A row of the CSV, in the order of ``COLUMNS``."""
    s = signature
    return [
        s.kind, s.in_channels, s.out_channels, _times(s.kernel), _times(s.stride), s.groups,
        s.height, s.width, s.batch, s.dtype, s.layout, "+".join(s.fused), s.format, s.density,
        s.detail, entry.count, entry.median_us, entry.iqr_us, entry.cpu_us,
    ]  # fmt: skip


def read_rows(
    text: str, where: str, batch: int = 1, adapt: Callable[[Row], Row] = lambda row: row
) -> Iterator[Row]:
    """Reads rows with their header.

    Args:
        text: The CSV's text.
        where: Its name, for messages.
        batch: Examples in a pass, where a row does not say.
        adapt: What becomes of each row; a ``ValueError`` says that it is none.

    Raises:
        InputError: A column is missing, or a row cannot be read; names the line.
    """
    if not text:
        return
    reader = csv.DictReader(io.StringIO(text, newline=""))
    missing = sorted(_REQUIRED - set(reader.fieldnames or ()))
    if missing:
        raise InputError(f"{where} lacks the columns {', '.join(missing)}")
    for row in reader:
        try:
            yield adapt(_from_row(row, batch))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise InputError(f"{where}, line {reader.line_num} cannot be read: {error}") from error


#: What even a foreign table must say.
_REQUIRED = frozenset(COLUMNS[:8]) | {"median_us"}


def _from_row(row: Mapping[str, str], batch: int) -> Row:
    "".join(filter(None, row.values())).encode()  # halves of characters cannot be written again
    signature = Signature(
        kind=_word(row["kind"]),
        batch=_count(row.get("batch") or str(batch)),
        in_channels=_count(row["in_channels"]),
        out_channels=_count(row["out_channels"]),
        height=_count(row["height"]),
        width=_count(row["width"]),
        kernel=_sizes(row["kernel"]),
        stride=_sizes(row["stride"]),
        groups=_count(row["groups"] or "1"),
        fused=tuple(filter(None, (row.get("fused") or "").split("+"))),
        dtype=row.get("dtype") or "float32",
        layout=row.get("layout") or "contiguous",
        format=row.get("format") or "dense",
        density=_number(row.get("density") or "1"),
        detail=canonical(json.loads(row.get("detail") or "{}")),
    )
    entry = Entry(
        count=_count(row.get("count") or "1"),
        median_us=_number(row["median_us"]),
        iqr_us=_number(row.get("iqr_us") or "0"),
        cpu_us=_number(row.get("cpu_us") or "0"),
    )
    return signature, entry


def _times(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(_count(size) for size in text.split("x")) if text else ()


def _word(text: str) -> str:
    if not text:
        raise ValueError("kind is empty")
    return text


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError(f"{text} is negative")
    return value


def _number(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{text} is no time")
    return value
