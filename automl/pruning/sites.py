"""Layers that can be refitted, and what their outputs run into."""

from __future__ import annotations

import operator
from dataclasses import dataclass

from torch import nn

from automl.graph.fold import writes_dimension_one
from automl.graph.interpret import consumers
from automl.graph.program import references
from automl.plan import IndexPlan, Instruction, LayerPlan
from automl.types import LayerSpec

_PASSING = ("aten.dropout.default", "aten.contiguous.default", "aten.alias.default")


@dataclass(frozen=True, eq=False)
class Site:
    """A layer that can be refitted, and what its output runs into.

    Attributes:
        layer: The layer.
        call: The instruction that calls it.
        norm: Batch norm right behind it, by path.
        sum_name: Instruction that adds a shortcut, None if there is none.
        shortcut: Name of the other operand.
        shortcut_needs: All steps the other operand depends on.
    """

    layer: LayerPlan
    call: Instruction
    norm: str | None
    sum_name: str | None = None
    shortcut: str | None = None
    shortcut_needs: frozenset[str] = frozenset()


def find_sites(model: nn.Module, plan: IndexPlan) -> list[Site]:
    """The convolutions and linear layers of a program that are called as modules, once each."""
    calls: dict[str, list[Instruction]] = {}
    for instruction in plan.program:
        if instruction.op == "call_module":
            calls.setdefault(instruction.target, []).append(instruction)
    users = consumers(plan)
    steps = {i.name: i for i in plan.program}
    once = {path for path, found in calls.items() if len(found) == 1}
    sites = []
    for layer in plan.layers_plan:
        found = calls.get(layer.spec.name, [])
        if len(found) != 1 or layer.spec.kind not in ("conv", "linear"):
            continue
        module = model.get_submodule(layer.spec.name)
        if isinstance(module, (nn.Conv2d, nn.Linear)) and not isinstance(
            getattr(module, "padding", 0), str
        ):
            sites.append(_site(model, layer, found[0], users, steps, once))
    return sites


def fitted_together(model: nn.Module, plan: IndexPlan) -> list[tuple[str, str]]:
    """Pairs of a program's instructions that are only fitted together.

    Layers, and the sums with shortcuts they repay; and layers, and whatever else reads a tensor
    that their refit writes: the batch norm that takes the intercept, layers with tied weights.
    """
    readers, pairs = _readers(model, plan), []
    for site in find_sites(model, plan):
        layer = model.get_submodule(site.call.target)
        norm = None if site.norm is None else model.get_submodule(site.norm)
        written = [layer.weight, layer.bias, getattr(norm, "running_mean", None)]
        others = [name for tensor in written for name in readers.get(id(tensor), ())]
        others += [] if site.sum_name is None else [site.sum_name]
        pairs += [(site.call.name, name) for name in others if name != site.call.name]
    return pairs


def shared_tensors(model: nn.Module, plan: IndexPlan) -> dict[str, frozenset[str]]:
    """Weights and biases of sites that something else reads too, as tied ones.

    Returns:
        The site's call -> ``weight``, ``bias`` or both; sites that share nothing are left out.
    """
    readers, shared = _readers(model, plan), dict[str, frozenset[str]]()
    for site in find_sites(model, plan):
        layer = model.get_submodule(site.call.target)
        found = {
            leaf
            for leaf in ("weight", "bias")
            if set(readers.get(id(getattr(layer, leaf)), ())) - {site.call.name}
        }
        if found:
            shared[site.call.name] = frozenset(found)
    return shared


def _readers(model: nn.Module, plan: IndexPlan) -> dict[int, list[str]]:
    """Instructions that read each of a network's tensors, by its id."""
    users, found = consumers(plan), dict[int, list[str]]()
    for step in plan.program:
        if step.op == "call_module":
            module = model.get_submodule(step.target)
            tensors, names = [*module.parameters(), *module.buffers()], [step.name]
        elif step.op == "get_attr" and step.target not in plan.constants:
            tensors = [operator.attrgetter(step.target)(model)]
            names = [user.name for user in users[step.name]]
        else:
            continue
        for tensor in tensors:
            found.setdefault(id(tensor), []).extend(names)
    return found


def _site(
    model: nn.Module,
    layer: LayerPlan,
    call: Instruction,
    users: dict[str, list[Instruction]],
    steps: dict[str, Instruction],
    once: set[str],
) -> Site:
    last, norm = call, None
    while len(users[last.name]) == 1:
        user = users[last.name][0]
        # One that is called more than once cannot take an intercept of this layer's.
        if norm is None and user.target in once and _is_batchnorm(model, user, layer.spec):
            last, norm = user, user.target
        elif user.target in _PASSING or _is_dropout(model, user):
            last = user
        elif user.target in ("aten.add.Tensor", "aten.add_.Tensor") and not user.kwargs:
            other = [a["ref"] for a in user.args if isinstance(a, dict) and a != {"ref": last.name}]
            if len(other) == 1:
                needs = frozenset(_ancestors(steps, other[0]))
                return Site(layer, call, norm, user.name, other[0], needs)
            break
        else:
            break
    return Site(layer, call, norm)


def _is_batchnorm(model: nn.Module, step: Instruction, layer: LayerSpec) -> bool:
    """Whether it is a batch norm over the layer's outputs that has a mean to write to."""
    if step.op != "call_module" or not writes_dimension_one(layer):
        return False
    statistics = getattr(model.get_submodule(step.target), "running_var", None)
    return statistics is not None and len(statistics) == layer.out_channels


def _is_dropout(model: nn.Module, step: Instruction) -> bool:
    return step.op == "call_module" and "Dropout" in type(model.get_submodule(step.target)).__name__


def _ancestors(steps: dict[str, Instruction], name: str) -> set[str]:
    """Everything a value depends on, itself included."""
    found: set[str] = set()
    queue = [name]
    while queue:
        current = queue.pop()
        if current not in found:
            found.add(current)
            queue += references([steps[current].args, steps[current].kwargs])
    return found
