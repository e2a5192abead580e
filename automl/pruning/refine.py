"""Refinement: the layers of a few blocks are fitted together, by gradient descent, without labels.

Least squares (``automl.pruning.reconstruct``) fits one layer at a time to what the dense network
has there. But what a layer inside a block puts out need not be what the dense one does: only what
leaves the block counts. So after it, one pass over the network in execution order takes a segment
of it at a time, a few blocks, and moves all of its weights such that

    sum over the ends of its blocks of |pruned - dense|^2 / variance of the dense values

falls, with the inputs that the segment really gets, from segments refined before it. A segment
starts and ends where a single value passes. Its error on calibration inputs that it was not fitted
on decides whether it keeps its new weights. No labels are used, and nothing beyond the segment is
looked at: minutes for what fine-tuning needs hours for.

Steps are Adam's, with a learning rate that is relative to the size of each tensor's weights, and
falls along a half cosine. Batch norms keep their running statistics. Masked weights stay zero.

Source: block reconstruction is that of Li et al., "BRECQ: Pushing the Limit of Post-Training
Quantization by Block Reconstruction" (arXiv 2102.05426), section 3.2. Deviations: slim networks
instead of rounded ones, plain squared errors instead of Fisher-weighted, blocks overlapped by
fitting a few at once, inputs from the pruned network as there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from automl.environment import available_memory
from automl.graph.interpret import ProgramRun
from automl.graph.materialise import KeptUnits
from automl.graph.prefix import Cut, Pair, bottlenecks
from automl.graph.program import BATCH_SIZE, references
from automl.plan import IndexPlan, Instruction
from automl.pruning.masks import protect
from automl.pruning.sites import find_sites
from automl.training.state import evaluating
from automl.types import Kept

#: Inputs that pass through a network at once where nothing is fitted.
_CHUNK = 256
#: One in so many calibration inputs checks what the others fitted, and at most so many do.
_CHECKED, _MOST_CHECKED = 8, 512
#: A segment whose error is smaller is left alone.
_NOTHING = 1e-9
#: Functions of every number for itself, as instructions and as modules.
_POINTWISE = [
    [f"{name}{ending}"]
    for name in ("relu", "relu6", "hardtanh", "silu", "gelu", "hardswish", "leaky_relu", "sigmoid")
    for ending in ("", "_")
]
_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.SiLU, nn.GELU, nn.Hardswish, nn.LeakyReLU)
#: Size that tensors of zeros are taken to have.
_SMALL = 1e-2
#: Share of the memory that is free which values may take.
_MEMORY = 0.5


@dataclass(frozen=True)
class Refinement:
    """Settings of the refinement.

    Attributes:
        layers: Segments hold so many layers at least.
        steps: Of gradient descent, for each segment.
        batch_size: Calibration inputs in a step.
        lr: Learning rate at the start, relative to the root mean square of each tensor.
        precision: ``bfloat16`` computes under autocast.
        seed: Which inputs make up the steps.
    """

    layers: int = 6
    steps: int = 300
    batch_size: int = 64
    lr: float = 0.03
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name in ("layers", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"Refinement.{name} must be >= 1, got {getattr(self, name)}")
        if not 0 < self.lr < 1:
            raise ValueError(f"Refinement.lr must be in (0, 1), got {self.lr}")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(
                f"Refinement.precision must be 'float32' or 'bfloat16', got {self.precision!r}"
            )


@dataclass(frozen=True, slots=True)
class Refined:
    """What came of one segment.

    Attributes:
        layers: Names of its layers.
        before: Its error on inputs that it was not fitted on, relative to the variance of the
            dense values, summed over the ends of its blocks.
        after: The same afterwards; equal to ``before`` where the old weights were kept.
    """

    layers: tuple[str, ...]
    before: float
    after: float


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
class _Point:
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
        return self.cut.live[0]

    def of_dense(self, value: Tensor) -> Tensor:
        return value if self.channels is None else value.index_select(self.dim, self.channels)


@dataclass(frozen=True)
class _Segment:
    """A stretch of the program.

    Attributes:
        start: Position of its first instruction.
        entry: Name of the value that it starts from.
        points: Where it is compared; the last one is its end.
        layers: Those called within it.
    """

    start: int
    entry: str
    points: tuple[_Point, ...]
    layers: tuple[str, ...]

    @property
    def stop(self) -> int:
        return self.points[-1].cut.position


class Refiner:
    """Refines pruned networks of one dense network.

    Args:
        model: The dense network.
        plan: Its plan.
        calibration: Inputs, shape (images, ...); labels are not used.
        settings: How to refine.
        together: Pairs of instructions that cannot be fitted apart (``Pruner.fitted_together``).
        report: Called with one line for every segment.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: IndexPlan,
        calibration: Tensor,
        settings: Refinement,
        together: Sequence[Pair] = (),
        report: Callable[[str], None] | None = None,
    ) -> None:
        """Looks for the ends of blocks; runs nothing."""
        self._model, self._plan, self._settings = model, plan, settings
        self._inputs, self._report = calibration, report or (lambda line: None)
        self._sites = find_sites(model, plan)
        entries = [step.name for step in plan.program if step.op == "placeholder"]
        self._entry = entries[0] if len(entries) == 1 and plan.dynamic_batch else None
        self._ends = [] if self._entry is None else self._ends_of_blocks(together)

    def __call__(self, slim: nn.Module, kept: Kept, units: KeptUnits) -> list[Refined]:
        """Refines ``slim`` in place.

        Args:
            slim: Slim network in module form, eval mode.
            kept: Its kept counts, shape (targets,).
            units: The kept units of every target.

        Returns:
            One entry for every segment from the first one whose values differ from the dense
            network's; none for networks that take several inputs, or one size of batch alone.
        """
        if self._entry is None or len(self._inputs) < 2:
            return []
        with evaluating(self._model), torch.no_grad():
            points, size = self._probe(slim, kept, units)
            segments = self._segments(points)
            count = self._affordable(size)
            found, ours = [], self._inputs[:count]
            theirs = ours
            for number, segment in enumerate(segments, 1):
                fit = _Fit(self, segment, slim, kept, ours, theirs)
                refined = fit.run(torch.Generator().manual_seed(self._settings.seed + number))
                ours, theirs = fit.ours_next(), fit.theirs_next
                if refined is None:
                    continue
                found.append(refined)
                self._report(
                    f"{number}/{len(segments)}, error {refined.before:.4f} to {refined.after:.4f}"
                )
        return found

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
        last = program[-1]
        if last.op == "output" and isinstance(last.args[0], dict) and "ref" in last.args[0]:
            found.append([_End(Cut(len(program) - 1, (last.args[0]["ref"],)), None, -1)])
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

    def _probe(self, slim: nn.Module, kept: Kept, units: KeptUnits) -> tuple[list[_Point], int]:
        """Where the two networks can be compared, and bytes of the largest values of an input."""
        names = frozenset(end.cut.live[0] for ends in self._ends for end in ends)
        inputs = self._inputs[:1].clone()
        runs = [
            ProgramRun(network, self._plan, counts, [inputs], keep=names)
            for network, counts in ((self._model, self._plan.dense), (slim, kept))
        ]
        for run in runs:
            run.run()
        masks = [axis.mask(self._plan.alive(units)) for axis in self._plan.axes]
        points, largest = [], inputs.nbytes
        for ends in self._ends:
            possible = [
                point
                for end in ends
                if (point := _point(end, masks, *(run.value(end.cut.live[0]) for run in runs)))
            ]
            if possible:  # where there is most to compare; of equals the last
                point = max(reversed(possible), key=lambda one: one.size)
                points.append(point)
                largest = max(largest, point.size)
        return points, largest

    def _segments(self, points: Sequence[_Point]) -> list[_Segment]:
        at = {step.name: position for position, step in enumerate(self._plan.program)}
        calls = [(at[site.call.name], site.layer.spec.name) for site in self._sites]
        assert self._entry is not None
        segments: list[_Segment] = []
        start, entry, inside = 0, self._entry, list[_Point]()
        for number, point in enumerate(points, 1):
            inside.append(point)
            layers = [name for call, name in calls if start <= call < point.cut.position]
            left = [name for call, name in calls if call >= point.cut.position]
            enough = len(layers) >= self._settings.layers and len(left) >= self._settings.layers
            if layers and (enough or number == len(points)):
                segments.append(_Segment(start, entry, tuple(inside), tuple(layers)))
                start, entry, inside = point.cut.position, point.name, []
        return segments

    def _affordable(self, size: int) -> int:
        """How many calibration inputs are used: all, as long as their values fit into memory."""
        values = 3 + self._settings.layers  # ours, theirs and the next ones; targets of points
        count = int(_MEMORY * available_memory() / (values * size))
        if count < len(self._inputs):
            count = max(2, count)
            self._report(f"on {count} inputs of {len(self._inputs)}: more do not fit into memory")
        return min(count, len(self._inputs))

    # What segments need of it

    def passed(
        self, network: nn.Module, kept: Kept, segment: _Segment, inputs: Tensor
    ) -> list[Tensor]:
        """The values of a segment's points, from the value that it starts from."""
        known = {segment.entry: inputs, BATCH_SIZE: len(inputs)}
        names = frozenset(point.name for point in segment.points)
        run = ProgramRun(
            network, self._plan, kept, [], keep=names, start=segment.start, known=known
        )
        run.advance(segment.stop)
        return [run.value(point.name) for point in segment.points]

    def tensors(self, network: nn.Module, segment: _Segment) -> list[nn.Parameter]:
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
            elif step.op == "get_attr" and step.name in read:
                tensor = _attribute(network, step.target)
                if isinstance(tensor, nn.Parameter):
                    found[id(tensor)] = tensor
        return [one for one in found.values() if one.is_floating_point() and one.numel()]

    @property
    def settings(self) -> Refinement:
        """How to refine."""
        return self._settings

    @property
    def dense(self) -> tuple[nn.Module, Kept]:
        """The dense network and its counts."""
        return self._model, self._plan.dense


