"""From a module and example inputs to an operator graph, by ``torch.export``."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import re
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.utils._pytree import tree_map, tree_unflatten

from automl.graph.attention_dropout import attention_dropout
from automl.graph.buffers import buffers_kept
from automl.graph.deadline import Deadline
from automl.graph.hooks import modules_changed_by_hooks
from automl.graph.inputs import (
    Place,
    described,
    each_tensor,
    fresh,
    places,
    tensors_of,
)
from automl.graph.regions import inline_regions
from automl.types import InputError

#: Batch size at which networks are exported and symbolic shapes are read; 2, because export treats
#: 0 and 1 as special.
BATCH = 2


@dataclass(frozen=True, eq=False)
class Exported:
    """An exported network.

    Attributes:
        graph: Operators at ATen level, not decomposed.
        tensors: Placeholder name -> (dotted name or None, tensor) for parameters, buffers and
            lifted constants.
        homes: Dotted name of a parameter or buffer -> paths of all modules that hold it.
        inputs: Placeholders that are the user's inputs.
        places: Where each of them is among the arguments of ``forward``.
        output: What the network returns, nodes in the places of tensors.
        dynamic_batch: Whether the graph takes any batch size.
        example_inputs: What it was exported with.
        batch: Their batch size.
        hooked: Paths of modules with hooks that change values.
        attention_dropout: Nodes of scaled dot-product attention -> which share of its weights it
            drops in training.
    """

    graph: Graph
    tensors: dict[str, tuple[str | None, Tensor]]
    homes: dict[str, tuple[str, ...]]
    inputs: tuple[str, ...]
    places: tuple[Place, ...]
    output: Any
    dynamic_batch: bool
    example_inputs: tuple[Any, ...]
    batch: int
    hooked: frozenset[str]
    attention_dropout: dict[str, float]

    def home(self, tensor: str, node: Node) -> str:
        """Path of the module that a node reads a tensor from, '' for the root."""
        path = module_path(node)
        return path if path in self.homes.get(tensor, ()) else tensor.rpartition(".")[0]

    @cached_property
    def batched_inputs(self) -> tuple[str, ...]:
        """Placeholders whose first dimension is the batch."""
        return tuple(
            node.name
            for node in self.graph.find_nodes(op="placeholder")
            if node.name in self.inputs
            and isinstance(node.meta.get("val"), Tensor)
            and node.meta["val"].dim() > 0
        )

    def follows_batch_alone(self, size: Node) -> bool:
        """Whether a symbolic size depends on no other size of the inputs."""
        return _symbols(size.meta["val"]) <= self._batch_symbols

    @cached_property
    def _batch_symbols(self) -> set[Any]:
        nodes = {node.name: node for node in self.graph.find_nodes(op="placeholder")}
        firsts = [nodes[name].meta["val"].shape[0] for name in self.batched_inputs]
        return set().union(*map(_symbols, firsts))

    @cached_property
    def per_input(self) -> frozenset[Node]:
        """Nodes whose values depend on the inputs, and so are computed for every example."""
        found: set[Node] = set()
        for node in self.graph.nodes:
            if node.name in self.inputs or any(n in found for n in node.all_input_nodes):
                found.add(node)
        return frozenset(found)


def export(
    model: nn.Module, example_inputs: tuple[Any, ...], deadline: Deadline, every_size: bool = False
) -> Exported:
    """Exports ``model`` in eval mode, with a symbolic batch size where the model allows one.

    Args:
        model: The network.
        example_inputs: What its forward is called with.
        deadline: Raises when it takes too long.
        every_size: Whether all sizes of the inputs are to be symbolic, as far as the model allows.

    Raises:
        InputError: If the forward fails on the example inputs or cannot be exported.
    """
    with deadline.interrupting():
        check_forward(model, example_inputs)
        hooked = modules_changed_by_hooks(model, lambda: check_forward(model, example_inputs))
    error: Exception | None = None
    with deadline.interrupting(), quiet() as said:
        for inputs, batch, dynamic in _attempts(example_inputs):
            if every_size and not dynamic:
                break
            try:
                shapes = _dynamic(model, inputs, every_size) if dynamic else None
                program = torch.export.export(model, inputs, dynamic_shapes=shapes)
                inline_regions(program.graph_module)
                return _collect(model, program, inputs, batch, hooked)
            except InputError:
                raise
            except Exception as failure:
                error = error or failure
    raise InputError(
        f"torch.export cannot trace {type(model).__name__}: {_first_line(error)}"
        f"{_place(said.getvalue())}"
    ) from error


def _place(said: str) -> str:
    """Where in a forward torch stopped, of what it printed about it."""
    found = re.findall(r"# File: (\S+:\d+) in \w+, code: (.*)", said)
    return f" (at {found[-1][0]}: {found[-1][1].strip()[:80]})" if found else ""


def _attempts(inputs: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], int, bool]]:
    """(inputs, their batch size, whether to make it symbolic), the best first."""
    sizes = [x.shape[0] for x in tensors_of(inputs) if x.dim() > 0]
    if len(set(sizes)) == 1:
        for dynamic in (True, False):
            yield _resized(inputs), BATCH, dynamic
    yield inputs, sizes[0] if sizes else 1, False


def check_forward(model: nn.Module, example_inputs: tuple[Any, ...]) -> None:
    """Runs the model once.

    Raises:
        InputError: If it fails; the message is the first line of the model's own error.
    """
    try:
        with torch.no_grad(), buffers_kept(model):
            model(*fresh(example_inputs))
    except InputError:  # the time is over
        raise
    except Exception as error:
        raise InputError(
            f"the forward of {type(model).__name__} fails on the example inputs "
            f"({described(example_inputs)}): {_first_line(error)}"
        ) from error


def _resized(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The first example of every input, :data:`BATCH` times."""

    def resize(x: Tensor) -> Tensor:
        return x if x.dim() == 0 else x[:1].expand(BATCH, *x.shape[1:]).contiguous()

    return each_tensor(resize, inputs)


