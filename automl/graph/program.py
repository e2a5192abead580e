"""The exported graph as plain instructions, with layers lifted back to modules.

Calls of operators become calls of real modules under the user's own names (``automl.graph.lift``),
so that the graph form trains, saves and loads like the original.
"""

from __future__ import annotations

import keyword
import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from automl.graph.export import Exported, module_path, shape_of
from automl.graph.inputs import Place, argument_names
from automl.graph.lift import lift, multihead_dropout
from automl.graph.ops.step import Rewrite, bound_arguments, operator_name
from automl.plan import Instruction
from automl.types import InputError

#: What an integer argument becomes: (rewrite) -> JSON value.
Resolver = Callable[[Rewrite], Any]

#: Instruction whose value is the size of the batch.
BATCH_SIZE = "batch_size"
_DROPPED = ("_assert_scalar", "_assert_tensor_metadata", "sym_constrain_range_for_size",
            "sym_constrain_range", "_assert_async")  # fmt: skip
_VIEWS = ("view", "reshape", "_unsafe_view")


class ProgramWriter:
    """Writes a graph as instructions, asking ``resolve`` what integer arguments follow."""

    def __init__(
        self,
        exported: Exported,
        model: nn.Module,
        rewrites: list[Rewrite],
        resolve: Resolver,
    ) -> None:
        """Groups the rewrites by node."""
        self._exported, self._model, self._resolve = exported, model, resolve
        self._rewrites: dict[Node, list[Rewrite]] = {}
        for rewrite in rewrites:
            self._rewrites.setdefault(rewrite.node, []).append(rewrite)
        self.constants: dict[str, Tensor] = {}
        self._attributes: dict[str, str] = {}
        self._uses_batch = False
        self._entries = 0
        self._names = {node.name for node in exported.graph.nodes}
        self._products = {  # of the batch
            node.name
            for node in exported.graph.nodes
            if isinstance(node.meta.get("val"), torch.SymInt) and operator_name(node) == "mul"
        }
        self._sizes: dict[tuple[str, int], Instruction] = {}  # that the next instruction reads

    def write(self) -> tuple[Instruction, ...]:
        """All instructions in order."""
        body = self._placeholders()
        for node in self._exported.graph.nodes:
            instruction = self._instruction(node)
            if instruction is not None:
                body += [*self._sizes.values(), *self._with_dropout(node, instruction)]
                self._sizes.clear()
        return _without_dead_code(self._with_attributes(body))

    def _with_attributes(self, body: list[Instruction]) -> list[Instruction]:
        inputs, rest = body[: self._entries], body[self._entries :]
        head = [Instruction(n, "get_attr", t, (), {}) for t, n in self._attributes.items()]
        if self._uses_batch:
            batched = next(i.name for i in inputs if i.name in self._exported.batched_inputs)
            arguments = ({"ref": batched}, 0)
            size = Instruction(BATCH_SIZE, "call_function", "aten.sym_size.int", arguments, {})
            head.append(size)
        return [*inputs, *head, *rest]

    def _placeholders(self) -> list[Instruction]:
        """The arguments of forward, and what is taken out of lists, tuples and dicts."""
        exported = self._exported
        count = 1 + max((place[0] for place in exported.places), default=-1)
        names = argument_names(self._model, count)
        found: dict[Place, Instruction] = {}
        for name, place in zip(exported.inputs, exported.places, strict=True):
            for depth in range(1, len(place) + 1):
                at = place[:depth]
                if at in found:
                    continue
                own = name
                if depth < len(place):
                    own = names[at[0]] if depth == 1 else f"{found[at[:-1]].name}_{at[-1]}"
                    own = _free_name(own, self._names)
                if depth == 1:
                    found[at] = Instruction(own, "placeholder", own, (), {})
                else:
                    source = ({"ref": found[at[:-1]].name}, at[-1])
                    found[at] = Instruction(own, "call_function", "_operator:getitem", source, {})
        self._entries = len(found)
        return sorted(found.values(), key=lambda one: one.op != "placeholder")

    def _instruction(self, node: Node) -> Instruction | None:
        if node.op == "output":
            return Instruction(
                "output", "output", "output", (self._structure(self._exported.output),), {}
            )
        if node.op != "call_function" or operator_name(node) in _DROPPED:
            return None
        lifted = lift(node, self._exported, self._model)
        if lifted is not None:
            return Instruction(
                node.name, "call_module", lifted.path, (self._encode(lifted.data),), {}
            )
        return self._call(node)

    def _call(self, node: Node) -> Instruction:
        name = operator_name(node)
        target = target_name(node.target)
        args = [self._encode(a) for a in node.args]
        kwargs = {k: self._encode(v) for k, v in node.kwargs.items()}
        if name == "scaled_dot_product_attention" and bound_arguments(node).get("scale") is None:
            query = bound_arguments(node)["query"]
            kwargs["scale"] = float(query.meta["val"].shape[-1]) ** -0.5
        if target == "aten.squeeze.default":  # a dimension that shrinks to one position stays
            ones = [dim for dim, size in enumerate(shape_of(node.all_input_nodes[0])) if size == 1]
            target, args = "aten.squeeze.dims", [*args, ones]
        resolved = [(r, self._resolve(r)) for r in self._rewrites.get(node, [])]
        resolved = [(r, value) for r, value in resolved if value is not None]
        if resolved and name in ("split", "chunk", "tensor_split", "split_with_sizes"):
            return self._split(node, resolved)
        schema: Any = getattr(node.target, "_schema", None)
        names = [argument.name for argument in schema.arguments] if resolved else []
        for rewrite, value in resolved:
            self._uses_batch |= isinstance(value, dict) and "batch" in value
            place = names.index(str(rewrite.path[0]))
            holder: Any = args if place < len(args) else kwargs
            key: Any = place if place < len(args) else rewrite.path[0]
            if len(rewrite.path) == 2:
                holder, key = holder[key], rewrite.path[1]
            holder[key] = value
        if name in _VIEWS and isinstance(args[1], list):
            args[1] = self._for_any_size(node, args[1])
        return Instruction(node.name, "call_function", target, tuple(args), kwargs)

    def _with_dropout(self, node: Node, instruction: Instruction) -> list[Instruction]:
        """An operator of attention, with the dropout of its weights in training."""
        share = self._exported.attention_dropout.get(node.name)
        if share is not None:
            kwargs = {**instruction.kwargs, "dropout_p": {"training": share}}
            return [replace(instruction, kwargs=kwargs)]
        share = multihead_dropout(self._model, module_path(node))
        if share and operator_name(node) == "softmax":
            weights = replace(instruction, name=_free_name(f"{node.name}_whole", self._names))
            arguments = ({"ref": weights.name}, share, False)
            target = "aten.dropout.default"
            return [weights, Instruction(node.name, "call_function", target, arguments, {})]
        return [instruction]

    def _for_any_size(self, view: Node, sizes: Sequence[Any]) -> list[Any]:
        """The sizes of a view without numbers that come from the size of the network's inputs.

        The dimensions that a view leaves as they are have the size that is found there; of the
        rest, the one that is still a number follows from the others.
        """
        source, new = view.args[0], list(sizes)
        assert isinstance(source, Node)
        before, after = shape_of(source), shape_of(view)
        same = [_common(before, after), _common(before[::-1], after[::-1])]
        places = [*range(same[0]), *range(-min(same[1], len(after) - same[0]), 0)]
        for place in places:
            if type(new[place]) is int and new[place] > 1:
                dim = place if place >= 0 else len(before) + place
                new[place] = self._size(source, dim)
        open_ = [at for at, size in enumerate(new) if self._is_number(size)]
        if len(open_) == 1 and -1 not in new:
            new[open_[0]] = -1
        return new

    def _size(self, source: Node, dim: int) -> Any:
        key = (source.name, dim)
        if key not in self._sizes:
            name = _free_name(f"{source.name}_size_{dim}", self._names)
            read = (self._encode(source), dim)
            self._sizes[key] = Instruction(name, "call_function", "aten.sym_size.int", read, {})
        return {"ref": self._sizes[key].name}

    def _is_number(self, size: Any) -> bool:
        """Whether a size is written down, or a multiple of the batch by a number that is."""
        if isinstance(size, dict) and "ref" in size:
            return size["ref"] in self._products
        return type(size) is int and size > 1

    def _split(self, node: Node, resolved: list[tuple[Rewrite, Any]]) -> Instruction:
        arguments = bound_arguments(node)
        dim = arguments["dim"] % arguments["self"].meta["val"].dim()
        sizes: list[Any] = [int(part.shape[dim]) for part in node.meta["val"]]
        for rewrite, value in resolved:
            sizes[int(rewrite.path[1])] = value
        target = "aten.split_with_sizes.default"
        source = self._encode(node.args[0])
        return Instruction(node.name, "call_function", target, (source, sizes, dim), {})

    def _encode(self, value: Any) -> Any:
        if isinstance(value, Node):
            if value.name in self._exported.tensors:
                return {"ref": self._attribute(value)}
            return {"ref": value.name}
        if isinstance(value, (list, tuple)):
            return [self._encode(item) for item in value]
        if isinstance(value, torch.device):
            return {"device": True}
        if isinstance(value, (torch.dtype, torch.memory_format, torch.layout)):
            return {"torch": str(value).removeprefix("torch.")}
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise TypeError(f"an argument of type {type(value).__name__} cannot be written down")

    def _structure(self, value: Any) -> Any:
        """What the network returns: as :meth:`_encode`, but tuples and dicts stay themselves."""
        if isinstance(value, dict):
            return {"dict": {str(key): self._structure(item) for key, item in value.items()}}
        if isinstance(value, tuple):
            return {"tuple": [self._structure(item) for item in value]}
        if isinstance(value, list):
            return [self._structure(item) for item in value]
        return self._encode(value)

    def _attribute(self, node: Node) -> str:
        dotted, tensor = self._exported.tensors[node.name]
        if dotted is None:
            dotted = f"_constants.{node.name}"
            self.constants[dotted] = tensor
        return self._attributes.setdefault(dotted, f"attr_{node.name}")


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many sizes two shapes have in common before they differ."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def _free_name(name: str, taken: set[str]) -> str:
    """A plain name that is not taken; now it is."""
    plain = re.sub(r"\W", "_", name)
    plain = plain if plain.isidentifier() and not keyword.iskeyword(plain) else f"input_{plain}"
    while plain in taken:
        plain += "_"
    taken.add(plain)
    return plain


