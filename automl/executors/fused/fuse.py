"""Finds the steps of a network in its exported graph.

A convolution takes with it what only it is read by, and what only reads it: a depthwise
convolution before it, a sum with another tensor and a ReLU (or ReLU6, or other limits) behind it.
Convolutions with few weights left run on the sparse kernel, and so do dense ones with few input
channels (the first of a network), for which it is as fast. The others have their weights in
oneDNN's order, with their ReLU; fully connected layers run as they were packed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import Node

from automl.executors.conv import pack_conv2d
from automl.executors.conv_plan import Pair
from automl.executors.depthwise import NO_BOUNDS, Depthwise
from automl.executors.fused import dense
from automl.executors.fused.network import FusedNetwork
from automl.executors.fused.program import Program, arguments_of, export, operator_of
from automl.executors.fused.steps import (
    Convolve,
    MaxPool,
    MeanPool,
    Multiply,
    Operate,
    Step,
    View,
)
from automl.executors.packed import PackedLinear
from automl.executors.rows import Float32

#: Convolutions with more of their weights left are dense ones.
_DENSEST = 0.4
#: Input channels with which dense convolutions run on the sparse kernel too.
_FEW_CHANNELS = 4

#: Operators that leave the numbers as they are, for tensors in one piece.
_SAME = ("view", "reshape", "flatten", "squeeze", "unsqueeze", "clone", "alias", "dropout",
         "contiguous", "_unsafe_view")  # fmt: skip
_LIMITS = ("relu", "relu6", "hardtanh", "clamp", "clamp_min")


def fuse(
    network: nn.Module,
    inputs: Sequence[Any],
    layers: Mapping[str, nn.Module],
    gaining: Collection[str] = (),
) -> FusedNetwork | None:
    """A network as fused steps.

    Args:
        network: In eval mode, batch norms folded; left as it is.
        inputs: Arguments of its forward.
        layers: Modules for fully connected layers by name, where they are packed.
        gaining: Convolutions that gain on the sparse kernel, however many weights they have left.

    Returns:
        A module with the same output, for inputs of this shape; None where the network cannot be
        exported, takes or returns other than one tensor, or has no convolution with few weights.
    """
    program = export(network, inputs)
    if program is None:
        return None
    maker = _Maker(program, layers, gaining)
    steps = maker.steps()
    if not maker.zeros:
        return None
    source = maker.number[program.source], tuple(inputs[0].shape)
    values: list[Any] = [None] * len(maker.number)
    for node, tensor in program.tensors.items():
        values[maker.number[node]] = tensor
    output = maker.number[program.output]
    return FusedNetwork(steps, values, source, output, network, maker.fused)


@dataclass(frozen=True)
class _Convolution:
    """A convolution as the graph has it, by the name of its module."""

    name: str
    x: Node
    weight: Tensor
    bias: Tensor | None
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    @property
    def is_depthwise(self) -> bool:
        """Whether ``Depthwise`` can be it."""
        channels, per_group, *kernel = self.weight.shape
        square = self.stride[0] == self.stride[1] and self.stride[0] in (1, 2)
        own = (channels, per_group, *kernel) == (self.groups, 1, 3, 3)
        return own and square and self.dilation == self.padding == (1, 1)

    @property
    def is_pointwise(self) -> bool:
        """Whether every pixel is convolved by itself."""
        plain = self.stride == self.dilation == (1, 1) and self.padding == (0, 0)
        return tuple(self.weight.shape[2:]) == (1, 1) and self.groups == 1 and plain

    @property
    def is_taken(self) -> bool:
        """Whether it runs on the sparse kernel."""
        if self.groups == 1 and self.weight.shape[1] <= _FEW_CHANNELS:
            return True
        return self.has_zeros

    @property
    def has_zeros(self) -> bool:
        """Whether few weights are left."""
        return int(np.count_nonzero(self.weight.numpy())) <= _DENSEST * self.weight.numel()

    def as_dense(self) -> Callable[[Tensor], Tensor] | None:
        """It as oneDNN runs it."""
        form = (self.padding, self.stride, self.dilation, self.groups)
        shape = list(self.x.meta["val"].shape)
        return dense.convolution(self.weight, self.bias, form, shape)

    def numpy_bias(self) -> Float32:
        """The bias, or zeros."""
        if self.bias is None:
            return np.zeros(len(self.weight), np.float32)
        return np.asarray(self.bias.numpy(), np.float32)


@dataclass
class _Tail:
    """What follows a convolution: the last node that belongs to it."""

    last: Node
    other: Node | None = None
    bounds: Float32 = field(default_factory=lambda: NO_BOUNDS)


class _Maker:
    """Makes steps of one graph."""

    def __init__(
        self, program: Program, layers: Mapping[str, nn.Module], gaining: Collection[str]
    ) -> None:
        self.program, self.layers, self.gaining = program, layers, gaining
        self.number = {node: number for number, node in enumerate(program.nodes)}
        self.fused: dict[str, int] = {}
        self.zeros = False

    def steps(self) -> list[Step]:
        """In the order in which they can run."""
        made: dict[Node, Step] = {}
        gone: set[Node] = set()
        for node in self.program.nodes:
            found = None if node in gone else self.convolution(node)
            if found is None or not (found.is_taken or found.name in self.gaining):
                continue
            tail, x, before = self.tail(node, gone | made.keys()), found.x, None
            first = self.depthwise(found, gone)
            if first is not None:
                x, before = first
            fused = self.convolve(found, tail, x, before)
            made[tail.last] = fused
            self.fused[found.name] = fused.packed.nbytes
            self.zeros |= found.has_zeros or found.name in self.gaining
            gone |= self.between(node, tail.last)
        in_buffers = set(made)
        for node in self.program.operators:
            if node in made or node in gone:
                continue
            step = self.in_buffer(node) if _reads_first(node) in in_buffers else None
            if step is not None:
                in_buffers.add(node)
            made[node] = step or self.operate(node)
        # A convolution runs where its last node stands: all that it reads stands before.
        return [made[node] for node in self.program.operators if node in made]

    def in_buffer(self, node: Node) -> Step | None:
        """A step that fills a buffer from what lies in one; None where there is none for it."""
        name, found = operator_of(node), arguments_of(node)
        read, number = (self.number[_reads_first(node)],), self.number[node]
        like = node.meta.get("val")
        if not isinstance(like, Tensor) or like.dtype != torch.float32:
            return None
        shape = tuple(like.shape)
        if name in _SAME and len(node.all_input_nodes) == 1 and like.is_contiguous():
            return View(read, number, shape)
        if name == "max_pool2d":
            window = _window(found) if len(shape) == 4 else None
            return None if window is None else MaxPool(read, number, shape, window)
        if _is_mean_of_images(node):
            return MeanPool(read, number, shape)
        if name == "linear":
            layer = self.linear(node)
            return None if layer is None else Multiply(read, number, shape, layer)
        return None

    def convolution(self, node: Node) -> _Convolution | None:
        """A node as a convolution with a weight that does not change, None if it is none."""
        if operator_of(node) != "conv2d":
            return None
        found = arguments_of(node)
        weight, bias = self.tensor(found["weight"]), self.tensor(found["bias"])
        fixed = weight is not None and (bias is not None or found["bias"] is None)
        if not fixed or isinstance(found["padding"], str) or weight.dtype != torch.float32:
            return None
        if found["input"].meta["val"].dim() != 4 or not bool(weight.isfinite().all()):
            return None
        stride, padding, dilation = map(
            _pair, (found["stride"], found["padding"], found["dilation"])
        )
        name = self.program.module_of(found["weight"])
        form = (stride, padding, dilation, int(found["groups"]))
        return _Convolution(name, found["input"], weight, bias, *form)

    def tensor(self, value: Any) -> Any:
        """The tensor that a node stands for, if that does not change."""
        return self.program.tensors.get(value) if isinstance(value, Node) else None

    def tail(self, node: Node, taken: Set[Node]) -> _Tail:
        """What belongs to a convolution behind it, and not to another one."""
        tail = _Tail(node)
        reader = _only_reader(node)
        if reader is not None and operator_of(reader) == "add" and reader not in taken:
            other = self.addend(reader, node)
            if other is not None:
                tail.last, tail.other = reader, other
                reader = _only_reader(reader)
        if reader is not None and operator_of(reader) in _LIMITS:
            limits = _limits(reader)
            if limits is not None:
                tail.last, tail.bounds = reader, limits
        return tail

    def addend(self, node: Node, own: Node) -> Node | None:
        """What a sum adds to ``own``, if that is a tensor of the same shape."""
        found = arguments_of(node)
        if found.get("alpha", 1) != 1:
            return None
        both = [found["self"], found["other"]]
        others = [value for value in both if value is not own]
        if len(others) != 1 or not isinstance(others[0], Node):
            return None
        other, like = others[0].meta.get("val"), own.meta["val"]
        if not isinstance(other, Tensor) or other.shape != like.shape:
            return None
        return others[0] if other.dtype == like.dtype else None

    def depthwise(self, found: _Convolution, gone: set[Node]) -> tuple[Node, Depthwise] | None:
        """What a pointwise convolution reads: the input and the depthwise convolution on it."""
        node, bounds = found.x, NO_BOUNDS
        if not found.is_pointwise or _only_reader(node) is None:
            return None
        between = {node}
        if operator_of(node) in _LIMITS:
            limits, behind = _limits(node), arguments_of(node)[_first(node)]
            if limits is None or _only_reader(behind) is None:
                return None
            node, bounds = behind, limits
            between.add(node)
        first = self.convolution(node)
        if first is None or not first.is_depthwise or between & gone:
            return None
        gone |= between
        weight, bias = first.weight.numpy(), first.numpy_bias()
        made = Depthwise.of(weight, bias, first.stride[0], bounds)
        self.fused[first.name] = made.kernel.nbytes
        return first.x, made

    def convolve(
        self, found: _Convolution, tail: _Tail, x: Node, before: Depthwise | None
    ) -> Convolve:
        """The step."""
        packed = pack_conv2d(
            found.weight.numpy(),
            found.numpy_bias(),
            stride=found.stride,
            padding=found.padding,
            dilation=found.dilation,
            groups=found.groups,
        )
        reads = (x,) if tail.other is None else (x, tail.other)
        batch, _, height, width = x.meta["val"].shape
        numbers = tuple(self.number[node] for node in reads)
        at = self.number[tail.last]
        return Convolve(packed, before, tail.bounds, numbers, at, batch, (height, width))

    def between(self, first: Node, last: Node) -> set[Node]:
        """Nodes from the first to before the last, each the only reader of the one before."""
        nodes = set()
        while first is not last:
            nodes.add(first)
            (first,) = first.users
        return nodes

    def operate(self, node: Node) -> Operate:
        """Anything else."""
        found = self.convolution(node)
        x, function = (None, None) if found is None else (found.x, found.as_dense())
        if operator_of(node) == "linear":
            x = arguments_of(node)["input"]
            function = self.layers.get(self.program.module_of(arguments_of(node)["weight"]))
        if function is not None and x is not None:
            return Operate(function, (self.number[x],), self.number[node])
        reads = tuple(node.all_input_nodes)
        numbers = tuple(self.number[read] for read in reads)
        return Operate(_function(node, reads), numbers, self.number[node])

    def linear(self, node: Node) -> PackedLinear | None:
        """A fully connected layer as it was packed, or dense for one example."""
        found = arguments_of(node)
        module = self.layers.get(self.program.module_of(found["weight"]))
        if module is not None:
            packed = getattr(module, "packed", None)
            return packed if isinstance(packed, PackedLinear) else None
        weight, bias = self.tensor(found["weight"]), self.tensor(found["bias"])
        if weight is None or (bias is None and found["bias"] is not None):
            return None
        if found["input"].meta["val"].numel() != weight.shape[1]:
            return None
        start = np.zeros(len(weight), np.float32) if bias is None else bias.numpy()
        return dense.AlignedLinear.of(weight.numpy(), start)


def _reads_first(node: Node) -> Any:
    return node.args[0] if node.args else None


def _window(found: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Heights and widths of a window, its steps and the padding; None for what is out of reach."""
    if found["ceil_mode"] or _pair(found["dilation"]) != (1, 1):
        return None
    stride = _pair(found["stride"] or found["kernel_size"])
    return (*_pair(found["kernel_size"]), *stride, *_pair(found["padding"]))


