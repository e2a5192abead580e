"""A network's exported graph: operators on tensors, in order."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node


@dataclass(frozen=True, eq=False)
class Program:
    """A network of one tensor that returns one.

    Attributes:
        nodes: All values: tensors, the input, and results of operators.
        tensors: Those that do not change.
        names: Dotted names of parameters.
        source: The input.
        output: The result.
    """

    nodes: tuple[Node, ...]
    tensors: Mapping[Node, Tensor]
    names: Mapping[str, str]
    source: Node
    output: Node

    @property
    def operators(self) -> list[Node]:
        """Values that are computed."""
        return [node for node in self.nodes if node.op == "call_function"]

    def module_of(self, node: Node) -> str:
        """Name of the module that has a weight."""
        return self.names.get(node.name, "").rpartition(".")[0]


def export(network: nn.Module, inputs: Sequence[Any]) -> Program | None:
    """Exports a network; None where that fails or it is not from one tensor to one.

    Args:
        network: In eval mode.
        inputs: Arguments of its forward.
    """
    if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or inputs[0].dtype != torch.float32:
        return None
    try:
        # Exporting does not work on inference tensors.
        with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.export.export(network, (inputs[0].detach().clone(),))
            exported = exported.run_decompositions({})
            return _program(exported)
    except Exception:  # Of its many kinds, all mean that it does not take this network.
        return None


def _program(exported: Any) -> Program | None:
    signature = exported.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    constants = signature.inputs_to_lifted_tensor_constants
    held = {**exported.state_dict, **exported.constants}
    nodes = [node for node in exported.graph.nodes if node.op != "output"]
    if any(node.op not in ("placeholder", "call_function") for node in nodes):
        return None
    tensors, sources = {}, []
    for node in nodes:
        name = names.get(node.name) or constants.get(node.name)
        if name is not None:
            tensors[node] = held[name].detach()
        elif node.op == "placeholder":
            sources.append(node)
    (output,) = [node for node in exported.graph.nodes if node.op == "output"]
    results = output.args[0]
    if len(sources) != 1 or len(results) != 1 or not isinstance(results[0], Node):
        return None
    if signature.buffers_to_mutate or signature.user_inputs_to_mutate:
        return None
    if not isinstance(results[0].meta["val"], Tensor) or results[0].op != "call_function":
        return None
    return Program(tuple(nodes), tensors, names, sources[0], results[0])


def operator_of(node: Node) -> str:
    """Name of a node's ATen operator without overload; empty where it calls none."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return ""
    overloads = {"conv2d": "default", "add": "Tensor", "clamp": "default", "clamp_min": "default"}
    name: str = target._schema.name.partition("::")[2]
    plain = overloads.get(name) in (None, target._overloadname)
    return name if plain else ""


def arguments_of(node: Node) -> dict[str, Any]:
    """Arguments of an ATen operator by name, with defaults."""
    target: Any = node.target
    schema = target._schema.arguments
    given = {argument.name: value for argument, value in zip(schema, node.args, strict=False)}
    defaults = {argument.name: argument.default_value for argument in schema}
    return {**defaults, **given, **node.kwargs}
