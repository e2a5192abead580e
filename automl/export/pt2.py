"""``torch.export`` programs: run by torch alone, without the network's classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

FILE = "model.pt2"
PACKAGES = ()


def write(network: nn.Module, inputs: Tensor, folder: Path) -> Path:
    """Writes the network with any batch size; see ``automl.export``."""
    program = torch.export.export(network, (inputs,), dynamic_shapes=({0: batch()},))
    torch.export.save(program, folder / FILE)
    return folder / FILE


def run(file: Path, inputs: Tensor) -> Tensor:
    """The outputs of a written program."""
    program: Any = torch.export.load(file).module()
    with torch.no_grad():
        outputs: Tensor = program(inputs)
    return outputs


def batch() -> Any:
    """The batch dimension: any size."""
    return torch.export.Dim("batch", min=1)
