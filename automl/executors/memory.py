"""What the autotuner has measured on this machine, so that it need not measure it again.

A latency table of its own (``autotuned-NAME.json`` and ``.csv``), beside those of operators: its
times are those of whole calls on a layer's own weights and activations. Entries are keyed by the
layer's signature, never by its name, and by the version of the kernels.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from automl.cost.lut.entry import Entry
from automl.cost.lut.fingerprint import Fingerprint
from automl.cost.lut.signature import Signature
from automl.cost.lut.table import Table
from automl.environment import cpu_name
from automl.types import InputError


class Memory:
    """Times by signature and format, in memory and, where there is a folder, on disk.

    Args:
        folder: Where the table lies; None for nothing beyond this object's life.
    """

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        """Reads the table, if there is one."""
        self._table = None if folder is None else _table(Path(folder))
        self._entries = {} if self._table is None else dict(self._table.entries)

    def times_us(self, layer: Signature, forms: Sequence[str]) -> dict[str, float] | None:
        """Median times by format, microseconds; None where one is not known."""
        wanted = {form: replace(layer, format=form) for form in forms}
        if any(signature not in self._entries for signature in wanted.values()):
            return None
        return {form: self._entries[own].median_us for form, own in wanted.items()}

    def add(self, layer: Signature, times_us: Mapping[str, Sequence[float]]) -> None:
        """Remembers what was measured; a folder that cannot be written is a warning."""
        found = {
            replace(layer, format=form): Entry.of(np.array(own), None)
            for form, own in times_us.items()
        }
        self._entries |= found
        if self._table is None:
            return
        try:
            self._table.add(found.items())
        except InputError as error:
            warnings.warn(f"what was measured is not remembered: {error}", stacklevel=2)
            self._table = None


def fingerprint() -> Fingerprint:
    """This machine and torch, on one thread."""
    return Fingerprint(
        device="cpu",
        processor=cpu_name(),
        capability=torch.backends.cpu.get_cpu_capability(),
        cores=os.cpu_count() or 1,
        threads=1,
        torch=torch.__version__,
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        source="autotuned",
    )


def _table(folder: Path) -> Table | None:
    here = fingerprint()
    path = folder / f"autotuned-{here.name}.json"
    try:
        return Table.load(path) if path.exists() else Table(path, here)
    except (InputError, OSError) as error:  # also a folder that may not be looked into
        warnings.warn(f"what was measured before is not used: {error}", stacklevel=2)
        return None
