"""Which kernels times were measured with: times of other kernels say nothing about these."""

from __future__ import annotations

import hashlib
import importlib
from functools import cache
from pathlib import Path

from automl.executors import formats
from automl.executors.kernels import cpu


@cache
def kernels_version() -> str:
    """A few digits that change with the kernels' and the formats' source and instructions."""
    folder = Path(__file__).resolve().parent
    modules = {type(formats.load(name)).__module__ for name in formats.names()}
    modules |= {"automl.executors.conv", "automl.executors.packed"}
    files = {Path(str(importlib.import_module(name).__file__)) for name in modules}
    content = hashlib.sha256()
    files |= {folder / "conv_plan.py", folder / "depthwise.py", folder / "pell_forms.py"}
    own = [file for name in ("kernels", "fused") for file in (folder / name).glob("*.py")]
    for file in sorted([*files, *own]):
        content.update(file.read_bytes())
    # What a kernel needs and the processor lacks, a slower one does.
    for needed in (cpu.FLOATS, cpu.WORDS, cpu.BYTES):
        content.update(b"1" if cpu.supports(needed) else b"0")
    return content.hexdigest()[:8]