def _dynamic(model: nn.Module, inputs: tuple[Any, ...], every_size: bool) -> tuple[Any, ...]:
    """A symbolic first dimension for every input, or all; those of ``*inputs`` form a tuple."""
    auto = torch.export.Dim.AUTO

    def sizes_of(x: Any) -> dict[int, Any] | None:
        if not isinstance(x, Tensor) or x.dim() == 0:
            return None
        return dict.fromkeys(range(x.dim() if every_size else 1), auto)

    sizes = tree_map(sizes_of, list(inputs))
    parameters = list(inspect.signature(model.forward).parameters.values())
    for place, parameter in enumerate(parameters[: len(sizes)]):
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            return (*sizes[:place], tuple(sizes[place:]))
    return tuple(sizes)


def _collect(
    model: nn.Module,
    program: torch.export.ExportedProgram,
    example_inputs: tuple[Any, ...],
    batch: int,
    hooked: frozenset[str],
) -> Exported:
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    constants = dict(getattr(signature, "inputs_to_lifted_tensor_constants", {}))
    tensors: dict[str, tuple[str | None, Tensor]] = {}
    inputs = []
    for node in program.graph.nodes:
        if node.op != "placeholder":
            continue
        if node.name in names:
            name = names[node.name]
            source = program.state_dict if name in program.state_dict else program.constants
            tensors[node.name] = (name, source[name])
        elif node.name in constants:
            tensors[node.name] = (None, program.constants[constants[node.name]])
        else:
            inputs.append(node.name)
    where = places(example_inputs)
    if len(where) != len(inputs):
        raise InputError(
            f"the arguments of {type(model).__name__}.forward hold values of a class of their own; "
            "give it tensors, or lists, tuples and dicts of them"
        )
    dynamic = any(
        isinstance(node.meta.get("val"), Tensor)
        and node.name in inputs
        and node.meta["val"].dim() > 0
        and _is_symbolic(node.meta["val"].shape[0])
        for node in program.graph.nodes
    )
    return Exported(
        program.graph,
        tensors,
        _homes(model),
        tuple(inputs),
        tuple(where),
        _structure(program),
        dynamic,
        example_inputs,
        batch,
        hooked,
        attention_dropout(model, program.graph, example_inputs),
    )


def _homes(model: nn.Module) -> dict[str, tuple[str, ...]]:
    holders: dict[int, list[str]] = defaultdict(list)
    names: dict[str, int] = {}
    for path, module in model.named_modules():
        for leaf, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                holders[id(tensor)].append(path)
                names[f"{path}.{leaf}" if path else leaf] = id(tensor)
    return {name: tuple(holders[number]) for name, number in names.items()}


def _structure(program: torch.export.ExportedProgram) -> Any:
    """The returned structure; mappings of any class become plain dicts."""
    leaves = list(program.graph.output_node().args[0])
    spec = program.call_spec.out_spec
    structure = leaves if spec is None else tree_unflatten(leaves, spec)
    return dict(structure) if isinstance(structure, Mapping) else structure


def _is_symbolic(size: int | torch.SymInt) -> bool:
    """Whether a size is still open; one that the forward made constant may be a SymInt, too."""
    return bool(_symbols(size))


def _symbols(size: int | torch.SymInt) -> set[Any]:
    return set(size.node.expr.free_symbols) if isinstance(size, torch.SymInt) else set()


def concrete(value: Any) -> Any:
    """``value`` with nodes and symbolic sizes replaced by what they are in the example inputs."""
    if isinstance(value, Node):
        return concrete(value.meta["val"])
    if isinstance(value, torch.SymInt):
        known = value.node.hint
        if known is None:  # how many there are is in the data, as in point clouds
            expression = value.node.expr
            known = expression.subs(dict.fromkeys(expression.free_symbols, BATCH))
        return int(known)
    if isinstance(value, (list, tuple)):
        return type(value)(concrete(item) for item in value)
    return value


def shape_of(node: Node) -> tuple[int, ...]:
    """Shape of a tensor-valued node at a batch of :data:`BATCH`."""
    return tuple(concrete(tuple(node.meta["val"].shape)))


def module_path(node: Node) -> str:
    """Dotted path of the module whose forward made the node, '' for the root."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [entry[0] for entry in stack.values()]
    return str(paths[-1]) if paths else ""


@contextlib.contextmanager
def quiet() -> Iterator[io.StringIO]:
    """Holds back what torch says, and prints, about attempts that may fail; gives it."""
    before, said = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
        ):
            warnings.simplefilter("ignore")
            yield said
    finally:
        logging.disable(before)


def _first_line(error: BaseException | None) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
