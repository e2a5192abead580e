"""Which targets can be pruned without leaving the user's own module classes.

The exported graph shows every size inside a ``forward`` as a number; it does not show whether the
user's code wrote that number down, took it from an attribute of the module, or read it off a
tensor. Only the first keeps a slim network from being the user's own classes. So every target is
first supposed to be followed: attributes that have the value of a size are set to the new length,
everything else is taken to be read off tensors. Then the module form and the graph form of
strongly pruned networks with random weights are run and compared. Where they differ, targets are
tried family by family (those with names alike, numbers aside), first for shapes alone, without
computing anything. The families that fail need the graph form.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from automl.graph.buffers import buffers_kept
from automl.graph.deadline import Deadline
from automl.graph.export import quiet
from automl.graph.inputs import fresh, tensors_of
from automl.graph.materialise import Materialiser
from automl.graph.same import close
from automl.plan import IndexPlan, ModulePatch
from automl.plan_axes import Axis
from automl.types import Target

#: Multiples of these, modulo 1, are spread evenly: one kept set each, in which targets of one size
#: rarely have as many units left; one has the larger of neighbours first, the other the smaller.
#: (The golden ratio and the plastic number, inverted.)
_SPREAD = (0.6180339887, -0.7548776662)
#: How counts are chosen, most telling first: two spreads, equal counts (code that compares widths),
#: and nearly all (code that compares a width with a number).
_PATTERNS = 4


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
    if not plan.targets:
        return plan
    patches = (*plan.patches, *_matching_attributes(model, plan, sizes))
    chooser = _Chooser(model, inputs, deadline)
    patched = replace(plan, patches=patches)
    if chooser.agrees(patched):
        return patched
    families = _families(plan, sizes)
    candidates = [chooser.largest(patched, families, chooser.runs)]
    if candidates[0].graph_targets and len(patches) > len(plan.patches):
        candidates.append(chooser.largest(plan, families, chooser.runs))
    best = min(candidates, key=lambda candidate: len(candidate.graph_targets))
    for candidate in (best, *_with_attention_in_graph(best)):
        if chooser.agrees(candidate):
            return candidate
    last = chooser.largest(plan, families, chooser.agrees)
    return last if chooser.agrees(last) else replace(plan, module_form=False)


def failing_targets(
    model: nn.Module, plan: IndexPlan, inputs: tuple[Any, ...], deadline: Deadline
) -> tuple[Target, ...]:
    """Targets of which networks with few units do not run, whichever form they take.

    The graph form runs wherever the module form was found to, so it is asked about the rest only.
    """
    if plan.module_form and not plan.graph_targets:
        return ()
    chooser = _Chooser(model, inputs, deadline)
    failing = chooser.largest(plan, _families(plan, ()), chooser.runs_as_graph).graph_targets
    return tuple(target for target in plan.targets if target.index in failing)


def _matching_attributes(
    model: nn.Module, plan: IndexPlan, sizes: Sequence[OpenSize]
) -> Iterator[ModulePatch]:
    """Integer attributes with the value of a size, one to one in order of definition."""
    known = {(patch.module, patch.attribute) for patch in plan.patches}
    axes: dict[tuple[str, int], list[int]] = defaultdict(list)
    for size in sizes:
        same = axes[size.module, len(plan.axes[size.axis])]
        if size.axis not in same:
            same.append(size.axis)
    for (path, value), followed in axes.items():
        attributes = [
            name
            for name, found in vars(model.get_submodule(path)).items()
            if _is_number(found, value) and (path, name) not in known
        ]
        if len(followed) == 1:
            followed = followed * len(attributes)
        if len(followed) == len(attributes):
            for name, axis in zip(attributes, followed, strict=True):
                yield ModulePatch(path, name, axis)


def _is_number(found: Any, value: int) -> bool:
    """Whether an attribute is that whole number, or a tuple of it; arrays cannot be asked."""
    if type(found) is tuple and len(found) == 1:
        found = found[0]
    return type(found) is int and found == value


def _families(plan: IndexPlan, sizes: Sequence[OpenSize]) -> list[frozenset[int]]:
    """Targets whose names differ in numbers only; those that no open size follows come first."""
    followed = _targets_on((plan.axes[size.axis] for size in sizes), plan.targets)
    families: dict[tuple[bool, str], set[int]] = defaultdict(set)
    for target in plan.targets:
        name = re.sub(r"\d+", "*", target.name)
        families[target.index in followed, name].add(target.index)
    return [frozenset(families[key]) for key in sorted(families, key=lambda key: key[0])]


def _with_attention_in_graph(plan: IndexPlan) -> Iterator[IndexPlan]:
    """Variants that are right although the code scales attention by the head dimension it finds."""
    contracted = _targets_on(
        (
            plan.axes[layer.in_axis]
            for layer in plan.layers_plan
            if layer.spec.kind == "matmul" and layer.in_axis is not None
        ),
        plan.targets,
    )
    heads = {target.index for target in plan.targets if target.kind != "channel"}
    for more in (contracted, contracted | heads):
        if not more <= plan.graph_targets:
            yield replace(plan, graph_targets=plan.graph_targets | more)


class _Chooser:
    def __init__(self, model: nn.Module, inputs: tuple[Any, ...], deadline: Deadline) -> None:
        self._model, self._inputs, self._deadline = model, inputs, deadline

    def agrees(self, plan: IndexPlan) -> bool:
        """Whether both forms compute the same, whatever is pruned outside ``graph_targets``."""
        materialise = Materialiser(self._model, plan)
        for pattern in range(_PATTERNS):
            self._deadline.check()
            with self._deadline.interrupting():
                if not _forms_agree(materialise, _some_units(plan, pattern), self._inputs):
                    return False
        return True

    def largest(
        self,
        plan: IndexPlan,
        families: Sequence[frozenset[int]],
        accept: Callable[[IndexPlan], bool],
    ) -> IndexPlan:
        """As few ``graph_targets`` as ``accept`` allows."""
        everything = frozenset(range(len(plan.targets)))
        accepted: frozenset[int] = frozenset()
        waiting = [list(families)]
        while waiting:
            more = waiting.pop()
            together = accepted.union(*more)
            if accept(replace(plan, graph_targets=everything - together)):
                accepted = together
            elif len(more) > 1:
                half = len(more) // 2
                waiting += [more[half:], more[:half]]
        return replace(plan, graph_targets=everything - accepted)

    def runs(self, plan: IndexPlan) -> bool:
        """Whether the shapes in the module form fit; nothing is computed."""
        materialise = Materialiser(self._model, plan)
        for pattern in range(len(_SPREAD)):
            self._deadline.check()
            slim = materialise.module_form(_some_units(plan, pattern))
            try:
                with self._deadline.interrupting(), quiet(), torch.no_grad():
                    with FakeTensorMode(allow_non_fake_inputs=True):
                        slim(*self._inputs)
            except Exception:  # whatever the user's code raises when its sizes do not follow
                return False
        return True

    def runs_as_graph(self, plan: IndexPlan) -> bool:
        """Whether the graph form runs when units outside ``graph_targets`` are pruned."""
        self._deadline.check()
        graph = Materialiser(self._model, plan).graph_form(_some_units(plan, 0))
        try:
            with self._deadline.interrupting(), quiet(), torch.no_grad():
                graph(*fresh(self._inputs))
        except Exception:  # whatever operators raise whose sizes do not follow
            return False
        return True


def _forms_agree(
    materialise: Materialiser, kept_units: list[list[int]], inputs: tuple[Any, ...]
) -> bool:
    slim = materialise.module_form(kept_units)
    _randomise(slim)
    try:
        with quiet(), torch.no_grad():
            with buffers_kept(slim):  # the graph form shares them
                found = tensors_of(slim(*fresh(inputs)))  # first, as it is what fails
            graph = materialise.as_graph(slim, kept_units)
            return _equal(tensors_of(graph(*fresh(inputs))), found)
    except Exception:  # whatever the user's code raises when its sizes do not follow
        return False


def _some_units(plan: IndexPlan, pattern: int) -> list[list[int]]:
    """Scattered units, some of each target that does not need the graph form."""
    random = np.random.default_rng(pattern)
    common = _common_count(plan)
    kept = []
    for target in plan.targets:
        if target.index in plan.graph_targets:
            kept.append(list(range(target.units)))
            continue
        if pattern < len(_SPREAD):
            count = _spread_count(target, _SPREAD[pattern])
        else:
            count = min(target.units, common) if pattern == 2 else max(1, target.units * 9 // 10)
        kept.append(sorted(random.choice(target.units, count, replace=False).tolist()))
    return kept


def _spread_count(target: Target, spread: float) -> int:
    """Few of large targets, and rarely as many as of the others."""
    low = max(1, target.units // 5)
    high = target.units // 2 if target.units > 8 else max(1, target.units - 1)
    return low + int((target.index + 1) * spread % 1 * (high - low + 1))


def _common_count(plan: IndexPlan) -> int:
    """As many units as all but tiny targets can keep, and lose some."""
    return min((target.units for target in plan.targets if target.units >= 8), default=8) // 2


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
    if not all(close(*pair) for pair in zip(expected, found, strict=True)):
        return False
    return any(bool((leaf != leaf.flatten()[0]).any()) for leaf in expected if leaf.numel())


def _targets_on(axes: Iterable[Axis], targets: tuple[Target, ...]) -> frozenset[int]:
    """Targets whose units occur in any of the axes."""
    owner = np.repeat(np.arange(len(targets)), [target.units for target in targets])
    found: set[int] = set()
    for axis in axes:
        both = np.concatenate([axis.first, axis.second])
        found |= set(owner[both[both >= 0]].tolist())
    return frozenset(found)
