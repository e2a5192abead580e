"""``torch.export`` programs: run by torch alone, without the network's classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from automl.types import InputError

FILE = "model.pt2"
PACKAGES = ()


def write(network: nn.Module, inputs: Tensor, folder: Path) -> Path:
    """Writes the network with any batch size; see ``automl.export``.

    Raises:
        InputError: torch cannot export the network.
    """
    # A batch of one would be taken for a constant.
    several = inputs if len(inputs) > 1 else inputs.expand(3, *inputs.shape[1:]).contiguous()
    try:
        program = torch.export.export(network, (several,), dynamic_shapes=({0: batch()},))
    except Exception as error:  # torch raises nearly anything here
        reason = str(error).strip().split("\n", 1)[0]
        raise InputError(f"this network cannot be exported by torch: {reason}") from error
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
