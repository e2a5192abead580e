"""A network as files that other programs run; one module per format.

Every format is a module with ``write(network, inputs, folder) -> file`` and
``run(file, inputs) -> output``; what was written is loaded again and compared with the network on
real inputs, of several batch sizes, before anyone relies on it.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from automl.hints import did_you_mean
from automl.training.state import evaluating
from automl.types import InputError

#: Formats of self-contained programs, each a module here: what it is.
PROGRAMS = {"pt2": "torch.export program", "onnx": "ONNX model"}

#: Formats of a run's network, each a module here too; ``packed`` needs the run's structure beside.
RUN_PROGRAMS = {**PROGRAMS, "packed": "layers in sparse formats"}

#: Largest difference to the network's own outputs, as a part of their largest magnitude.
TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Exported:
    """One file, and how well it does what the network does.

    Attributes:
        format: Name of the format.
        file: Where it is.
        error: Largest absolute difference of the outputs; of several, the one that is furthest off.
        scale: Largest magnitude of the network's own.
        examples: Compared on so many inputs.
    """

    format: str
    file: Path
    error: float
    scale: float
    examples: int

    @property
    def is_right(self) -> bool:
        """Whether the outputs agree within ``TOLERANCE``; NaN and infinities do not."""
        return _relative((self.error, self.scale)) <= TOLERANCE


def load_format(name: str) -> ModuleType:
    """The module of a format.

    Raises:
        InputError: There is none of that name, or its packages are not installed.
    """
    if name not in RUN_PROGRAMS:
        known = ["safetensors", *RUN_PROGRAMS, "optuna"]
        raise InputError(f"cannot export as {name!r}; {did_you_mean(name, known)}")
    module = importlib.import_module(f"automl.export.{name}")
    for package in module.PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise InputError(f"format {name} needs {package}: pip install 'prunepilot[{name}]'")
    return module


def export_program(name: str, network: nn.Module, inputs: Tensor, folder: Path) -> Exported:
    """Writes a network in one format, and compares what was written with it.

    Args:
        name: A key of ``RUN_PROGRAMS``.
        network: What to write, which stays on its device; any batch size can be run afterwards.
        inputs: Real inputs, shape (examples, ...), at least two.
        folder: Where to write; exists.

    Raises:
        InputError: The format is unknown or not installed, does not know an operator, or what was
            written cannot be run, and is removed.
    """
    module = load_format(name)
    inputs, network = inputs.cpu(), _on_cpu(network)
    with evaluating(network), torch.no_grad():
        file: Path = module.write(network, inputs[:2], folder)
    try:
        return compared(name, file, partial(module.run, file), network, inputs)
    except InputError:
        file.unlink()
        raise


def _on_cpu(network: nn.Module) -> nn.Module:
    """The network where it is on the CPU, else a copy: the caller's may be computing elsewhere."""
    tensors = (*network.parameters(), *network.buffers())
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return network
    return copy.deepcopy(network).cpu()


def compared(
    name: str, file: Path, run: Callable[[Tensor], Any], network: nn.Module, inputs: Tensor
) -> Exported:
    """How well what was written does what the network does.

    Args:
        name: Name of the format.
        file: What was written.
        run: Computes the outputs of what was loaded again.
        network: What was written, on the CPU.
        inputs: Real inputs on the CPU, shape (examples, ...), at least two.
    """
    # One example, all of them, and what is left over: batch sizes that were not traced.
    parts = [inputs[:1], inputs[1:]] if len(inputs) > 2 else [inputs[:1], inputs]
    with evaluating(network), torch.no_grad():
        wanted = [_outputs(network(part)) for part in parts]
        found = [_outputs(run(part)) for part in parts]
    if len({len(outputs) for outputs in (*wanted, *found)}) != 1:
        return Exported(name, file, math.inf, 0.0, len(inputs))
    pairs = zip(zip(*wanted, strict=True), zip(*found, strict=True), strict=True)
    differences = [_difference(*pair) for pair in pairs]
    error, scale = max(differences, key=_relative, default=(math.inf, 0.0))
    return Exported(name, file, error, scale, len(inputs))


def _outputs(returned: Any) -> list[Tensor]:
    """All numbers that a network returns, in whatever lists, tuples and dicts."""
    return [torch.as_tensor(leaf) for leaf in tree_leaves(returned) if leaf is not None]


def _difference(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> tuple[float, float]:
    """Largest difference of an output, and its largest magnitude, over several batches."""
    if any(one.shape != other.shape for one, other in zip(wanted, found, strict=True)):
        return math.inf, 0.0
    pairs = zip(wanted, found, strict=True)
    errors = [_largest(other.double() - one.double()) for one, other in pairs]
    # max() would drop a NaN that does not come first.
    error = max(errors, key=lambda one: math.inf if math.isnan(one) else one)
    return error, max(map(_largest, wanted))


def _largest(output: Tensor) -> float:
    """Largest magnitude; 0 where there are no elements, which agree as soon as shapes do."""
    return output.double().abs().max().item() if output.numel() else 0.0


def _relative(difference: tuple[float, float]) -> float:
    error, scale = difference
    return math.inf if math.isnan(error) else error / max(scale, 1e-6)


def require_right(done: Sequence[Exported]) -> None:
    """Refuses exports that compute something else.

    Raises:
        RuntimeError: The first that does.
    """
    for one in done:
        if not one.is_right:
            raise RuntimeError(
                f"{one.file} differs from the network by {one.error:.3g} "
                f"(its outputs go up to {one.scale:.3g}); do not use it"
            )
