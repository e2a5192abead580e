"""From a dense model, a plan and the kept units to a really smaller network, in milliseconds.

Nothing is traced, deep-copied or run: the module tree is cloned shallowly from a recipe made once
per model, and every tensor that shrinks is index-selected. Tensors that do not shrink are copied,
so that training the slim network never touches the dense one.

Two forms. The *module form* keeps the user's own classes. The *graph form* is a
``torch.fx.GraphModule`` written from the plan's program; it is used when pruning changes constants
inside ``forward`` (view sizes, split sizes). Both carry the same parameter names.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from automl.graph.rebuild import build_graph_module
from automl.plan import IndexPlan
from automl.types import InputError, Kept

#: Which units of each target stay, ascending; one sequence per target.
KeptUnits = Sequence[Sequence[int]]


@dataclass(frozen=True, eq=False)
class _Slot:
    """A tensor of a module: where it is, and which axes cut it."""

    module: int
    name: str
    tensor: Tensor
    key: int
    axes: tuple[tuple[int, int], ...]
    is_parameter: bool


class Materialiser:
    """Makes slim networks of one dense model; construct once, call often.

    Args:
        model: The dense model.
        plan: Its plan.

    Raises:
        InputError: If the model is not the one the plan was made from; names the first mismatch.
    """

    def __init__(self, model: nn.Module, plan: IndexPlan) -> None:
        """Checks the model against the plan and writes the recipe."""
        self._plan = plan
        self.model = model
        self._modules: list[nn.Module] = []
        self._children: list[list[tuple[str, int]]] = []
        self._number: dict[int, int] = {}
        self._add(model)
        self._axes_of = _axes_by_name(plan)
        _check_shapes(model, plan)
        self._slots = self._find_slots()
        self._patches = self._find_patches()
        self._templates = [self._template(module) for module in self._modules]

    def __call__(self, kept_units: KeptUnits) -> nn.Module:
        """The slim network, in the mode (train or eval) of the dense model.

        Args:
            kept_units: For each target the ascending indices of the units that stay.

        Raises:
            InputError: If a target would be empty or an index is out of range.
        """
        return self.finish(self._clone(kept_units), self._counts(kept_units))

    def finish(self, module: nn.Module, kept: Kept) -> nn.Module:
        """The form a slim network has to have: ``module`` itself or a graph module on it.

        Args:
            module: A slim network from :meth:`module_form`.
            kept: Its kept counts, shape (targets,).
        """
        if self._plan.needs_graph_form(kept):
            return build_graph_module(module, self._plan, kept)
        return module

    def graph_form(self, kept_units: KeptUnits) -> nn.Module:
        """The slim network as a graph module, whether or not it has to be one."""
        return build_graph_module(
            self._clone(kept_units), self._plan, self._counts(kept_units)
        )

    def module_form(self, kept_units: KeptUnits) -> nn.Module:
        """The slim network in the user's own classes, whether or not that is right."""
        self._counts(kept_units)
        return self._clone(kept_units)

    def _counts(self, kept_units: KeptUnits) -> Kept:
        targets = self._plan.targets
        if len(kept_units) != len(targets):
            raise InputError(f"expected units for {len(targets)} targets, got {len(kept_units)}")
        for target, units in zip(targets, kept_units, strict=True):
            if len(units) == 0:
                raise InputError(f"target {target.name!r} must keep at least one unit")
            if min(units) < 0 or max(units) >= target.units:
                raise InputError(f"target {target.name!r} has units 0 to {target.units - 1}")
        return np.array([len(units) for units in kept_units], dtype=np.int64)

    # ---- the recipe

    def _add(self, module: nn.Module) -> int:
        if id(module) in self._number:
            return self._number[id(module)]
        number = self._number[id(module)] = len(self._modules)
        self._modules.append(module)
        self._children.append([])
        for name, child in module._modules.items():
            self._children[number].append((name, -1 if child is None else self._add(child)))
        return number

    def _find_slots(self) -> list[_Slot]:
        slots, seen = [], {}
        for path, module in self.model.named_modules(remove_duplicate=True):
            number = self._number[id(module)]
            prefix = f"{path}." if path else ""
            for store, is_parameter in ((module._parameters, True), (module._buffers, False)):
                for name, tensor in store.items():
                    if tensor is None:
                        continue
                    key = seen.setdefault(id(tensor), len(seen))
                    axes = self._axes_of.get(prefix + name, ())
                    slots.append(_Slot(number, name, tensor, key, axes, is_parameter))
        return slots

    def _find_patches(self) -> list[tuple[int, str, int, bool]]:
        patches = []
        for patch in self._plan.patches:
            module = self.model.get_submodule(patch.module)
            as_tuple = isinstance(getattr(module, patch.attribute), tuple)
            patches.append((self._number[id(module)], patch.attribute, patch.axis, as_tuple))
        return patches

    def _template(self, module: nn.Module) -> dict[str, Any]:
        template = dict(module.__dict__)
        for name in list(template):
            if name.endswith("_hooks") or name.endswith("_hooks_with_kwargs"):
                template[name] = template[name].copy()
        return template

    # ---- cloning

    def _clone(self, kept_units: KeptUnits) -> nn.Module:
        masks = [axis.mask(self._plan.alive(kept_units)) for axis in self._plan.axes]
        indices = [torch.from_numpy(np.flatnonzero(mask)) for mask in masks]
        whole = [bool(mask.all()) for mask in masks]
        clones = self._empty_clones()
        self._fill(clones, indices, whole)
        for number, attribute, axis, as_tuple in self._patches:
            length = len(indices[axis])
            clones[number].__dict__[attribute] = (length,) if as_tuple else length
        return clones[0]

    def _empty_clones(self) -> list[nn.Module]:
        clones = []
        for module, template in zip(self._modules, self._templates, strict=True):
            clone = object.__new__(type(module))
            state = template.copy()
            state["_parameters"] = dict(template["_parameters"])
            state["_buffers"] = dict(template["_buffers"])
            clone.__dict__.update(state)
            clones.append(clone)
        for clone, children in zip(clones, self._children, strict=True):
            made = {name: None if n < 0 else clones[n] for name, n in children}
            clone.__dict__["_modules"] = made
        return clones

    @torch.no_grad()
    def _fill(self, clones: list[nn.Module], indices: list[Tensor], whole: list[bool]) -> None:
        made: dict[int, Tensor] = {}
        moved: dict[tuple[int, torch.device], Tensor] = {}
        for slot in self._slots:
            tensor = made.get(slot.key)
            if tensor is None:
                tensor = self._cut(slot, indices, whole, moved)
                if slot.is_parameter:
                    tensor = nn.Parameter(tensor, requires_grad=slot.tensor.requires_grad)
                made[slot.key] = tensor
            store = "_parameters" if slot.is_parameter else "_buffers"
            clones[slot.module].__dict__[store][slot.name] = tensor

    def _cut(
        self,
        slot: _Slot,
        indices: list[Tensor],
        whole: list[bool],
        moved: dict[tuple[int, torch.device], Tensor],
    ) -> Tensor:
        tensor = slot.tensor.detach()
        changed = False
        for dim, axis in slot.axes:
            if whole[axis]:
                continue
            index = indices[axis]
            if tensor.device.type != "cpu":
                index = moved.setdefault((axis, tensor.device), index.to(tensor.device))
            tensor = tensor.index_select(dim, index)
            changed = True
        return tensor if changed else tensor.clone()


def _axes_by_name(plan: IndexPlan) -> dict[str, tuple[tuple[int, int], ...]]:
    axes = {
        tensor.name: tuple((d, axis) for d, axis in enumerate(tensor.axes) if axis is not None)
        for tensor in plan.tensors
    }
    return {**axes, **{alias: axes[name] for alias, name in plan.aliases.items()}}


def _check_shapes(model: nn.Module, plan: IndexPlan) -> None:
    state: Mapping[str, Tensor] = OrderedDict(
        [
            *model.named_parameters(remove_duplicate=False),
            *model.named_buffers(remove_duplicate=False),
        ]
    )
    for tensor in plan.tensors:
        if tensor.name not in state:
            raise InputError(f"the plan is of another model: {tensor.name!r} is not in this one")
        found = tuple(state[tensor.name].shape)
        if found != tensor.shape:
            raise InputError(
                f"the plan is of another model: {tensor.name!r} has shape {found} here, "
                f"{tensor.shape} in the plan"
            )
