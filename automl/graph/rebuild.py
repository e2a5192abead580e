"""Writes a ``torch.fx.GraphModule`` from a plan's program."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from automl.graph.program import find_setting, runnable_target
from automl.plan import IndexPlan, Instruction
from automl.types import InputError


class SlimGraph(GraphModule):
    """A graph module whose copies are whole.

    Those of torch.fx lose hooks and what the forward does not use, and save every buffer.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> SlimGraph:
        """Everything it has, and code of its own."""
        copied = _empty(type(self).__name__)
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        copied.graph = copied._graph
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        """As torch.fx does, by its code; see :func:`_unpickled`."""
        return _unpickled, (type(self).__name__, *super().__reduce__())


def _empty(name: str) -> SlimGraph:
    module = SlimGraph.__new__(SlimGraph)
    type(module).__name__ = name  # torch.fx gives every instance a class
    return module


def _unpickled(
    name: str, make: Callable[..., GraphModule], arguments: tuple[dict[str, Any], str]
) -> SlimGraph:
    """The graph that torch.fx makes anew of the code, on everything the module had."""
    state, imports = arguments
    graph = make(dict(state), imports).graph
    module = _empty(name)
    module.__dict__.update(state)
    module.graph = graph
    return module


def build_graph_module(model: nn.Module, plan: IndexPlan, kept: NDArray[np.int64]) -> GraphModule:
    """The network of ``plan`` with the sizes of ``kept`` and the tensors of ``model``.

    It has every parameter and buffer of ``model``, those that its forward does not use too, so
    that checkpoints of one fit the other.

    Args:
        model: Module tree with the slim tensors under the dense network's names; its leaf modules
            are shared, not copied.
        plan: The plan.
        kept: Kept counts, shape (targets,).
    """
    root = _Root(model, plan)
    lengths = plan.lengths(kept)
    graph = Graph()
    results: dict[str, Node] = {}
    device = next((t.device for t in model.parameters()), torch.device("cpu"))
    decoder = _Decoder(graph, results, lengths, device)
    for recorded in plan.program:
        instruction = root.add(recorded)
        results[instruction.name] = _emit(graph, instruction, decoder)
    graph.lint()
    module = SlimGraph(root.tree, graph, class_name=type(model).__name__)
    for path, holder in root.tree.named_modules():  # torch.fx makes every buffer persistent
        module.get_submodule(path)._non_persistent_buffers_set |= holder._non_persistent_buffers_set
    _add_unused(module, model)
    module.train(model.training)
    return module


def _add_unused(module: nn.Module, model: nn.Module) -> None:
    known = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    known |= {name for name, _ in module.named_buffers(remove_duplicate=False)}
    for path, owner in model.named_modules(remove_duplicate=False):
        for leaf in (*owner._parameters, *owner._buffers):
            name = f"{path}.{leaf}" if path else leaf
            if name not in known and getattr(owner, leaf) is not None:
                _register(_descend(module, path), leaf, owner)


def _register(parent: nn.Module, leaf: str, owner: nn.Module) -> None:
    """Gives ``parent`` a parameter or buffer of ``owner``."""
    tensor = getattr(owner, leaf)
    if isinstance(tensor, nn.Parameter):
        parent.register_parameter(leaf, tensor)
    else:
        persistent = leaf not in owner._non_persistent_buffers_set
        parent.register_buffer(leaf, tensor, persistent=persistent)


def _descend(module: nn.Module, path: str) -> nn.Module:
    """The module at a path, made where there is none yet."""
    for name in path.split(".") if path else ():
        if name not in module._modules:
            module.add_module(name, nn.Module())
        child = module._modules[name]
        assert child is not None  # for the type checker
        module = child
    return module


def _emit(graph: Graph, instruction: Instruction, decoder: _Decoder) -> Node:
    args = tuple(decoder(arg) for arg in instruction.args)
    kwargs = {key: decoder(value) for key, value in instruction.kwargs.items()}
    if instruction.op == "placeholder":
        return graph.placeholder(instruction.target)
    if instruction.op == "get_attr":
        return graph.get_attr(instruction.target)
    if instruction.op == "call_module":
        return graph.call_module(instruction.target, args, kwargs)
    if instruction.op == "output":
        output: Node = graph.output(args[0])
        return output
    target = runnable_target(instruction.target)
    name = instruction.name
    node: Node = graph.create_node("call_function", target, args, kwargs, name=name)
    return node