def target_name(target: Any) -> str:
    """A name :func:`find_target` can resolve."""
    if isinstance(target, torch._ops.OpOverload):
        # What a network of this process calls was registered by the user's own code.
        _LIVE.add(target.namespace)
        return str(target)
    return f"{target.__module__}:{target.__qualname__}"


#: What is called between operators: arithmetic on sizes, and taking one of several results.
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{
        f"{module}:{name}": getattr(operator, name)
        for module in ("_operator", "operator")
        for name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pow", "abs", "pos",
                     "and_", "or_", "xor", "not_", "lshift", "rshift",
                     "eq", "ne", "lt", "le", "gt", "ge", "getitem")
    },
    **{f"math:{name}": getattr(math, name) for name in ("ceil", "floor", "trunc", "sqrt", "pow")},
    **{
        f"torch:{name}": getattr(torch, name)
        for name in ("sym_float", "sym_int", "sym_max", "sym_min", "sym_not", "sym_ite", "sym_sum")
    },
}  # fmt: skip
#: Of the namespaces of torch.ops, those without operators that load, save or send anything.
_NAMESPACES = frozenset({"aten", "torchvision", "prunepilot"})
#: Others that networks traced in this process call; plans from elsewhere cannot add any.
_LIVE: set[str] = set()
_OPERATOR = re.compile(r"\w+\.[A-Za-z_]\w*\.\w+")
#: Operators of aten that touch files or print.
_REFUSED = frozenset({"from_file", "save", "load", "open", "close", "write", "read", "print",
                      "_print", "warn"})  # fmt: skip


