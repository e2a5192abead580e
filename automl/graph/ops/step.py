"""What a handler sees of the operator it handles, and what it can record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from automl.graph.export import Exported, concrete, module_path, shape_of
from automl.graph.labels import (
    LabelSpace,
    Pin,
    always,
    compact,
    squeeze_free,
    varies,
    varying_dims,
)

Labels = Tensor | list[Tensor]
Handler = Callable[["Step"], Labels]

HANDLERS: dict[str, Handler] = {}


def handles(*names: str) -> Callable[[Handler], Handler]:
    """Registers a handler for operators by their ATen names, without overload."""

    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(names, handler))
        return handler

    return register


@dataclass(frozen=True, eq=False)
class Length:
    """The size of one dimension of labelled data, to be known after pruning."""

    labels: Tensor
    dim: int


@dataclass(frozen=True, eq=False)
class Rewrite:
    """An integer argument that follows the length of labelled data.

    Attributes:
        node: Operator whose argument it is.
        path: Argument name and, for lists, the position.
        length: The length it follows.
        whole: Where the argument counts from the end of a dimension, that dimension: once it
            shrinks, an end that stays must be counted from the start.
    """

    node: Node
    path: tuple[str | int, ...]
    length: Length
    whole: Length | None = None


@dataclass(frozen=True, eq=False)
class Layer:
    """Something that multiplies and accumulates.

    Attributes:
        name: Unique name.
        kind: As in :class:`automl.types.LayerSpec`.
        node: The operator.
        weight: Name of the weight, None for products of two activations.
        bias: Name of the bias.
        reads: Labels of the channels read, over all groups.
        writes: Labels of the channels written.
        factors: Lengths whose product is proportional to the MACs.
        macs: Dense MACs of one batch of the export's size.
        geometry: kernel_size, stride, groups and map sizes for the LayerSpec.
        opaque: Why nothing about it can change, None where labels say what can.
    """

    name: str
    kind: str
    node: Node
    weight: str | None
    bias: str | None
    reads: Length
    writes: Length
    factors: tuple[Length, ...]
    macs: int
    geometry: Mapping[str, Any]
    opaque: str | None = None


@dataclass(frozen=True, eq=False)
class NamedSize:
    """An attribute of a module that is known to follow the length of labelled data."""

    module: str
    attribute: str
    length: Length


@dataclass
class Record:
    """All that propagation finds out besides labels."""

    layers: list[Layer] = field(default_factory=list)
    rewrites: list[Rewrite] = field(default_factory=list)
    sizes: list[NamedSize] = field(default_factory=list)


class Parameters:
    """Labels of parameters and buffers, by name.

    Weights of layers are labelled per dimension (``vectors``), everything else per element.
    """

    def __init__(self, space: LabelSpace) -> None:
        """Starts with none labelled."""
        self._space = space
        self.vectors: dict[str, dict[int, Tensor]] = {}
        self.elements: dict[str, Tensor] = {}

    def vector(self, name: str, shape: tuple[int, ...], dim: int) -> Tensor:
        """Labels of one dimension of a layer's weight."""
        dims = self.vectors.setdefault(name, {})
        if dim not in dims:
            dims[dim] = self._space.fresh(shape[dim])
        return dims[dim]

    def element(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Labels of every element."""
        if name not in self.elements:
            self.elements[name] = self._space.fresh(*shape)
        return self.elements[name]

    def freeze(self, name: str, reason: str) -> None:
        """Keeps a parameter or buffer whole."""
        for labels in (*self.vectors.get(name, {}).values(), self.elements.get(name)):
            self._space.freeze(labels, name, reason)


class Step:
    """One operator during propagation."""

    def __init__(
        self,
        node: Node,
        exported: Exported,
        space: LabelSpace,
        parameters: Parameters,
        state: dict[Node, Labels],
        record: Record,
    ) -> None:
        """Binds the operator's arguments to the names in its schema."""
        self.node = node
        self.space = space
        self.record = record
        self.parameters = parameters
        self._exported = exported
        self._state = state
        self.args = bound_arguments(node)

    @property
    def name(self) -> str:
        """ATen name without overload."""
        return operator_name(self.node)

    @property
    def where(self) -> str:
        """For people: the module, else the operator."""
        return module_path(self.node) or self.node.name

    @property
    def batch(self) -> int:
        """Batch size that shapes are read at."""
        return self._exported.batch

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of the (single) output."""
        return shape_of(self.node)

    def value(self, name: str) -> Any:
        """An argument, symbolic sizes made concrete."""
        return concrete(self.args[name])

    def tensor_args(self) -> list[Node]:
        """All tensor-valued inputs, in order."""
        return [n for n in self.node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor argument."""
        return shape_of(self.args[name])

    def labels(self, name: str) -> Tensor:
        """Labels of a tensor argument, in its shape."""
        return self.labels_of(self.args[name])

    def labels_of(self, node: Node) -> Tensor:
        """Labels of a node, in its shape; -1 where nothing is labelled."""
        if self.is_named_tensor(node):
            name = str(self._exported.tensors[node.name][0])
            if name in self.parameters.vectors:  # its layer's handler ties it; here it is opaque
                for dim in self.parameters.vectors[name].values():
                    self.space.freeze(dim, name, "a layer's weight that is also used as data")
                return always(shape_of(node))
            if not node.meta["val"].is_floating_point():
                return always(shape_of(node))
            return self.parameters.element(name, shape_of(node))
        labels = self._state.get(node)
        return labels if isinstance(labels, Tensor) else always(shape_of(node))

    def is_named_tensor(self, node: Any) -> bool:
        """Whether the node is a parameter or buffer of the model."""
        tensors = self._exported.tensors
        return isinstance(node, Node) and node.name in tensors and tensors[node.name][0] is not None

    def tensor_name(self, name: str) -> str | None:
        """Dotted name of the parameter or buffer an argument is, None if it is something else."""
        node = self.args.get(name)
        if not isinstance(node, Node) or not self.is_named_tensor(node):
            return None
        return str(self._exported.tensors[node.name][0])

    def layer_name(self, weight: str) -> str:
        """Name of the layer that reads a weight: its module, else the weight itself."""
        return self._exported.home(weight, self.node) or weight

    def weight(self, name: str) -> str | None:
        """Like :meth:`tensor_name`, but None where the tensor is already used as data."""
        dotted = self.tensor_name(name)
        return None if dotted in self.parameters.elements else dotted

    def columns(self, labels: Tensor, dim: int) -> Tensor:
        """Labels of the positions of ``dim``, factoring out one other dimension that varies."""
        dim = dim % labels.dim()
        others = [d for d in varying_dims(labels) if d != dim]
        if len(others) != 1 or not varies(labels, dim):
            return self.space.channels(labels, dim, self.where)
        return self.space.factor(labels, others[0], dim)[1]

    def only_channels(self, labels: Tensor, dim: int) -> Tensor:
        """As :meth:`columns`, for an operator that mixes another dimension, which has to stay."""
        others = [d for d in varying_dims(labels) if d != dim % labels.dim()]
        if len(others) != 1 or not varies(labels, dim):
            return self.space.channels(labels, dim, self.where)
        mixed, channels = self.space.factor(labels, others[0], dim)
        self.space.freeze(mixed, self.where, "its positions are mixed")
        return channels

    def constant(self, node: Node) -> Tensor | None:
        """Value of a node that does not depend on inputs or trained parameters."""
        if node.name in self._exported.tensors:
            return self._exported.tensors[node.name][1]
        if node.op != "call_function" or node.name in self._exported.inputs:
            return None
        values = {n: self.constant(n) for n in node.all_input_nodes}
        if any(v is None for v in values.values()):
            return None
        with torch.no_grad():
            arguments = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
            result = node.target(*arguments[0], **arguments[1])  # type: ignore[operator]
        return result if isinstance(result, Tensor) else None

    def give_up(self, reason: str) -> Labels:
        """Freezes everything the operator reads and calls its results always there."""
        for node in self.tensor_args():
            labels = self.labels_of(node)
            if bool((squeeze_free(labels) >= 0).any()):
                self.space.freeze(labels, self.where, reason)
        value = self.node.meta.get("val")
        if isinstance(value, Tensor):
            return always(self.out_shape)
        if isinstance(value, (list, tuple)):
            return [
                always(concrete(tuple(v.shape))) if isinstance(v, Tensor) else always(())
                for v in value
            ]
        return always(())

    def count_opaque(self, name: str, kind: str, macs: int, reason: str, **geometry: Any) -> None:
        """Records a layer of which only the MACs are known."""
        plain = {"kernel_size": (), "stride": (), "groups": 1}
        shape = self.out_shape
        maps = {"in_map": shape[1:-1], "out_map": shape[1:-1]}
        length = Length(always((shape[-1],)), 0)
        self.record.layers.append(
            Layer(
                name=name,
                kind=kind,
                node=self.node,
                weight=None,
                bias=None,
                reads=geometry.pop("reads", length),
                writes=geometry.pop("writes", length),
                factors=(),
                macs=macs,
                geometry={**plain, **maps, **geometry},
                opaque=reason,
            )
        )

    def pin(self, labels: Tensor, dim: int, reason: str) -> None:
        """Demands that a dimension stays whole, because positions are addressed by number."""
        if varies(labels, dim):
            self.space.pins.append(Pin(labels, dim % labels.dim(), self.where, reason))

    def rewrite(
        self, path: tuple[str | int, ...], labels: Tensor, dim: int, whole: Tensor | None = None
    ) -> None:
        """Records that an integer argument follows the size of ``dim`` of ``labels``."""
        of = None if whole is None else Length(whole, dim)
        self.record.rewrites.append(Rewrite(self.node, path, Length(labels, dim), of))

    def output_like(self, channels: Tensor, dim: int) -> Tensor:
        """Labels of the output's shape that vary along ``dim`` only."""
        shape = [1] * len(self.out_shape)
        shape[dim] = -1
        return channels.view(shape).expand(self.out_shape)


def operator_name(node: Node) -> str:
    """ATen name without overload, or the name of a Python operator."""
    return str(getattr(node.target, "__name__", node.target)).split(".")[0]


def bound_arguments(node: Node) -> dict[str, Any]:
    """Arguments by their schema's names, defaults filled in; {} for Python operators."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {}
    bound: dict[str, Any] = {}
    for index, argument in enumerate(schema.arguments):
        if index < len(node.args):
            bound[argument.name] = node.args[index]
        elif argument.name in node.kwargs:
            bound[argument.name] = node.kwargs[argument.name]
        elif argument.has_default_value():
            bound[argument.name] = argument.default_value
    return bound


def settle(labels: Labels) -> Labels:
    """Compacts what a handler returned."""
    if isinstance(labels, Tensor):
        return compact(labels)
    return [compact(part) for part in labels]
