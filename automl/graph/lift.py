"""Which operators of an exported graph stand for the call of a module of the network.

Exported graphs call operators on bare parameters and freeze batch norm and dropout in the mode
they were exported in; calls of the modules train, save and load like the original.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.fx import Node

from automl.graph.export import Exported, module_path
from automl.graph.ops.step import bound_arguments, operator_name

#: Operators that stand for a call of a module: the class, and which settings must be its own.
_LIFTED: dict[str, tuple[Any, tuple[str, ...]]] = {
    "conv1d": (nn.Conv1d, ()),
    "conv2d": (nn.Conv2d, ()),
    "conv3d": (nn.Conv3d, ()),
    "conv_transpose1d": (nn.ConvTranspose1d, ("output_padding",)),
    "conv_transpose2d": (nn.ConvTranspose2d, ("output_padding",)),
    "conv_transpose3d": (nn.ConvTranspose3d, ("output_padding",)),
    "linear": (nn.Linear, ()),
    "layer_norm": (nn.LayerNorm, ("eps",)),
    "group_norm": (nn.GroupNorm, ("num_groups", "eps")),
    "embedding": (nn.Embedding, ()),
    "prelu": (nn.PReLU, ()),
}
_CONVOLUTION_SETTINGS = ("stride", "padding", "dilation", "groups")
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


@dataclass(frozen=True)
class Lifted:
    """A call of a module that replaces an operator."""

    path: str
    data: Node


def owner_of(node: Node, exported: Exported, model: nn.Module) -> tuple[str, nn.Module] | None:
    """Path and module whose ``weight`` (or running mean) the operator reads."""
    arguments = bound_arguments(node)
    for key in ("weight", "running_mean"):
        source = arguments.get(key)
        if isinstance(source, Node) and source.name in exported.tensors:
            dotted = exported.tensors[source.name][0]
            if dotted is not None and dotted.rpartition(".")[2] == key:
                path = exported.home(dotted, node)
                return path, model.get_submodule(path)
    return None


def lift(node: Node, exported: Exported, model: nn.Module) -> Lifted | None:
    """The module call an operator stands for, None if there is none."""
    name = operator_name(node)
    arguments = bound_arguments(node)
    if name in ("dropout", "feature_dropout", "alpha_dropout"):
        path = module_path(node)
        is_free = isinstance(arguments["input"], Node) and path not in exported.hooked
        if is_free and _is_dropout(model, path):
            return Lifted(path, arguments["input"])
        return None
    owner = owner_of(node, exported, model)
    if owner is None:
        return None
    path, module = owner
    if path in exported.hooked:  # what its hooks do is in the graph, and would be done twice
        return None
    is_its_call = _is_batch_norm if name == "batch_norm" else _is_plain
    if not (is_its_call(module, name, arguments) and _same_tensors(module, arguments, exported)):
        return None
    data = arguments["indices" if name == "embedding" else "self" if name == "prelu" else "input"]
    return Lifted(path, data)


def _is_dropout(model: nn.Module, path: str) -> bool:
    try:
        return isinstance(model.get_submodule(path), _DROPOUTS)
    except AttributeError:
        return False


def multihead_dropout(model: nn.Module, path: str) -> float:
    """Of a multihead attention, whose functional form leaves it out; 0 for any other module."""
    try:
        module = model.get_submodule(path)
    except AttributeError:
        return 0.0
    return float(module.dropout) if isinstance(module, nn.MultiheadAttention) else 0.0


def _is_batch_norm(module: nn.Module, name: str, arguments: dict[str, Any]) -> bool:
    """Whether it is or quacks like a batch norm that would do what the operator does."""
    fields = ("running_mean", "running_var", "eps", "momentum", "num_features")
    if not all(hasattr(module, field) for field in fields):
        return False
    uses_batch = module.running_mean is None
    return bool(arguments["eps"] == module.eps and arguments["training"] == uses_batch)


def _is_plain(module: nn.Module, name: str, arguments: dict[str, Any]) -> bool:
    """Whether the module, called by itself, would do what the operator does."""
    cls, settings = _LIFTED.get(name, (None, ()))
    if cls is None or type(module).forward is not cls.forward:
        return False
    if name.startswith("conv"):
        settings = (*_CONVOLUTION_SETTINGS, *settings)
    return all(_same(arguments.get(key), getattr(module, key)) for key in settings)


def _same(here: Any, there: Any) -> bool:
    """Whether a setting is the module's; lists of one stand for as many as there are."""
    if not isinstance(here, (list, tuple)) or isinstance(there, str):
        return bool(here == there)
    expected = [there] * len(here) if isinstance(there, int) else list(there)
    return list(here) == expected or (len(here) == 1 and set(expected) == set(here))


def _same_tensors(module: nn.Module, arguments: dict[str, Any], exported: Exported) -> bool:
    """Whether weight and bias are the module's own, not computed or another's."""
    for key in ("weight", "bias"):
        node = arguments.get(key)
        has = getattr(module, key, None) is not None
        if has != isinstance(node, Node):
            return False
        if isinstance(node, Node):
            _, tensor = exported.tensors.get(node.name, (None, None))
            if tensor is not getattr(module, key):
                return False
    return True