def find_target(name: str) -> Callable[..., Any]:
    """The operator a name stands for: torch's own, and the functions of a fixed list.

    Raises:
        InputError: The name is anything else.
    """
    if name in _FUNCTIONS:
        return _FUNCTIONS[name]
    space, _, rest = name.partition(".")
    found: Any = None
    if space in _NAMESPACES | _LIVE and _OPERATOR.fullmatch(name):
        base, _, overload = rest.partition(".")
        if base not in _REFUSED:
            found = getattr(getattr(getattr(torch.ops, space), base, None), overload, None)
    if not isinstance(found, torch._ops.OpOverload):
        raise InputError(f"operator {name[:80]!r} is not allowed in a plan")
    return found


def runnable_target(name: str) -> Callable[..., Any]:
    """As :func:`find_target`, for whatever memory format tensors have.

    A view was recorded on contiguous tensors; of those laid out channels last it may need a copy.
    """
    return find_target("aten.reshape.default" if name == "aten.view.default" else name)


def find_setting(name: str) -> torch.dtype | torch.layout | torch.memory_format:
    """The dtype, layout or memory format of torch that a name stands for.

    Raises:
        InputError: The name is anything else.
    """
    found = vars(torch).get(name)
    if not isinstance(found, torch.dtype | torch.layout | torch.memory_format):
        raise InputError(f"torch.{name[:80]} is not allowed in a plan")
    return found


def _without_dead_code(program: list[Instruction]) -> tuple[Instruction, ...]:
    used: set[str] = set()
    kept: list[Instruction] = []
    for instruction in reversed(program):
        if (
            instruction.op in ("placeholder", "output")
            or instruction.name in used
            or mutates(instruction)
        ):
            used.update(references([instruction.args, instruction.kwargs]))
            kept.append(instruction)
    return tuple(reversed(kept))


def mutates(instruction: Instruction) -> bool:
    """Whether an instruction changes one of its arguments in place."""
    if instruction.op != "call_function" or ":" in instruction.target:
        return False
    target: Any = find_target(instruction.target)
    return bool(target._schema.is_mutable)


def mutated(instruction: Instruction) -> set[str]:
    """Names of the results that an instruction may change in place."""
    if not mutates(instruction):
        return set()
    target: Any = find_target(instruction.target)
    arguments, changed = target._schema.arguments, []
    for argument, value in zip(arguments, instruction.args, strict=False):
        if argument.is_write:
            changed.append(value)
    written = {argument.name for argument in arguments if argument.is_write}
    changed += [value for key, value in instruction.kwargs.items() if key in written]
    return references(changed)


def references(value: Any) -> set[str]:
    """Names of the results that an instruction's arguments refer to."""
    if isinstance(value, dict):
        if "ref" in value:
            return {value["ref"]}
        extra = {BATCH_SIZE} if "batch" in value else set()
        return extra.union(*(references(item) for item in value.values()))
    if isinstance(value, (list, tuple)):
        return set().union(*(references(item) for item in value))
    return set()
