"""Where a network's program can be taken up again with what it has computed so far.

Two networks that were pruned alike up to a place compute the same up to there. Who has run one of
them need not run the other from the start: the values that are still needed at that place are
enough.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import nn

from automl.graph.materialise import KeptUnits
from automl.graph.program import BATCH_SIZE, find_target, mutated, references
from automl.plan import IndexPlan, Instruction

#: In names of composed operators whose results always have memory of their own.
_MAKES_NEW = ("conv", "linear", "matmul", "norm", "pool", "attention", "upsample")

#: Steps that belong together: no cut comes between them.
Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Cut:
    """A place in a program.

    Attributes:
        position: So many instructions come before it.
        live: Names of their results that later ones read; weights, which the network has, aside.
        targets: How many targets have their first effect between this cut and the next.
        work: MACs before it, in the dense network.
    """

    position: int
    live: tuple[str, ...]
    targets: int = 1
    work: int = 0


class Prefixes:
    """The useful cuts of a network's program: the last ones before targets have their effects.

    Args:
        model: The dense network.
        plan: Its plan.
        together: Steps that no cut may separate.
    """

    def __init__(self, model: nn.Module, plan: IndexPlan, together: Iterable[Pair] = ()) -> None:
        """Goes through the program once; runs nothing."""
        self._plan = plan
        self._first = _first_effects(plan)
        steps = _Steps(model, plan, together)
        found: dict[int, int] = {}
        for first in self._first:
            position = next((at for at in range(first, 0, -1) if steps.can_be_cut(at)), 0)
            if position:
                found[position] = found.get(position, 0) + 1
        self.cuts = tuple(
            Cut(at, steps.live(at), found[at], steps.work(at)) for at in sorted(found)
        )

    def first_difference(self, here: KeptUnits, there: KeptUnits) -> int:
        """The first instruction that two networks of these units do not have in common.

        Returns:
            Its position, or the length of the program where there is none.
        """
        differing = (
            first
            for first, some, others in zip(self._first, here, there, strict=True)
            if tuple(some) != tuple(others)
        )
        return min(differing, default=len(self._plan.program))


def bottlenecks(
    model: nn.Module, plan: IndexPlan, together: Iterable[Pair] = ()
) -> tuple[Cut, ...]:
    """All cuts that a single value passes; the inputs and the outputs are none of them.

    The size of the batch is no such value.

    Args:
        model: The dense network.
        plan: Its plan.
        together: Steps that no cut may separate.
    """
    steps, found = _Steps(model, plan, together), []
    for position in range(1, len(plan.program)):
        live = tuple(name for name in steps.live(position) if name != BATCH_SIZE)
        if len(live) == 1 and steps.can_be_cut(position):
            found.append(Cut(position, live, work=steps.work(position)))
    return tuple(found)


def last_cut(cuts: Sequence[Cut], position: int) -> Cut | None:
    """The last of some cuts, which ascend, that lies at or before a position."""
    at = bisect_right([cut.position for cut in cuts], position)
    return cuts[at - 1] if at else None


def affordable(cuts: Sequence[Cut], sizes: Mapping[str, float], most: float) -> tuple[Cut, ...]:
    """The cuts worth having whose values fit.

    As long as there is room, the one is taken that saves most for its size: for each target whose
    last cut it becomes, the work from the cut that it had before.

    Args:
        cuts: Ascending.
        sizes: Bytes of every live value.
        most: Bytes there are.

    Returns:
        Ascending; the targets of those left out are counted to the cut before.
    """
    ahead = [0, *accumulate(cut.targets for cut in cuts)]  # targets of the first i cuts
    taken: list[int] = []
    kept: set[str] = set()
    while True:
        room = most - sum(sizes[name] for name in kept)
        best, value = None, -1.0
        for at, cut in enumerate(cuts):
            place = bisect_right(taken, at)
            size = sum(sizes[name] for name in cut.live if name not in kept)
            if size > room or at in taken[place - 1 : place]:
                continue
            end = taken[place] if place < len(taken) else len(cuts)
            saved = cut.work - (cuts[taken[place - 1]].work if place else 0)
            worth = (ahead[end] - ahead[at]) * saved / max(size, 1)
            if worth > value:
                best, value = at, worth
        if best is None:
            break
        insort(taken, best)
        kept.update(cuts[best].live)
    ends = [*taken[1:], len(cuts)]
    return tuple(
        replace(cuts[at], targets=ahead[end] - ahead[at])
        for at, end in zip(taken, ends, strict=False)
    )


def _first_effects(plan: IndexPlan) -> list[int]:
    """For every target the position of the first instruction that its units change."""
    targets_of = [_targets_of(plan, axis) for axis in range(len(plan.axes))]
    axes: dict[str, set[int]] = {}
    for tensor in plan.tensors:
        cut = {axis for axis in tensor.axes if axis is not None}
        names = [
            tensor.name,
            *(alias for alias, name in plan.aliases.items() if name == tensor.name),
        ]
        for name in names:
            axes.setdefault(name, set()).update(cut)
            axes.setdefault(name.rpartition(".")[0], set()).update(cut)
    weights = {i.name: axes.get(i.target, set()) for i in plan.program if i.op == "get_attr"}
    first = [len(plan.program)] * len(plan.targets)
    for position, step in reversed(list(enumerate(plan.program))):
        if step.op == "get_attr":
            continue
        touched = set(_axes_in([step.args, step.kwargs]))
        touched |= axes.get(step.target, set()) if step.op == "call_module" else set()
        for name in references([step.args, step.kwargs]):
            touched |= weights.get(name, set())
        for axis in touched:
            for target in targets_of[axis]:
                first[target] = position
    return first


def _targets_of(plan: IndexPlan, axis: int) -> set[int]:
    count = plan.counts[axis]
    found = {target for target, _ in count.linear}
    return found.union(*({target, other} for target, other, _ in count.bilinear))


def _axes_in(value: Any) -> Iterator[int]:
    """Axes whose lengths an instruction's arguments hold."""
    if isinstance(value, Mapping):
        for key in ("axis", "batch"):
            if key in value:
                yield int(value[key])
        for item in value.values():
            yield from _axes_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _axes_in(item)


