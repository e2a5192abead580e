"""The journal of a run: one line per finished trial, and at once cache, resume and table.

A line is written whole and synced before the trial counts as finished, so a run that is killed at
any moment loses at most the trial it was working on. pandas reads the file as it is
(``pd.read_json(path, lines=True)``).
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from automl.paths import atomic_write
from automl.types import InputError

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1

Row = dict[str, Any]

#: Fields that map names to floats. JSON has neither NaN nor infinities: as text they survive.
_NUMBERS = ("metrics", "costs")


class Journal:
    """An append-only file of trials, locked against other writers while it is open.

    Opening reads what is there. A torn last line (the process died while writing it) is dropped
    with a warning; any other damage is an error. Rows are looked up by key; of several rows with
    one key the last counts.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Takes the lock and reads what is there.

        Args:
            path: The file (``trials.jsonl``); created, with its directory, where it is missing.

        Raises:
            InputError: Another run is writing the file, it is damaged, it has another schema, or
                it cannot be opened.
        """
        self.path = Path(path)
        with ExitStack() as opened:
            _lock(self.path, opened)
            self._file = opened.enter_context(_open(self.path))
            self._rows, intact = _read(self._file.read(), self.path)
            # What is left of a torn line must not become the start of the next one.
            self._file.truncate(intact)
            self._opened = opened.pop_all()
        self._by_key = {row["key"]: row for row in self._rows}

    @staticmethod
    def read(path: str | os.PathLike[str]) -> list[Row]:
        """All rows of a journal, in the order written; takes no lock and changes nothing.

        Raises:
            InputError: The file cannot be read, is damaged or has another schema.
        """
        try:
            return _read(Path(path).read_bytes(), Path(path))[0]
        except OSError as error:
            raise InputError(f"cannot read journal {str(path)!r}: {error.strerror}") from None

    def __len__(self) -> int:
        """How many keys there are."""
        return len(self._by_key)

    def __contains__(self, key: object) -> bool:
        """Whether a row was written under ``key``."""
        return key in self._by_key

    def __iter__(self) -> Iterator[Row]:
        """All rows in the order written, repeated keys included."""
        return iter(self._rows)

    def get(self, key: str) -> Row | None:
        """The last row written under ``key``."""
        return self._by_key.get(key)

    def append(self, row: Mapping[str, Any], /) -> None:
        """Writes a row and returns once it is on the disk.

        Args:
            row: JSON values, with a ``key`` (str); those in ``metrics`` and ``costs`` are
                floats, which may be NaN or infinite.

        Raises:
            ValueError: ``row`` has no key.
            OSError: The disk is full or the file is gone; the file is then as it was.
        """
        if not isinstance(row.get("key"), str):
            raise ValueError(f"Journal.append: row['key'] must be a string, got {row.get('key')!r}")
        own: Row = {"schema": SCHEMA, **row}
        line = json.dumps(_numbers(own, _to_json), allow_nan=False, separators=(",", ":")) + "\n"
        _append(self._file, line.encode("ascii"))
        self._rows.append(own)
        self._by_key[own["key"]] = own

    def to_frame(self) -> pd.DataFrame:
        """One row per key, in the order first written (see ``frame``)."""
        return frame(self._by_key.values())

    def write_parquet(self, path: str | os.PathLike[str]) -> None:
        """Writes ``to_frame()`` as Parquet, whole or not at all."""
        buffer = BytesIO()
        self.to_frame().to_parquet(buffer, index=False)
        atomic_write(path, buffer.getvalue())

    def close(self) -> None:
        """Gives up the lock; the rows can still be read, but no more be added."""
        self._opened.close()

    def __enter__(self) -> Journal:
        """Itself, to be closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes it."""
        self.close()


def frame(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as a table: the mappings ``metrics`` and ``costs`` become a column per entry.

    A metric that is named like another column is called ``metric_NAME``.
    """
    import pandas as pd

    return pd.DataFrame([_flat(row) for row in rows])


def _flat(row: Mapping[str, Any]) -> Row:
    flat = {name: value for name, value in row.items() if name not in ("metrics", "costs")}
    flat.update(row.get("costs") or {})
    for name, value in (row.get("metrics") or {}).items():
        flat[f"metric_{name}" if name in flat else name] = value
    return flat


def _lock(path: Path, until: ExitStack) -> None:
    """Takes the lock beside the journal; the system drops it with the process."""
    from filelock import FileLock, Timeout

    lock = FileLock(f"{path}.lock", timeout=0, thread_local=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise InputError(
            f"{str(path.parent)!r} is being written by another run; "
            "wait for it to end or choose another run_dir"
        ) from None
    except OSError as error:
        raise InputError(f"cannot write journal {str(path)!r}: {error.strerror}") from None
    until.callback(lock.release)


def _open(path: Path) -> IO[bytes]:
    try:
        # "a+" creates it and always writes at the end. Unbuffered: a write either reaches the
        # system or raises here, not at some later flush.
        file = open(path, "a+b", buffering=0)
    except OSError as error:
        raise InputError(f"cannot write journal {str(path)!r}: {error.strerror}") from None
    file.seek(0)
    return file


def _append(file: IO[bytes], data: bytes) -> None:
    end = file.seek(0, os.SEEK_END)
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())
    except BaseException as error:
        # Ctrl-C may come when the line is whole already; then it is a finished trial, and stays.
        if rest or isinstance(error, OSError):
            file.truncate(end)
        raise


def _read(data: bytes, path: Path) -> tuple[list[Row], int]:
    """Rows, and how many leading bytes of ``data`` hold them."""
    rows: list[Row] = []
    intact = 0
    lines = BytesIO(data).readlines()
    for number, line in enumerate(lines, start=1):
        row = _parse(line)
        if row is None and number == len(lines):
            warnings.warn(
                f"{path}: line {number} was cut off while it was written; dropped it",
                stacklevel=4,
            )
            break
        rows.append(_checked(row, f"{path}, line {number}"))
        intact += len(line)
    return rows, intact


def _parse(line: bytes) -> Any:
    """The JSON value of a whole line; None where it is torn or damaged."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
        if b"\\ud" in line.lower():  # halves of characters, which no table can hold
            json.dumps(row, ensure_ascii=False).encode()
        return _numbers(row, float) if isinstance(row, dict) else row
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def _checked(row: Any, where: str) -> Row:
    if not isinstance(row, dict) or not isinstance(row.get("key"), str):
        raise InputError(f"{where} is damaged; remove the line to score its trial again")
    if row.get("schema") != SCHEMA:
        raise InputError(
            f"{where} has schema {row.get('schema')!r}, this release reads {SCHEMA}; "
            "choose another run_dir"
        )
    return row


def _numbers(row: Row, convert: Callable[[Any], Any]) -> Row:
    changed = {
        field: {name: convert(value) for name, value in row[field].items()}
        for field in _NUMBERS
        if row.get(field) is not None
    }
    return {**row, **changed}


def _to_json(value: float) -> float | str:
    number = float(value)
    return number if math.isfinite(number) else str(number)
