"""What a plan that was read from a file may say, so that no file can run code.

torch.fx writes a network's forward as Python source, into which names of inputs, attributes and
keywords go as they are; whatever is not a plain name is refused here, before any of it is used.
Operators are checked where they are looked up (:func:`automl.graph.program.find_target`).
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from automl.types import InputError

if TYPE_CHECKING:
    from automl.plan import IndexPlan, Instruction

#: Most positions of all axes together, and units of all targets: about 0.3 GB of indices.
MOST_POSITIONS = 1 << 24
_OPS = frozenset({"placeholder", "get_attr", "call_module", "call_function", "output"})
_DEEPEST = 64
#: One part of a module's path. Quotes, backslashes and line ends could leave a string of source.
_PART = re.compile(r"[\w -]+")


def check_runs(runs: Sequence[Sequence[int]], spare: int, units: int) -> int:
    """How many positions the runs of one axis have, before any are made.

    Args:
        runs: ``[start, step, length]`` each.
        spare: Positions that may still be made.
        units: Of all targets; positions name units from -1 to ``units - 1``.

    Raises:
        InputError: Too many positions, or units that no target has.
    """
    total = 0
    for start, step, length in runs:
        whole = all(type(number) is int for number in (start, step, length))
        if not whole or step not in (0, 1) or length < 1:
            raise InputError("the plan has a damaged axis; trace the model again")
        total += length
        if total > spare:
            raise InputError(f"the plan's axes are longer than {MOST_POSITIONS} positions")
        if start < -1 or start + step * (length - 1) >= units:
            raise InputError("the plan has an axis with units of no target; trace the model again")
    return total


def check_units(units: Sequence[Any]) -> int:
    """The units of all targets together.

    Raises:
        InputError: Some are no positive whole numbers, or there are too many.
    """
    if not all(type(count) is int and count > 0 for count in units):
        raise InputError("the plan has a target without units; trace the model again")
    if sum(units) > MOST_POSITIONS:
        raise InputError(f"the plan's targets have more than {MOST_POSITIONS} units")
    return sum(units)


def check_program(plan: IndexPlan) -> None:
    """Refuses a program that says more than which operators and modules to call on what.

    Raises:
        InputError: A name that is no plain name, an unknown kind of instruction or argument, or a
            reference to nothing that came before.
    """
    known: set[str] = set()
    for instruction in plan.program:
        _check_instruction(instruction)
        for arguments in (instruction.args, instruction.kwargs):
            _check_value(arguments, known, len(plan.axes), 0)
        if instruction.name in known:
            raise InputError(f"the plan has two results named {instruction.name!r}")
        known.add(instruction.name)
    for path in plan.constants:
        _require(_is_path(path), "constant", path)
    for patch in plan.patches:
        _require(_is_path(patch.module), "module", patch.module)
        _require(_is_name(patch.attribute), "attribute", patch.attribute)


def _check_instruction(one: Instruction) -> None:
    _require(_is_name(one.name), "name", one.name)
    _require(isinstance(one.op, str) and one.op in _OPS, "instruction", one.op)
    if one.op == "placeholder":
        _require(_is_name(one.target), "input", one.target)
    elif one.op in ("get_attr", "call_module"):
        _require(_is_path(one.target), "module", one.target)
    else:
        _require(isinstance(one.target, str), "operator", one.target)
    _require(isinstance(one.kwargs, Mapping), "keywords", one.kwargs)
    for key in one.kwargs:
        _require(_is_name(key), "keyword", key)
    if one.op in ("call_module", "output"):
        _require(len(one.args) == 1, f"arguments of {one.op}", one.args)


def _check_value(value: Any, known: set[str], axes: int, depth: int) -> None:
    _require(depth < _DEEPEST, "argument", "nested too deeply")
    if isinstance(value, (list, tuple)):
        for item in value:
            _check_value(item, known, axes, depth + 1)
    elif isinstance(value, Mapping):
        marks = [mark for mark in _MARKS if mark in value]
        if depth == 0:  # keywords, whose names are checked
            items: Sequence[Any] = list(value.values())
        else:
            _require(len(marks) == 1 and _MARKS[marks[0]](value, known, axes), "argument", value)
            items = _inner(value)
        for item in items:
            _check_value(item, known, axes, depth + 1)


def _inner(value: Mapping[str, Any]) -> Sequence[Any]:
    return list(value["dict"].values()) if "dict" in value else value.get("tuple", ())


def _is_index(value: Any, axes: int) -> bool:
    return type(value) is int and 0 <= value < axes


def _is_batch(value: Mapping[str, Any], known: set[str], axes: int) -> bool:
    per = value.get("per")
    is_count = type(per) is int and per > 0
    return _is_index(value["batch"], axes) and is_count and "batch_size" in known


#: The kinds of argument that are written as mappings, and what else must hold of each.
_MARKS: dict[str, Callable[[Mapping[str, Any], set[str], int], bool]] = {
    "ref": lambda v, known, axes: isinstance(v["ref"], str) and v["ref"] in known,
    "axis": lambda v, known, axes: _is_index(v["axis"], axes),
    "batch": _is_batch,
    "dict": lambda v, known, axes: isinstance(v["dict"], Mapping),
    "tuple": lambda v, known, axes: isinstance(v["tuple"], list),
    "torch": lambda v, known, axes: _is_name(v["torch"]),
    "training": lambda v, known, axes: type(v["training"]) is float and 0 <= v["training"] <= 1,
    "device": lambda v, known, axes: v["device"] is True,
}


def _is_name(text: Any) -> bool:
    """Whether this may stand in source as a name."""
    is_word = isinstance(text, str) and text.isidentifier() and not keyword.iskeyword(text)
    return is_word and not text.startswith("__")


def _is_path(text: Any) -> bool:
    """Whether this may be a module's or tensor's dotted name; '' is the network itself."""
    if not isinstance(text, str):
        return False
    parts = text.split(".") if text else []
    return all(_PART.fullmatch(part) and not part.startswith("__") for part in parts)


def _require(holds: Any, what: str, found: Any) -> None:
    if not holds:
        shown = repr(found)
        shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
        raise InputError(f"the plan has an impossible {what}: {shown}; trace the model again")