class _Steps:
    """Answers whether a program can be cut at a place, and what is needed there."""

    def __init__(self, model: nn.Module, plan: IndexPlan, together: Iterable[Pair]) -> None:
        program = self._program = plan.program
        self._model, self._plan = model, plan
        self._at = {step.name: at for at, step in enumerate(program)}
        self._reads = [references([step.args, step.kwargs]) for step in program]
        last = dict(self._at)
        for at, names in enumerate(self._reads):
            last.update(dict.fromkeys(names, at))
        self._last = last
        places_of = ((self._at[one], self._at[other]) for one, other in together)
        self._spans = [(min(places), max(places)) for places in places_of]
        calls: dict[str, list[int]] = {}
        for at, step in enumerate(program):
            if step.op == "call_module":
                calls.setdefault(step.target, []).append(at)
        self._spans += [(places[0], places[-1]) for places in calls.values() if len(places) > 1]
        self._macs = dict.fromkeys(range(len(program)), 0)
        for layer, macs in zip(plan.layers_plan, plan.layer_macs(plan.dense).tolist(), strict=True):
            places = calls.get(layer.spec.name, [])
            if places:
                self._macs[places[0]] += macs

    def live(self, position: int) -> tuple[str, ...]:
        """What has been computed before a place and is read behind it."""
        return tuple(
            step.name
            for at, step in enumerate(self._program[:position])
            if step.op != "get_attr" and self._last[step.name] >= position
        )

    def work(self, position: int) -> int:
        """MACs before a place."""
        return sum(self._macs[at] for at in range(position))

    def can_be_cut(self, position: int) -> bool:
        """Whether something was computed, nothing is torn apart and no kept value changes later."""
        if any(first < position <= last for first, last in self._spans):
            return False
        live = self.live(position)
        computed = any(self._program[self._at[name]].op != "placeholder" for name in live)
        return computed and not self._changes(set(live), position)

    def _changes(self, same: set[str], position: int) -> bool:
        """Whether memory of some values is written to from a place on; ``same`` may share it."""
        for at in range(position, len(self._program)):
            step = self._program[at]
            if not self._reads[at] & same:
                continue
            if mutated(step) & same:
                return True
            if self._may_share(step):
                same.add(step.name)
        return False

    def _may_share(self, step: Instruction) -> bool:
        """Whether a result may lie in the memory of what it was computed from."""
        if step.op == "call_module":
            module = self._model.get_submodule(step.target)
            if "Dropout" in type(module).__name__ or isinstance(module, nn.Identity):
                return True
            # Folded into the layer before it, a batch norm hands on what it gets.
            before = [self._program[self._at[name]].op for name in self._reads[self._at[step.name]]]
            return hasattr(module, "running_var") and "call_module" in before
        if step.op != "call_function" or ":" in step.target or "dropout" in step.target:
            return True
        target: Any = find_target(step.target)
        if any(result.alias_info is not None for result in target._schema.returns):
            return True
        # What is composed of other operators may hand on what it gets, and does not say so.
        composed = torch._C._dispatch_has_kernel_for_dispatch_key(
            target.name(), "CompositeImplicitAutograd"
        )
        return composed and not any(name in step.target for name in _MAKES_NEW)