class _Decoder:
    """JSON arguments back to Python ones."""

    def __init__(
        self,
        graph: Graph,
        results: dict[str, Node],
        lengths: NDArray[np.int64],
        device: torch.device,
    ) -> None:
        self._graph, self._results, self._lengths, self._device = graph, results, lengths, device

    def __call__(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [self(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "ref" in value:
            return self._results[value["ref"]]
        if "axis" in value:
            return int(self._lengths[value["axis"]])
        if "batch" in value:
            import operator

            times = int(self._lengths[value["batch"]]) // int(value["per"])
            return self._graph.call_function(operator.mul, (self._results["batch_size"], times))
        if "dict" in value:
            return {key: self(item) for key, item in value["dict"].items()}
        if "tuple" in value:
            return tuple(self(item) for item in value["tuple"])
        if "training" in value:
            return 0.0
        if "torch" in value:
            return find_setting(value["torch"])
        return self._device


#: Dropout by functions: exported in evaluation mode, they say that they are to do nothing.
_DROPOUTS: dict[str, Any] = {
    "aten.dropout.default": nn.Dropout,
    "aten.dropout_.default": nn.Dropout,
    "aten.feature_dropout.default": nn.Dropout2d,
    "aten.feature_dropout_.default": nn.Dropout2d,
    "aten.alpha_dropout.default": nn.AlphaDropout,
    "aten.alpha_dropout_.default": nn.AlphaDropout,
    "aten.feature_alpha_dropout.default": nn.FeatureAlphaDropout,
    "aten.feature_alpha_dropout_.default": nn.FeatureAlphaDropout,
}
_ATTENTION = "aten.scaled_dot_product_attention.default"
#: Holds the modules that stand for functions with a mode.
_WITH_MODE = "_functional"


class _Root:
    """A module tree that holds exactly what the program uses, under the user's names."""

    def __init__(self, model: nn.Module, plan: IndexPlan) -> None:
        self.tree = nn.Module()
        self._model, self._plan = model, plan

    def add(self, instruction: Instruction) -> Instruction:
        """Adds what a step needs; returns the step, or the one that stands for it."""
        stand_in = _with_mode(instruction)
        if stand_in is not None:
            _descend(self.tree, _WITH_MODE).add_module(instruction.name, stand_in)
            path = f"{_WITH_MODE}.{instruction.name}"
            args, kwargs = instruction.args, dict(instruction.kwargs)
            if instruction.target in _DROPOUTS:
                args = args[:1]
            kwargs.pop("dropout_p", None)
            return Instruction(instruction.name, "call_module", path, args, kwargs)
        path, _, leaf = instruction.target.rpartition(".")
        if instruction.op == "call_module":
            parent = _descend(self.tree, path)
            if type(parent._modules.get(leaf)) in (type(None), nn.Module):  # or a bare holder
                module = self._model.get_submodule(instruction.target)
                parent.add_module(leaf, trainable_form(module))
        elif instruction.op == "get_attr" and instruction.target in self._plan.constants:
            tensor = read_constant(self._plan.constants[instruction.target])
            device = next((t.device for t in self._model.parameters()), torch.device("cpu"))
            parent = _descend(self.tree, path)
            parent.register_buffer(leaf, tensor.to(device), persistent=False)
        elif instruction.op == "get_attr":
            _register(_descend(self.tree, path), leaf, self._model.get_submodule(path))
        return instruction


def _with_mode(instruction: Instruction) -> nn.Module | None:
    """A module, which knows whether it is trained, for a function that was told so; else None."""
    share = instruction.kwargs.get("dropout_p")
    if instruction.target == _ATTENTION and isinstance(share, Mapping):
        return _Attention(share["training"])
    if instruction.target not in _DROPOUTS or instruction.args[2:] != (False,):
        return None
    made: nn.Module = _DROPOUTS[instruction.target](instruction.args[1])
    return made


class _Attention(nn.Module):
    """Scaled dot-product attention of which some weights are dropped in training."""

    def __init__(self, dropout_p: float) -> None:
        super().__init__()
        self.dropout_p = dropout_p

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        share = self.dropout_p if self.training else 0.0
        attention: Any = nn.functional.scaled_dot_product_attention
        return attention(*args, dropout_p=share, **kwargs)  # type: ignore[no-any-return]


def trainable_form(module: nn.Module) -> nn.Module:
    """Normalisation layers with a forward of their own are called as plain ones."""
    if type(module).forward is nn.BatchNorm1d.forward or not hasattr(module, "running_mean"):
        return module
    plain = nn.BatchNorm2d(
        module.num_features,  # type: ignore[arg-type]
        eps=module.eps,  # type: ignore[arg-type]
        momentum=module.momentum,  # type: ignore[arg-type]
        affine=False,
        track_running_stats=False,
    )
    plain._check_input_dim = lambda input: None  # type: ignore[method-assign]
    plain.affine, plain.track_running_stats = module.weight is not None, True
    plain._parameters = dict(module._parameters)
    plain._buffers = dict(module._buffers)
    return plain.train(module.training)


def read_constant(document: dict[str, Any]) -> Tensor:
    """Undoes :func:`automl.graph.build.write_constant`."""
    dtype = find_setting(str(document["dtype"]))
    if not isinstance(dtype, torch.dtype):
        raise InputError(f"torch.{dtype} is no dtype of a constant")
    return torch.tensor(document["values"], dtype=dtype).reshape(document["shape"])