def _is_mean_of_images(node: Node) -> bool:
    """Whether an operator takes the mean over height and width."""
    name, found = operator_of(node), arguments_of(node)
    if name == "adaptive_avg_pool2d":
        whole = _pair(found["output_size"]) == (1, 1)
    elif name == "mean" and found.get("dim"):
        whole = sorted(dim % 4 for dim in found["dim"]) == [2, 3] and found["dtype"] is None
    else:
        return False
    return whole and found["self"].meta["val"].dim() == 4


def _function(node: Node, reads: tuple[Node, ...]) -> Callable[..., Any]:
    """A node as a function of what it reads."""
    target: Any = node.target
    rest, more = node.args[len(reads) :], set[Node]()
    torch.fx.map_arg((rest, node.kwargs), more.add)
    if reads == node.args[: len(reads)] and not more:
        return lambda *tensors: target(*tensors, *rest, **node.kwargs)

    def call(*tensors: Any) -> Any:
        given = dict(zip(reads, tensors, strict=True))
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), given.__getitem__)
        return target(*args, **kwargs)

    return call


def _only_reader(node: Node) -> Node | None:
    """The one node that reads a node's value, once."""
    readers = list(node.users)
    if len(readers) != 1 or readers[0].op != "call_function":
        return None
    return readers[0]


def _first(node: Node) -> str:
    return "input" if "input" in arguments_of(node) else "self"


def _limits(node: Node) -> NDArray[np.float32] | None:
    """The least and the largest number that a node lets through."""
    found, name = arguments_of(node), operator_of(node)
    low: Any
    high: Any
    if name in ("relu", "relu6"):
        low, high = 0.0, 6.0 if name == "relu6" else None
    elif name == "hardtanh":
        low, high = found["min_val"], found["max_val"]
    else:
        low, high = found["min"], found.get("max")
    bounds = (-math.inf if low is None else low, math.inf if high is None else high)
    if not all(isinstance(bound, int | float) for bound in bounds):
        return None
    return np.array(bounds, np.float32)


def _pair(values: Any) -> Pair:
    both = [values] if isinstance(values, int) else list(values)
    return int(both[0]), int(both[-1])
