"""Which targets can be pruned without leaving the user's own module classes.

The exported graph shows every size inside a ``forward`` as a number; it does not show whether the
user's code wrote that number down, took it from an attribute of the module, or read it off a
tensor. Only the first keeps a slim network from being the user's own classes. So sizes that follow
channels are first supposed to look after themselves: attributes of the same value are set to the
new length, everything else is taken to be read off tensors. Then both forms of strongly pruned
networks with random weights are run and compared; a module class whose code does not follow gives
itself away, and the targets that its sizes depend on need the graph form.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from automl.graph.export import Deadline
from automl.graph.materialise import Materialiser
from automl.plan import Axis, IndexPlan, ModulePatch
from automl.types import Target

#: Kept sets that are compared; two, so that no two targets have as many units left in both.
_PATTERNS = 2


@dataclass(frozen=True)
class OpenSize:
    """A number inside a user's ``forward`` that follows an axis.

    Attributes:
        module: Path of the module whose forward it is.
        axis: The axis whose length it is.
    """

    module: str
    axis: int


def choose_form(
    model: nn.Module,
    plan: IndexPlan,
    sizes: Sequence[OpenSize],
    inputs: tuple[Any, ...],
    deadline: Deadline,
) -> IndexPlan:
    """The plan with its patches of user attributes, ``graph_targets`` and ``module_form``.

    Args:
        model: The dense model in eval mode.
        plan: Its plan, with the patches that are certain.
        sizes: Numbers in forwards that no certain patch looks after.
        inputs: What the forms are compared on; the batch must be the plan's.
        deadline: Raises when the analysis takes too long.
    """
    chooser = _Chooser(model, plan, sizes, inputs, deadline)
    return chooser.choose()


class _Chooser:
    def __init__(
        self,
        model: nn.Module,
        plan: IndexPlan,
        sizes: Sequence[OpenSize],
        inputs: tuple[Any, ...],
        deadline: Deadline,
    ) -> None:
        self._model, self._plan, self._inputs, self._deadline = model, plan, inputs, deadline
        self._sizes: dict[str, list[OpenSize]] = defaultdict(list)
        for size in sizes:
            cls = type(model.get_submodule(size.module))
            self._sizes[f"{cls.__module__}.{cls.__qualname__}"].append(size)
        self._attributes = {
            name: tuple(self._matching_attributes(group)) for name, group in self._sizes.items()
        }

    def choose(self) -> IndexPlan:
        """Everything at once where possible, else class by class."""
        with_attributes = dict.fromkeys(self._sizes, True)
        for following in (with_attributes, dict.fromkeys(self._sizes, False)):
            plan = self._plan_for(following)
            if self._agrees(plan):
                return plan
            if not any(self._attributes.values()):
                break
        accepted: dict[str, bool] = {}
        for name in self._sizes if len(self._sizes) > 1 else ():
            for attributes in (True, False) if self._attributes[name] else (False,):
                if self._agrees(self._plan_for({**accepted, name: attributes})):
                    accepted[name] = attributes
                    break
        plan = self._plan_for(accepted)
        return replace(plan, module_form=bool(accepted) or self._agrees(plan))

    def _plan_for(self, following: dict[str, bool]) -> IndexPlan:
        """The plan if these classes follow by themselves, with or without their attributes."""
        patches = [
            patch
            for name, attributes in following.items()
            for patch in (self._attributes[name] if attributes else ())
        ]
        rigid = {
            size.axis
            for name, group in self._sizes.items()
            if name not in following
            for size in group
        }
        graph_targets = _targets_on([self._plan.axes[axis] for axis in rigid], self._plan.targets)
        return replace(
            self._plan, patches=(*self._plan.patches, *patches), graph_targets=graph_targets
        )

    def _matching_attributes(self, sizes: Sequence[OpenSize]) -> Iterator[ModulePatch]:
        """Integer attributes with the value of a size, one to one in order of definition."""
        known = {(patch.module, patch.attribute) for patch in self._plan.patches}
        axes: dict[tuple[str, int], list[int]] = defaultdict(list)
        for size in sizes:
            same = axes[size.module, len(self._plan.axes[size.axis])]
            if size.axis not in same:
                same.append(size.axis)
        for (path, value), followed in axes.items():
            attributes = [
                name
                for name, found in vars(self._model.get_submodule(path)).items()
                if type(found) is int and found == value and (path, name) not in known
            ]
            if len(followed) == 1:
                followed = followed * len(attributes)
            if len(followed) == len(attributes):
                for name, axis in zip(attributes, followed, strict=True):
                    yield ModulePatch(path, name, axis)

    def _agrees(self, plan: IndexPlan) -> bool:
        """Whether both forms compute the same, whatever is pruned outside ``graph_targets``."""
        self._deadline.check()
        materialise = Materialiser(self._model, plan)
        return all(
            _forms_agree(materialise, _some_units(plan, pattern), self._inputs)
            for pattern in range(_PATTERNS)
        )


def _forms_agree(
    materialise: Materialiser, kept_units: list[list[int]], inputs: tuple[Any, ...]
) -> bool:
    slim = materialise.module_form(kept_units)
    _randomise(slim)
    try:
        with torch.no_grad():
            graph = materialise.as_graph(slim, kept_units)
            return _equal(_tensors(graph(*inputs)), _tensors(slim(*inputs)))
    except Exception:  # whatever the user's code raises when its sizes do not follow
        return False


def _some_units(plan: IndexPlan, pattern: int) -> list[list[int]]:
    """Scattered units, a fifth to a half of each target that does not need the graph form."""
    random = np.random.default_rng(pattern)
    kept = []
    for target in plan.targets:
        if target.index in plan.graph_targets:
            kept.append(list(range(target.units)))
            continue
        low = max(1, target.units // 5)
        count = low + (target.index * (pattern + 3)) % max(1, target.units // 2 - low + 1)
        kept.append(sorted(random.choice(target.units, count, replace=False).tolist()))
    return kept


@torch.no_grad()
def _randomise(model: nn.Module) -> None:
    """Weights that hide nothing: fresh networks often have heads and last norms of zero."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not tensor.is_floating_point():
            continue
        if isinstance(tensor, nn.Parameter) and tensor.dim() > 1:
            values = torch.randn(tensor.shape, generator=generator)
            values *= (tensor.shape[0] / max(tensor.numel(), 1)) ** 0.5
        elif isinstance(tensor, nn.Parameter) or name.endswith("running_var"):
            values = torch.rand(tensor.shape, generator=generator) + 0.5
        else:
            continue
        tensor.copy_(values)


def _equal(expected: list[Tensor], found: list[Tensor]) -> bool:
    """Whether outputs agree and say anything at all."""
    if len(expected) != len(found):
        return False
    if not all(_close(*pair) for pair in zip(expected, found, strict=True)):
        return False
    return any(bool((leaf != leaf.flatten()[0]).any()) for leaf in expected if leaf.numel())


def _close(expected: Tensor, found: Tensor) -> bool:
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return False
    if not expected.is_floating_point() or not expected.numel():
        return bool((expected == found).all())
    scale = float(expected.abs().max())
    tolerance = 1e-4 if torch.finfo(expected.dtype).bits > 16 else 3e-2
    return np.isfinite(scale) and float((expected - found).abs().max()) <= tolerance * scale


def _tensors(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]


def _targets_on(axes: Sequence[Axis], targets: tuple[Target, ...]) -> frozenset[int]:
    """Targets whose units occur in any of the axes."""
    owner = np.repeat(np.arange(len(targets)), [target.units for target in targets])
    found: set[int] = set()
    for axis in axes:
        both = np.concatenate([axis.first, axis.second])
        found |= set(owner[both[both >= 0]].tolist())
    return frozenset(found)
