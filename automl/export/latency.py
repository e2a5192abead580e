"""Latency of exported files beside the network in torch, taking turns on one thread."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from torch import Tensor, nn

from automl.executors.latency import Latency, measure_latency
from automl.executors.onnx_runtime import OnnxFile
from automl.export import Exported
from automl.export.packed import load_packed
from automl.paths import atomic_write
from automl.training.state import evaluating

FILE = "latency.json"
TORCH = "torch"


def side_by_side(
    network: nn.Module,
    done: Sequence[Exported],
    example: Tensor,
    budget_s: float,
    trust: Sequence[str] = (),
) -> dict[str, Latency]:
    """Times one example on the CPU; ratios refer to torch.

    Args:
        network: The network that was exported.
        done: What was exported; ONNX models and packed layers are run, other formats are not.
        example: One input, shape (1, ...).
        budget_s: For about this long.
        trust: See ``load_packed``.

    Returns:
        ``torch``, ``onnxruntime`` and ``packed`` -> latency; empty where there is only torch.
    """
    networks: dict[str, nn.Module] = {TORCH: network}
    for one in done:
        if one.format == "onnx":
            networks["onnxruntime"] = OnnxFile(one.file)
        elif one.format == "packed":
            networks["packed"] = load_packed(one.file.parent, trust)
    if len(networks) == 1:
        return {}
    with evaluating(network):
        return measure_latency(networks, example.cpu(), budget_s=budget_s)


def write(latencies: Mapping[str, Latency], example: Tensor, folder: Path) -> Path:
    """Writes them as JSON."""
    document = {
        "schema": "prunepilot/export-latency",
        "version": 1,
        "device": "cpu",
        "threads": 1,
        "input_shape": list(example.shape),
        "networks": {name: asdict(latency) for name, latency in latencies.items()},
    }
    atomic_write(folder / FILE, json.dumps(document, indent=2) + "\n")
    return folder / FILE
