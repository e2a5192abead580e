"""What every test shares: one torch thread, a torchvision that imports, the data's root."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from pathlib import Path

import hypothesis
import pytest
import torch
import torch.fx.config

REPOSITORY = Path(__file__).resolve().parent.parent

# Timings and sums do not depend on what else the machine does, and no test fails for being slow.
torch.set_num_threads(1)
# What is measured once per machine is measured anew by every run of the tests.
_CACHE = tempfile.TemporaryDirectory()
os.environ["PRUNEPILOT_CACHE"] = _CACHE.name
hypothesis.settings.register_profile("prunepilot", deadline=None)
hypothesis.settings.load_profile("prunepilot")
# Torch writes down for every node of an export where it was called: long, below a test runner.
torch.fx.config.do_not_emit_stack_traces = True


def _make_torchvision_importable() -> None:
    """Defines the operators that torchvision's own library would, where that does not load.

    A torchvision wheel built for CUDA beside a CPU torch lacks them, and then fails on import;
    no network needs them.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        schema = "(Tensor a, Tensor b, float c) -> Tensor"
        for operator in ("nms", "qnms"):
            torch.library.define(f"torchvision::{operator}", schema)


_make_torchvision_importable()


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of CIFAR-10 and checkpoints; skips where it is absent."""
    root = Path(os.environ.get("PRUNEPILOT_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (root / "cifar10").is_dir():
        pytest.skip("no shared data: set PRUNEPILOT_DATA to the folder that holds cifar10/")
    return root
