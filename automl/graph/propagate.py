"""Walks the exported graph once and lets every operator's handler pass the labels on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from automl.graph.deadline import Deadline
from automl.graph.export import Exported, concrete, module_path
from automl.graph.labels import Atoms, LabelSpace, always, squeeze_free, varies
from automl.graph.ops import HANDLERS, Labels, Step
from automl.graph.ops.pointwise import is_pointwise, pointwise
from automl.graph.ops.step import Parameters, Record, bound_arguments, operator_name, settle

#: Operators that take a part of a tensor.
_TAKING = ("slice", "narrow", "select", "index", "index_select", "gather")
#: Operators that multiply and accumulate but whose MACs no handler counts.
_UNCOUNTED = ("lstm", "gru", "rnn", "addbmm", "bilinear", "convolution")


@dataclass(frozen=True, eq=False)
class Propagated:
    """Labels of everything, and what they come to.

    Attributes:
        state: Labels of every node's result.
        parameters: Labels of parameters and buffers.
        record: Layers and integer arguments that follow labels.
        atoms: What every label lives by.
        unknown: (where, operator) of operators no handler knows.
    """

    state: dict[Node, Labels]
    parameters: Parameters
    record: Record
    atoms: Atoms
    unknown: tuple[tuple[str, str], ...]


def propagate(exported: Exported, excluded: frozenset[str], deadline: Deadline) -> Propagated:
    """Labels every tensor of the graph and resolves which channels belong together.

    Args:
        exported: The graph.
        excluded: Names of layers whose output channels stay.
        deadline: Raises when the analysis takes too long.
    """
    space, record = LabelSpace(), Record()
    parameters = Parameters(space)
    state: dict[Node, Labels] = {}
    unknown: list[tuple[str, str]] = []
    computed = _computed_weights(exported)
    for node in exported.graph.nodes:
        deadline.check()
        if node.op == "output":
            _freeze_outputs(node, state, space)
        elif node in computed:
            continue
        elif node.op == "call_function" and _is_tensorial(node):
            step = Step(node, exported, space, parameters, state, record)
            state[node] = settle(_handle(step, node, state, unknown))
    for name in _tensors_read(exported, computed):
        parameters.freeze(name, "a weight is computed from it")
    for layer in record.layers:
        if layer.name in excluded:
            space.freeze(layer.writes.labels, layer.name, "excluded by pattern")
    _tie_unread(exported, parameters, space)
    _finish(space)
    return Propagated(state, parameters, record, space.resolve(), tuple(unknown))


def _computed_weights(exported: Exported) -> set[Node]:
    """Nodes that compute layers' weights from other parameters (weight standardisation, LoRA).

    Their labels would be one per weight, which is slow, and nothing follows from them.
    """
    found: set[Node] = set()
    weights = [
        bound_arguments(node).get("weight")
        for node in exported.graph.nodes
        if node.op == "call_function" and operator_name(node).startswith(("conv", "linear"))
    ]
    waiting = [node for node in weights if isinstance(node, Node)]
    while waiting:
        node = waiting.pop()
        if node.op == "call_function" and node not in found and node not in exported.per_input:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def _tensors_read(exported: Exported, nodes: set[Node]) -> set[str]:
    sources = {source.name for node in nodes for source in node.all_input_nodes}
    names = {exported.tensors[name][0] for name in sources if name in exported.tensors}
    return {name for name in names if name is not None}


def _is_tensorial(node: Node) -> bool:
    return isinstance(node.meta.get("val"), (Tensor, list, tuple))


def _handle(
    step: Step, node: Node, state: dict[Node, Labels], unknown: list[tuple[str, str]]
) -> Labels:
    name = operator_name(node)
    if name == "getitem":
        return _getitem(node, state)
    handler = HANDLERS.get(name) or HANDLERS.get(name.removesuffix("_"))
    if handler is not None:
        return handler(step)
    if is_pointwise(node.target):
        return pointwise(step)
    if any(_is_labelled(state.get(n)) for n in node.all_input_nodes) or name in _UNCOUNTED:
        unknown.append((module_path(node) or node.name, str(node.target)))
    return step.give_up(f"read by the unknown operator {node.target}")


def _getitem(node: Node, state: dict[Node, Labels]) -> Labels:
    source, position = node.args[0], node.args[1]
    labels = state.get(source) if isinstance(source, Node) else None
    if isinstance(labels, list):
        part: Tensor = labels[concrete(position)]
        return part
    return always(concrete(tuple(node.meta["val"].shape)))


def _is_labelled(labels: Labels | None) -> bool:
    if labels is None:
        return False
    parts = [labels] if isinstance(labels, Tensor) else labels
    return any(bool((squeeze_free(part) >= 0).any()) for part in parts)


def _freeze_outputs(node: Node, state: dict[Node, Labels], space: LabelSpace) -> None:
    for source in node.all_input_nodes:
        labels = state.get(source)
        for part in [labels] if isinstance(labels, Tensor) else labels or []:
            space.freeze(part, "output", "written to the network's output")


def _tie_unread(exported: Exported, parameters: Parameters, space: LabelSpace) -> None:
    """Rows of a table that the network takes a part of go with those that it reads.

    Of positions beyond the length of the example inputs nothing says which channels they have.
    """
    names = {
        exported.tensors[source.name][0]
        for node in exported.graph.nodes
        if node.op == "call_function" and operator_name(node) in _TAKING
        for source in node.all_input_nodes
        if source.name in exported.tensors
    }
    tables = [labels for name, labels in parameters.elements.items() if name in names]
    if not tables:
        return
    component = space.resolve().component
    members = np.bincount(component)
    for labels in tables:
        classes = component[labels.numpy()]
        read = members[classes] > 1
        for dim in range(labels.dim()):
            others = tuple(other for other in range(labels.dim()) if other != dim)
            rows = np.flatnonzero(read.any(axis=others))
            if not 0 < len(rows) < labels.shape[dim]:
                continue
            of_rows = classes.take(rows, dim)
            if (of_rows == of_rows.take([0], dim)).all():  # else they are channels themselves
                space.tie(labels.narrow(dim, int(rows[0]), 1), labels, "rows that are not read")


def _finish(space: LabelSpace) -> None:
    """Keeps split channels rectangular and dimensions addressed by number whole."""
    atoms = space.resolve() if space.splits else None
    for split in space.splits:
        assert atoms is not None
        _keep_rectangular(space, atoms, split.labels, split.dims)
    if not space.pins:
        return
    atoms = space.resolve()
    for pin in space.pins:
        first, second = atoms.along(pin.labels, pin.dim)
        space.freeze_atoms(atoms, np.concatenate([first, second]), pin.where, pin.reason)


def _keep_rectangular(
    space: LabelSpace, atoms: Atoms, labels: Tensor, dims: tuple[int, ...]
) -> None:
    """A dimension split in several may only lose whole slices of each.

    Heads and places within heads may both go; otherwise only the innermost dimension that still
    varies is pruned and the outer ones are tied.
    """
    labels = squeeze_free(labels)
    factors = space.factors_of(labels)
    if factors is not None:
        for part in factors:
            _tie_shared(space, atoms, part, dims)
        return
    classes = torch.from_numpy(atoms.component[labels.clamp_min(0).numpy()])
    still = [dim for dim in dims if varies(classes, dim)]
    space.merge(labels, still[:-1], "a view that splits channels")


def _tie_shared(space: LabelSpace, atoms: Atoms, part: Tensor, dims: tuple[int, ...]) -> None:
    """A factor keeps the innermost dimension it varies along and is tied along the others.

    Of a fused projection (3, heads, places) that leaves one choice of heads and one of places.
    """
    classes = torch.from_numpy(atoms.component[part.clamp_min(0).numpy()])
    own = [dim for dim in dims if varies(classes, dim)][-1:]
    space.merge(part, [dim for dim in dims if dim not in own], "a view that splits channels")
