"""Makes torchvision importable beside a torch it was not built for; no network needs the operators.

A torchvision wheel built for CUDA beside a CPU torch lacks its own operators and fails on import.
Defining their schemas first is enough for models and transforms. A matching pair is left alone.
"""

from __future__ import annotations

import sys

import torch


def make_torchvision_importable() -> None:
    """Imports torchvision, defining its missing operators where that fails."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        for operator in ("nms", "qnms"):
            schema = "(Tensor a, Tensor b, float c) -> Tensor"
            torch.library.define(f"torchvision::{operator}", schema)
