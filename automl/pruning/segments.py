"""The stretches of a network between places where a single value passes.

There a pruned network can be compared with the dense one, and a stretch can be run for itself. Of
a network with several outputs, what lies behind the last such place belongs to no stretch.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from automl.graph.interpret import ProgramRun
from automl.graph.materialise import KeptUnits
from automl.graph.prefix import Cut, Pair, bottlenecks
from automl.graph.program import BATCH_SIZE, references
from automl.plan import IndexPlan, Instruction
from automl.pruning.sites import find_sites
from automl.types import Kept

#: Functions of every number for itself, as instructions and as modules.
_POINTWISE = [
    [f"{name}{ending}"]
    for name in ("relu", "relu6", "hardtanh", "silu", "gelu", "hardswish", "leaky_relu", "sigmoid")
    for ending in ("", "_")
]
_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.SiLU, nn.GELU, nn.Hardswish, nn.LeakyReLU)


@dataclass(frozen=True)
class _End:
    """A place where a block may end.

    Attributes:
        cut: Where.
        axis: Of the plan, of the channels of the value that passes there; None where unknown.
        dim: Dimension of the channels.
    """

    cut: Cut
    axis: int | None
    dim: int


@dataclass(frozen=True)
class Point:
    """A place where the pruned network is compared with the dense one.

    Attributes:
        cut: Where.
        dim: Dimension of the channels.
        channels: Which of the dense channels there are, None for all.
        size: Bytes of an input's dense values.
    """

    cut: Cut
    dim: int
    channels: Tensor | None
    size: int

    @property
    def name(self) -> str:
        """Of the value."""
        return self.cut.live[0]

    def of_dense(self, value: Tensor) -> Tensor:
        """What the pruned network has of a value of the dense one."""
        return value if self.channels is None else value.index_select(self.dim, self.channels)


@dataclass(frozen=True)
class Segment:
    """A stretch of the program.

    Attributes:
        start: Position of its first instruction.
        entry: Name of the value that it starts from.
        points: Where it is compared; the last one is its end.
        layers: Those called within it.
    """

    start: int
    entry: str
    points: tuple[Point, ...]
    layers: tuple[str, ...]

    @property
    def stop(self) -> int:
        """Position behind its last instruction."""
        return self.points[-1].cut.position


class Segments:
    """The segments of one dense network and the networks pruned from it.

    Args:
        model: The dense network.
        plan: Its plan.
        together: Pairs of instructions that no cut may separate.
    """

    def __init__(self, model: nn.Module, plan: IndexPlan, together: Sequence[Pair] = ()) -> None:
        """Looks for the ends of blocks; runs nothing."""
        self._model, self._plan = model, plan
        self._sites = find_sites(model, plan)
        entries = [step.name for step in plan.program if step.op == "placeholder"]
        self._entry = entries[0] if len(entries) == 1 and plan.dynamic_batch else None
        self._ends = [] if self._entry is None else self._ends_of_blocks(together)

    @property
    def applies(self) -> bool:
        """Whether there are any: the network takes one input, and batches of any size."""
        return self._entry is not None

    def _ends_of_blocks(self, together: Sequence[Pair]) -> list[list[_End]]:
        """Between each layer and the next, the places where a single value passes."""
        program = self._plan.program
        at = {step.name: position for position, step in enumerate(program)}
        cuts = bottlenecks(self._model, self._plan, together)
        axes = self._axes_of_channels()
        calls = sorted(at[site.call.name] for site in self._sites)
        found = []
        for before, call in pairwise(calls):
            between = [cut for cut in cuts if before < cut.position <= call]
            found.append([_End(cut, *axes.get(cut.live[0], (None, -1))) for cut in between])
        outputs = references(program[-1].args)
        if len(outputs) == 1:
            found.append([_End(Cut(len(program) - 1, tuple(outputs)), None, -1)])
        return found

    def _axes_of_channels(self) -> dict[str, tuple[int | None, int]]:
        """Values whose channels are known: name -> axis of the plan, and dimension.

        Known are what layers read, and what they, their batch norms and sums put out, also behind
        an activation.
        """
        found: dict[str, tuple[int | None, int]] = {}
        for site in self._sites:
            dim = 1 if site.layer.spec.kind == "conv" else -1
            norms = [
                step.name
                for step in self._plan.program
                if step.op == "call_module" and step.target == site.norm
            ]
            for name in (site.call.name, *norms, site.sum_name):
                if name is not None:
                    found[name] = (site.layer.out_axis, dim)
        for step in self._plan.program:
            source = step.args[0] if step.args else None
            if _is_activation(step, self._model) and isinstance(source, dict):
                before = found.get(str(source.get("ref")))
                if before is not None:
                    found[step.name] = before
        for site in self._sites:
            dim = 1 if site.layer.spec.kind == "conv" else -1
            found[site.call.args[0]["ref"]] = (site.layer.in_axis, dim)
        return found

    def points(
        self, slim: nn.Module, kept: Kept, units: KeptUnits, examples: Tensor
    ) -> list[Point]:
        """Where a pruned network can be compared with the dense one.

        Args:
            slim: The pruned network in module form.
            kept: Its kept counts, shape (targets,).
            units: The kept units of every target.
            examples: A few inputs, at least two; both networks are run on them.
        """
        masks = [axis.mask(self._plan.alive(units)) for axis in self._plan.axes]
        networks = ((self._model, self._plan.dense), (slim, kept))
        alone, together = (
            [self._values(network, lengths, inputs) for network, lengths in networks]
            for inputs in (examples[:1], examples)
        )
        points = []
        for ends in self._ends:
            possible = []
            for end in ends:
                name = end.cut.live[0]
                point = _point(end, masks, *(values[name] for values in alone))
                # Of tokens before examples, or folded into them, none is one example's.
                if point is not None and all(
                    len(values[name]) == len(inputs)
                    for inputs, both in ((examples[:1], alone), (examples, together))
                    for values in both
                ):
                    possible.append(point)
            if possible:  # where there is most to compare; of equals the last
                points.append(max(reversed(possible), key=lambda one: one.size))
        return points

    def _values(self, network: nn.Module, lengths: Kept, inputs: Tensor) -> dict[str, Any]:
        names = frozenset(end.cut.live[0] for ends in self._ends for end in ends)
        run = ProgramRun(network, self._plan, lengths, [inputs.clone()], keep=names)
        run.run()
        return {name: run.value(name) for name in names}

    def between(self, points: Sequence[Point], layers: int) -> list[Segment]:
        """Segments that end at some of the points, each of so many layers at least.

        Args:
            points: Ascending.
            layers: How many; where the network has fewer, there is one segment.
        """
        at = {step.name: position for position, step in enumerate(self._plan.program)}
        calls = [(at[site.call.name], site.path) for site in self._sites]
        assert self._entry is not None
        segments: list[Segment] = []
        start, entry, inside = 0, self._entry, list[Point]()
        for number, point in enumerate(points, 1):
            inside.append(point)
            within = [name for call, name in calls if start <= call < point.cut.position]
            left = [name for call, name in calls if call >= point.cut.position]
            enough = min(len(within), len(left)) >= layers
            if within and (enough or number == len(points)):
                names = tuple(dict.fromkeys(within))
                segments.append(Segment(start, entry, tuple(inside), names))
                start, entry, inside = point.cut.position, point.name, []
        return segments

    def passed(
        self, network: nn.Module, kept: Kept, segment: Segment, inputs: Tensor
    ) -> list[Tensor]:
        """The values of a segment's points.

        Args:
            network: The dense network or one that was pruned from it.
            kept: Its kept counts, shape (targets,).
            segment: What is run.
            inputs: The value that it starts from, shape (examples, ...).
        """
        known = {segment.entry: inputs, BATCH_SIZE: len(inputs)}
        names = frozenset(point.name for point in segment.points)
        run = ProgramRun(
            network, self._plan, kept, [], keep=names, start=segment.start, known=known
        )
        run.advance(segment.stop)
        return [run.value(point.name) for point in segment.points]

    def tensors(self, network: nn.Module, segment: Segment) -> list[nn.Parameter]:
        """The parameters that a segment's instructions read, each once."""
        program, inside = self._plan.program, range(segment.start, segment.stop)
        read = {
            name for at in inside for name in references([program[at].args, program[at].kwargs])
        }
        found: dict[int, nn.Parameter] = {}
        for position, step in enumerate(program):
            if step.op == "call_module" and position in inside:
                for parameter in network.get_submodule(step.target).parameters():
                    found[id(parameter)] = parameter
            elif step.name in read and step.op == "get_attr":
                if step.target in self._plan.constants:
                    continue
                tensor = operator.attrgetter(step.target)(network)
                if isinstance(tensor, nn.Parameter):
                    found[id(tensor)] = tensor
        return [one for one in found.values() if one.is_floating_point() and one.numel()]


def _point(end: _End, masks: Sequence[Any], dense: Any, ours: Any) -> Point | None:
    """How two values are compared; None where it is not known which channels are gone."""
    if not (isinstance(dense, Tensor) and isinstance(ours, Tensor)):
        return None
    if not (dense.is_floating_point() and dense.dim() > 1):
        return None
    axis, dim = end.axis, end.dim % dense.dim()
    if axis is None or masks[axis].all():
        return Point(end.cut, dim, None, dense.nbytes) if dense.shape == ours.shape else None
    if len(masks[axis]) != dense.shape[dim]:
        return None
    channels = torch.from_numpy(np.flatnonzero(masks[axis])).to(dense.device)
    point = Point(end.cut, dim, channels, dense.nbytes)
    return point if point.of_dense(dense).shape == ours.shape else None


def _is_activation(step: Instruction, model: nn.Module) -> bool:
    """Whether an instruction is one function of every number for itself."""
    if step.op == "call_module":
        return isinstance(model.get_submodule(step.target), _ACTIVATIONS)
    return step.op == "call_function" and step.target.split(".")[1:2] in _POINTWISE
