"""Policies as plain CSV, so that a person can edit ratios by hand.

One line per target: ``target,granularity,units,ratio``. ``ratio`` is the fraction REMOVED, in
[0, 1); ``units`` times what is left, rounded, is kept. Which units stay is not written: the
pruner's criterion chooses them when the policy is applied.
"""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import Any

from automl.paths import atomic_write
from automl.policy import MOST_UNITS, Decision, Policy
from automl.types import InputError

COLUMNS = ("target", "granularity", "units", "ratio")


def save_csv(policy: Policy, path: str | os.PathLike[str]) -> None:
    """Writes a policy as CSV; read again it keeps as many units of every target.

    Raises:
        OSError: The file cannot be written.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in policy.decisions:
        writer.writerow([one.target, one.granularity, one.units, _short_ratio(one)])
    atomic_write(path, text.getvalue())


def load_csv(path: str | os.PathLike[str]) -> Policy:
    """Reads what :func:`save_csv`, a spreadsheet or a person wrote.

    Raises:
        InputError: The file cannot be read, or a line breaks a rule (with its number).
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise InputError(f"cannot read policy {str(path)!r}: {reason}") from None
    try:
        decisions = _decisions(csv.DictReader(io.StringIO(text, newline="")), path)
    except csv.Error as error:  # a field of more characters than any name has
        raise InputError(f"{path}: {error}") from None
    try:
        return Policy(decisions)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def load_policy(path: str | os.PathLike[str]) -> Policy:
    """A policy from a run folder, a JSON file, or a CSV file.

    Raises:
        InputError: There is none, or it is malformed.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "policy.json"
    return load_csv(file) if file.suffix.lower() == ".csv" else Policy.load(file)


def _short_ratio(decision: Decision) -> str:
    """The removed fraction with as few digits as still give the same count, four at least."""
    for digits in range(4, 18):
        text = f"{decision.removed:.{digits}f}"
        if float(text) < 1 and _kept(float(text), decision.units) == decision.kept:
            return text
    return repr(decision.removed)


def _kept(ratio: float, units: int) -> int:
    return max(1, round((1 - ratio) * units))


def _decisions(rows: csv.DictReader[str], path: str | os.PathLike[str]) -> tuple[Decision, ...]:
    missing = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
    if missing:
        raise InputError(f"{path} has no column {missing[0]!r}; it needs {','.join(COLUMNS)}")
    found = tuple(_decision(row, f"{path}, line {rows.line_num}") for row in rows)
    if not found:
        raise InputError(f"{path} holds no rows; every target has one")
    return found


def _decision(row: dict[Any, Any], where: str) -> Decision:
    if None in row:  # what stands behind the last column
        raise InputError(f"{where}: more fields than columns; write 0.5, not 0,5")
    try:
        units, ratio = int(row["units"]), float(row["ratio"])
    except (TypeError, ValueError):
        raise InputError(f"{where}: units must be a whole number and ratio a number") from None
    short = [name for name in COLUMNS if row[name] is None]
    if short:
        raise InputError(f"{where}: there is no {short[0]}")
    if not 1 <= units <= MOST_UNITS:
        raise InputError(f"{where}: units must be in [1, {MOST_UNITS}], got {row['units'][:30]}")
    if not 0 <= ratio < 1:
        raise InputError(f"{where}: ratio must be in [0, 1), the fraction to remove, got {ratio:g}")
    return Decision(row["target"], row["granularity"], ratio, _kept(ratio, units), units)