class _Fit:
    """One segment being fitted."""

    def __init__(
        self,
        refiner: Refiner,
        segment: _Segment,
        slim: nn.Module,
        kept: Kept,
        ours: Tensor,
        theirs: Tensor,
    ) -> None:
        self._refiner, self._segment, self._slim, self._kept = refiner, segment, slim, kept
        self._ours = _Rows(ours)
        self._has_group_norm = any(isinstance(one, nn.GroupNorm) for one in slim.modules())
        found = [_Chunks() for _ in segment.points]
        following = _Chunks()
        for rows in torch.split(theirs, _CHUNK):
            values = refiner.passed(*refiner.dense, segment, rows)
            for point, value, chunks in zip(segment.points, values, found, strict=True):
                chunks.add(point.of_dense(value))
            following.add(values[-1])
        self.theirs_next = following.whole()
        self._targets = [_Rows(chunks.whole()) for chunks in found]
        self._scales = [1 / max(rows.variance(), 1e-12) for rows in self._targets]
        checked = min(max(1, len(ours) // _CHECKED), _MOST_CHECKED)
        self._fitted, self._checked = len(ours) - checked, range(len(ours) - checked, len(ours))

    def ours_next(self) -> Tensor:
        """What the pruned network puts out at the segment's end."""
        chunks = _Chunks()
        for at in torch.split(torch.arange(len(self._ours)), _CHUNK):
            rows = self._ours.take(at)
            chunks.add(self._refiner.passed(self._slim, self._kept, self._segment, rows)[-1])
        return chunks.whole()

    def run(self, generator: torch.Generator) -> Refined | None:
        """Fits the segment; None where there is nothing to fit."""
        settings, before = self._refiner.settings, self._error()
        parameters = self._refiner.tensors(self._slim, self._segment)
        if not before > _NOTHING or not parameters:
            return None
        old = [parameter.detach().clone() for parameter in parameters]
        with _trainable(parameters), torch.enable_grad():
            groups = [{"params": [one], "lr": _size(one) * settings.lr} for one in parameters]
            optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
            protect(optimizer, self._slim)
            full = [group["lr"] for group in optimizer.param_groups]
            for step in range(settings.steps):
                share = 0.5 * (1 + math.cos(math.pi * step / settings.steps))
                for group, lr in zip(optimizer.param_groups, full, strict=True):
                    group["lr"] = share * lr
                at = torch.randint(self._fitted, (settings.batch_size,), generator=generator)
                loss = self._loss(at)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        after = self._error()
        if not after < before:
            for parameter, values in zip(parameters, old, strict=True):
                parameter.copy_(values)
            after = before
        return Refined(self._segment.layers, before, after)

    def _loss(self, at: Tensor) -> Tensor:
        inputs = self._ours.take(at)
        # Of inputs that want no gradient and lie channels last, torch 2.13's group norm computes
        # one all the same on a CPU, into memory that is not there.
        inputs.requires_grad_(self._has_group_norm and inputs.is_floating_point())
        low = self._refiner.settings.precision == "bfloat16"
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=low):
            values = self._refiner.passed(self._slim, self._kept, self._segment, inputs)
        return sum(
            (
                scale * nn.functional.mse_loss(value.float(), rows.take(at).float())
                for value, rows, scale in zip(values, self._targets, self._scales, strict=True)
            ),
            torch.zeros((), device=inputs.device),
        )

    def _error(self) -> float:
        """On the inputs that check, in float32."""
        total = 0.0
        for at in torch.split(torch.arange(self._checked.start, self._checked.stop), _CHUNK):
            values = self._refiner.passed(
                self._slim, self._kept, self._segment, self._ours.take(at)
            )
            for value, rows, scale in zip(values, self._targets, self._scales, strict=True):
                error = nn.functional.mse_loss(value.float(), rows.take(at).float())
                total += len(at) * scale * float(error)
        return total / len(self._checked)


class _Rows:
    """Values of inputs, picked without changing their layout: images lie channels last."""

    def __init__(self, values: Tensor) -> None:
        self._images = values.dim() == 4
        self._values = values.movedim(1, -1).contiguous() if self._images else values.contiguous()

    def __len__(self) -> int:
        return len(self._values)

    def take(self, at: Tensor) -> Tensor:
        found = self._values.index_select(0, at.to(self._values.device))
        return found.movedim(-1, 1) if self._images else found

    def variance(self) -> float:
        return float(self._values[:_MOST_CHECKED].float().var(correction=0))


class _Chunks:
    """Values of a few inputs after the others."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []

    def add(self, values: Tensor) -> None:
        self._parts.append(values)

    def whole(self) -> Tensor:
        return torch.cat(self._parts)


def _point(end: _End, masks: Sequence[Any], dense: Any, ours: Any) -> _Point | None:
    """How two values are compared; None where it is not known which channels are gone."""
    if not (isinstance(dense, Tensor) and isinstance(ours, Tensor)):
        return None
    if not (dense.is_floating_point() and dense.dim() > 1):
        return None
    axis, dim = end.axis, end.dim % dense.dim()
    if axis is None or masks[axis].all():
        return _Point(end.cut, dim, None, dense.nbytes) if dense.shape == ours.shape else None
    if len(masks[axis]) != dense.shape[dim]:
        return None
    channels = torch.from_numpy(np.flatnonzero(masks[axis])).to(dense.device)
    point = _Point(end.cut, dim, channels, dense.nbytes)
    return point if point.of_dense(dense).shape == ours.shape else None


def _is_activation(step: Instruction, model: nn.Module) -> bool:
    """Whether an instruction is one function of every number for itself."""
    if step.op == "call_module":
        return isinstance(model.get_submodule(step.target), _ACTIVATIONS)
    return step.op == "call_function" and step.target.split(".")[1:2] in _POINTWISE


def _size(parameter: Tensor) -> float:
    """Root mean square of its weights, and a hundredth where they are all about zero."""
    return max(float(parameter.detach().float().square().mean().sqrt()), _SMALL)


def _attribute(network: nn.Module, path: str) -> Any:
    owner, _, leaf = path.rpartition(".")
    return getattr(network.get_submodule(owner), leaf, None)


@contextmanager
def _trainable(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    flags = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, flag in zip(parameters, flags, strict=True):
            parameter.grad = None
            parameter.requires_grad_(flag)
