"""Unlabelled inputs that repair is made on: what they must be, and how they are taken."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from automl.engines.errors import one_line
from automl.graph.trace import Trace
from automl.training.state import evaluating
from automl.types import InputError

#: Inputs in a batch whose statistics batch norms take.
_STATISTICS = 256


def require_one_input(trace: Trace, calibration: object) -> None:
    """Refuses calibration inputs that no repair can be made on."""
    if calibration is None:
        return
    if not isinstance(calibration, Tensor):
        raise InputError(
            "calibration must be a tensor of unlabelled inputs, shape (images, ...), got "
            f"{type(calibration).__name__}"
        )
    inputs = sum(step.op == "placeholder" for step in trace.plan.program)
    if inputs != 1:
        raise InputError(
            f"the network takes {inputs} inputs, and repair needs those of one: leave calibration "
            "out (on the command line repair=none)"
        )
    example = next(value for value in trace.example_inputs if isinstance(value, Tensor))
    if calibration.dim() != example.dim():
        raise InputError(
            f"calibration must have the dimensions of the example inputs, {tuple(example.shape)} "
            f"but for the first, got {tuple(calibration.shape)}"
        )
    if calibration.shape[1:] != example.shape[1:] or calibration.dtype != example.dtype:
        _require_runs(trace.model, calibration, example)


def _require_runs(model: nn.Module, calibration: Tensor, example: Tensor) -> None:
    """Refuses inputs unlike the example that the dense network fails on."""
    try:
        with evaluating(model), torch.inference_mode():
            model(calibration[: len(example)].to(example.device))
    except Exception as error:
        raise InputError(
            f"the network fails on calibration, {_described(calibration)}, where its example "
            f"inputs are {_described(example)}: {one_line(error)}"
        ) from error


def _described(inputs: Tensor) -> str:
    return f"{tuple(inputs.shape)} of {str(inputs.dtype).removeprefix('torch.')}"


def batches(inputs: Tensor) -> list[Tensor]:
    """Batches of 256, the last with one more where it would be alone: it has no variance."""
    parts = list(torch.split(inputs, _STATISTICS))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts
