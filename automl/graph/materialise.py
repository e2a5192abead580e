"""From a dense model, a plan and the kept units to a really smaller network, in milliseconds.

Nothing is traced, deep-copied or run: the module tree is cloned shallowly from a recipe made once
per model, and every tensor that shrinks is index-selected. Tensors that do not shrink are copied,
so that training the slim network never touches the dense one.

Two forms. The *module form* keeps the user's own classes. The *graph form* is a
``torch.fx.GraphModule`` written from the plan's program; it is used when pruning changes constants
inside ``forward`` (view sizes, split sizes). Both carry the same parameter names.
"""

from __future__ import annotations

import types
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from automl.graph.mask_buffers import SUFFIX, is_mask
from automl.graph.rebuild import build_graph_module
from automl.plan import IndexPlan
from automl.types import InputError, Kept

#: Which units of each target stay, ascending; one sequence per target.
KeptUnits = Sequence[Sequence[int]]

#: Where modules keep their tensors.
_STORES = ("_parameters", "_buffers")


class _Slot(NamedTuple):
    """A parameter or buffer: in which module it is found first, and which axes cut it."""

    store: dict[str, Any]
    name: str
    cuts: tuple[tuple[int, int], ...]
    is_parameter: bool


class Materialiser:
    """Makes slim networks of one dense model; construct once, call often.

    The dense model may move to another device and change its mode or its weights' values between
    calls; its modules and the shapes of its tensors must stay.

    Args:
        model: The dense model.
        plan: Its plan.

    Raises:
        InputError: If the model is not the one the plan was made from; names the first mismatch.
    """

    def __init__(self, model: nn.Module, plan: IndexPlan) -> None:
        """Checks the model against the plan and writes the recipe."""
        _check_shapes(model, plan)
        self._plan = plan
        self.model = model
        self._modules: list[nn.Module] = []
        self._number: dict[int, int] = {}
        self._add(model)
        self._children = [
            [(name, None if child is None else self._number[id(child)])
             for name, child in module._modules.items()]
            for module in self._modules
        ]  # fmt: skip
        self._slots: list[_Slot] = []
        self._places: list[tuple[int, str, str, int]] = []
        self._slot_of: dict[int, int] = {}
        self._find_slots(_cuts_by_name(plan))
        self._patches = self._find_patches()
        self._private = [self._private_attributes(module) for module in self._modules]

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process writes the recipe anew: it holds addresses."""
        return type(self), (self.model, self._plan)

    def __call__(self, kept_units: KeptUnits) -> nn.Module:
        """The slim network, in the mode (train or eval) of the dense model.

        Args:
            kept_units: For each target the ascending indices of the units that stay.

        Raises:
            InputError: If a target would be empty or an index is out of range or order.
        """
        return self.finish(self.module_form(kept_units), _counts(kept_units))

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
        return self.as_graph(self.module_form(kept_units), kept_units)

    def as_graph(self, module: nn.Module, kept_units: KeptUnits) -> nn.Module:
        """A graph module that shares the tensors of ``module``, a slim network."""
        return build_graph_module(module, self._plan, _counts(kept_units))

    def module_form(self, kept_units: KeptUnits) -> nn.Module:
        """The slim network in the user's own classes, whether or not that is right."""
        positions = self._plan.positions(kept_units)
        tensors = self._cut(positions)
        clones = self._empty_clones()
        for number, store, name, slot in self._places:
            clones[number].__dict__[store][name] = tensors[slot]
        self._separate(clones, tensors)
        for number, attribute, axis, as_tuple in self._patches:
            length = len(positions[axis])
            clones[number].__dict__[attribute] = (length,) if as_tuple else length
        return clones[0]

    # ---- the recipe

    def _add(self, module: nn.Module) -> None:
        if id(module) in self._number:
            return
        self._number[id(module)] = len(self._modules)
        self._modules.append(module)
        for child in module._modules.values():
            if child is not None:
                self._add(child)

    def _find_slots(self, cuts: dict[str, tuple[tuple[int, int], ...]]) -> None:
        for path, module in self.model.named_modules():
            prefix = f"{path}." if path else ""
            for store in _STORES:
                tensors: dict[str, Tensor | None] = getattr(module, store)
                for name, tensor in tensors.items():
                    if tensor is None:
                        continue
                    if id(tensor) not in self._slot_of:
                        self._slot_of[id(tensor)] = len(self._slots)
                        is_parameter = store == "_parameters"
                        # No forward reads a mask, so that the plan does not know it.
                        like = name.removesuffix(SUFFIX) if is_mask(module, name) else name
                        cut = cuts.get(prefix + like, ())
                        self._slots.append(_Slot(tensors, name, cut, is_parameter))
                    place = (self._number[id(module)], store, name, self._slot_of[id(tensor)])
                    self._places.append(place)

    def _find_patches(self) -> list[tuple[int, str, int, bool]]:
        patches = []
        for patch in self._plan.patches:
            module = self.model.get_submodule(patch.module)
            as_tuple = isinstance(getattr(module, patch.attribute), tuple)
            patches.append((self._number[id(module)], patch.attribute, patch.axis, as_tuple))
        return patches

    def _private_attributes(self, module: nn.Module) -> tuple[list[str], list[str]]:
        """Attributes to copy (hooks, lists), and those that refer to modules or tensors."""
        plain, referring = [], []
        for name, value in module.__dict__.items():
            if name == "_modules":
                continue
            if name not in _STORES and self._refers(value):
                referring.append(name)
            elif isinstance(value, (dict, list, set)):
                plain.append(name)
        return plain, referring

    def _refers(self, value: Any) -> bool:
        if isinstance(value, (nn.Module, Tensor)):
            return isinstance(value, Tensor) or id(value) in self._number
        if isinstance(value, types.MethodType):
            return id(value.__self__) in self._number
        if isinstance(value, dict):
            return any(self._refers(item) for item in value.values())
        return isinstance(value, (list, tuple, set)) and any(self._refers(v) for v in value)

    # ---- cloning

    @torch.no_grad()
    def _cut(self, positions: Sequence[NDArray[np.int64]]) -> list[Tensor]:
        """The slim tensor of every slot."""
        whole = [len(p) == len(a) for p, a in zip(positions, self._plan.axes, strict=True)]
        here = [torch.from_numpy(p) for p in positions]
        indices_on = {torch.device("cpu"): here}
        made = []
        for store, name, cuts, is_parameter in self._slots:
            dense = tensor = store[name]
            for dim, axis in cuts:
                if not whole[axis]:
                    indices = indices_on.get(dense.device)
                    if indices is None:
                        indices = indices_on[dense.device] = [p.to(dense.device) for p in here]
                    tensor = tensor.index_select(dim, indices[axis])
            if tensor is dense:
                tensor = dense.clone()
            if is_parameter:
                tensor = nn.Parameter(tensor, dense.requires_grad)
                tensor.__dict__.update(dense.__dict__)  # what optimisers look for, as no decay
            made.append(tensor)
        return made

    def _empty_clones(self) -> list[nn.Module]:
        """Modules of the same classes and attributes, wired like the dense ones."""
        clones = []
        for module, (private, _) in zip(self._modules, self._private, strict=True):
            clone = object.__new__(type(module))
            state = clone.__dict__
            state.update(module.__dict__)
            for name in private:
                value = state[name]
                # Mostly hooks, of which there are none: making none is faster than copying none.
                empty = not value and type(value) is OrderedDict
                state[name] = OrderedDict() if empty else value.copy()
            clones.append(clone)
        for clone, children in zip(clones, self._children, strict=True):
            clone.__dict__["_modules"] = {
                name: None if number is None else clones[number] for name, number in children
            }
        return clones

    def _separate(self, clones: list[nn.Module], tensors: list[Tensor]) -> None:
        """Points attributes that refer to dense modules or tensors to the slim ones."""
        for clone, (_, referring) in zip(clones, self._private, strict=True):
            for name in referring:
                clone.__dict__[name] = self._rebound(clone.__dict__[name], clones, tensors)

    def _rebound(self, value: Any, clones: list[nn.Module], tensors: list[Tensor]) -> Any:
        if isinstance(value, nn.Module):
            number = self._number.get(id(value))
            return value if number is None else clones[number]
        if isinstance(value, Tensor):
            slot = self._slot_of.get(id(value))
            return _detached_copy(value) if slot is None else tensors[slot]
        if isinstance(value, types.MethodType):
            owner = self._rebound(value.__self__, clones, tensors)
            return types.MethodType(value.__func__, owner)
        if isinstance(value, dict):
            copied = value.copy()
            copied.update({k: self._rebound(v, clones, tensors) for k, v in value.items()})
            return copied
        if isinstance(value, (list, set)) or type(value) is tuple:
            return type(value)(self._rebound(item, clones, tensors) for item in value)
        return value


def _detached_copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def _counts(kept_units: KeptUnits) -> Kept:
    return np.array([len(units) for units in kept_units], dtype=np.int64)


def _cuts_by_name(plan: IndexPlan) -> dict[str, tuple[tuple[int, int], ...]]:
    """(dimension, axis) pairs of every tensor that can shrink, under all its names."""
    cuts = {
        tensor.name: tuple((d, axis) for d, axis in enumerate(tensor.axes) if axis is not None)
        for tensor in plan.tensors
    }
    return {**cuts, **{alias: cuts[name] for alias, name in plan.aliases.items()}}


def _check_shapes(model: nn.Module, plan: IndexPlan) -> None:
    state = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    for tensor in plan.tensors:
        if tensor.name not in state:
            raise InputError(f"the plan is of another model: {tensor.name!r} is not in this one")
        found = tuple(state[tensor.name].shape)
        if found != tensor.shape:
            raise InputError(
                f"the plan is of another model: {tensor.name!r} has shape {found} here, "
                f"{tensor.shape} in the plan"
            )
