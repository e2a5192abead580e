"""ONNX models with any batch size, for ONNX Runtime, OpenVINO, TensorRT and others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from automl.engines.errors import one_line
from automl.executors.onnx_runtime import PACKAGES, quiet_exporter
from automl.export.pt2 import batch
from automl.types import InputError

__all__ = ["PACKAGES", "run", "write"]

FILE = "model.onnx"


def write(network: nn.Module, inputs: Tensor, folder: Path) -> Path:
    """Writes the network with any batch size; see ``automl.export``.

    Raises:
        InputError: It holds an operator that ONNX does not have.
    """
    file = folder / FILE
    outputs = len(tree_leaves(network(inputs)))
    names = ["output"] if outputs == 1 else [f"output_{number}" for number in range(outputs)]
    with quiet_exporter():
        try:
            torch.onnx.export(
                network,
                (inputs,),
                file,
                input_names=["input"],
                output_names=names,
                dynamic_shapes=({0: batch()},),
                dynamo=True,
                external_data=False,
            )
        except torch.onnx.OnnxExporterError as error:
            reason = str(error).strip().split("\n", 1)[0]
            raise InputError(f"this network cannot be written as ONNX: {reason}") from error
    return file


def run(file: Path, inputs: Tensor) -> Any:
    """The output of a written model, or the list of them, by ONNX Runtime on the CPU.

    Raises:
        InputError: It has no kernel for an operator or a type.
    """
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        outputs = session.run(None, {"input": inputs.numpy()})
    except Exception as error:  # its errors have no base of their own
        raise InputError(
            f"this network cannot be run by ONNX Runtime: {one_line(error)}"
        ) from error
    return outputs[0] if len(outputs) == 1 else outputs
