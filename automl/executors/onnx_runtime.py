"""ONNX Runtime as a dense baseline, and as what runs a network that it runs best."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def installed() -> bool:
    """Whether networks can be handed over to it."""
    return all(importlib.util.find_spec(package) is not None for package in PACKAGES)


class OnnxRuntime(nn.Module):
    """A network of one tensor, run by ONNX Runtime on one thread.

    Inputs of another shape than the example's go to the network that it was made of.
    """

    def __init__(self, network: nn.Module, example: Tensor, threads: int = 1) -> None:
        """Exports the network and starts a session.

        Raises:
            Exception: Whatever the exporter or ONNX Runtime raise about a network that they do
                not take.
        """
        super().__init__()
        self._network = (network,)
        self._shape = example.shape
        self._session = _session(network, example, threads)
        self._name = self._session.get_inputs()[0].name

    def forward(self, x: Tensor) -> Any:
        """The network's output for the shape it was made for, or any other."""
        if x.shape != self._shape or x.dtype != torch.float32:
            return self._network[0](x)
        return torch.from_numpy(self._session.run(None, {self._name: x.numpy()})[0])


class OnnxFile(nn.Module):
    """An ONNX model of one input, run by ONNX Runtime on one thread."""

    def __init__(self, file: Path, threads: int = 1) -> None:
        """Starts a session; the file is read once."""
        super().__init__()
        self._session = _open(file.read_bytes(), threads)
        self._name = self._session.get_inputs()[0].name

    def forward(self, x: Tensor) -> Tensor:
        """The model's first output."""
        return torch.from_numpy(self._session.run(None, {self._name: x.numpy()})[0])


def _session(network: nn.Module, example: Tensor, threads: int) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        with quiet_exporter():
            torch.onnx.export(network, (example,), file, dynamo=True, external_data=False)
        return _open(file.read_bytes(), threads)


def _open(model: bytes, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.log_severity_level = 3
    # Threads that spin for work take the core from whoever has it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """Keeps the exporter's progress and advice to itself."""
    level = logging.getLogger("onnxscript").level
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.getLogger("onnxscript").setLevel(level)
