"""Whether a finished run still has what it wrote: a cheap look at every file of its result."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from automl.runs import (
    PLAN,
    POLICY,
    POLICY_UNIFORM,
    REBUILD,
    RESULT,
    TRIALS,
    WEIGHTS,
    RunFolder,
)

#: What a Parquet file begins and ends with.
_PARQUET = b"PAR1"


def is_finished(folder: RunFolder) -> bool:
    """Whether there is a result, and all that belongs to it."""
    return folder.is_done and fault_of(folder) is None


#: What a network is exported from.
OF_NETWORK = (RESULT, PLAN, POLICY, REBUILD, WEIGHTS)


def fault_of(
    folder: RunFolder, names: Sequence[str] = (*OF_NETWORK, POLICY_UNIFORM, TRIALS)
) -> str | None:
    """Which of a finished run's own files is missing or damaged, in words; None where none is.

    Args:
        folder: The run's.
        names: Of the files that are looked at.
    """
    looks = {WEIGHTS: _is_safetensors, TRIALS: _is_parquet}
    for name in names:
        file = folder.file(name)
        if not file.is_file():
            return f"{file} is missing"
        if not looks.get(name, _is_document)(file):
            return f"{file} is damaged"
    return None


def _is_document(file: Path) -> bool:
    """Whether it is one of our JSON files; a result of no networks is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    is_ours = isinstance(found, dict) and "schema" in found
    return is_ours and (file.name != RESULT or bool(found.get("rows")))


def _is_safetensors(file: Path) -> bool:
    """Whether the header is whole and the file as long as it says; no tensor is read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np"):
            return True
    except (OSError, SafetensorError):
        return False


def _is_parquet(file: Path) -> bool:
    """Whether both ends are there: what is cut lacks the second."""
    try:
        with file.open("rb") as opened:
            head = opened.read(len(_PARQUET))
            opened.seek(-len(_PARQUET), 2)
            return head == opened.read() == _PARQUET
    except OSError:
        return False
