"""Refinement: the layers of a few blocks are fitted together, by gradient descent, without labels.

Least squares (``automl.pruning.reconstruct``) fits one layer at a time to what the dense network
has there. But what a layer inside a block puts out need not be what the dense one does: only what
leaves the block counts. So after it, one pass over the network in execution order takes a segment
of it at a time, a few blocks, and moves all of its weights such that

    sum over the ends of its blocks of |pruned - dense|^2 / variance of the dense values

falls, with the inputs that the segment really gets, from segments refined before it. A segment
starts and ends where a single value passes. Its error on calibration inputs that it was not fitted
on decides whether it keeps its new weights; where they are worse, it is tried again with smaller
steps. Where the last segment's end is clearly worse than before, the whole pass is undone:
ends of inner blocks had come nearer at its cost. No labels are used, and no fit looks beyond its
segment: minutes for what fine-tuning needs hours for.

Steps are Adam's, with a learning rate that is relative to the size of each tensor's weights, and
falls along a half cosine. Batch norms keep their running statistics. Masked weights stay zero.

Source: block reconstruction is that of Li et al., "BRECQ: Pushing the Limit of Post-Training
Quantization by Block Reconstruction" (arXiv 2102.05426), section 3.2. Deviations: slim networks
instead of rounded ones, plain squared errors instead of Fisher-weighted ones, a few blocks at once,
and a check on inputs that were held back.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from automl.environment import available_memory
from automl.graph.materialise import KeptUnits
from automl.graph.prefix import Pair
from automl.plan import IndexPlan
from automl.pruning.masks import protect
from automl.pruning.segments import Segment, Segments
from automl.training.state import evaluating
from automl.types import InputError, Kept

#: Inputs that pass through a network at once where nothing is fitted.
_CHUNK = 256
#: Inputs on which it is seen what a network computes where.
_PROBED = 3
#: One in so many calibration inputs checks what the others fitted, and at most so many do.
_CHECKED, _MOST_CHECKED = 8, 512
#: So often a segment is tried, each time with so much of the learning rate before.
_ATTEMPTS, _SLOWER = 3, 0.2
#: A segment whose error is smaller is left alone.
_NOTHING = 1e-9
#: So many times the error that the network's end had before is none that undoes a pass: least
#: squares was fitted on all inputs, and networks that are better on others may be worse on these.
_NO_WORSE = 1.05
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
        batch_size: Calibration inputs in a step; at most as many as there are.
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
        for name, least in (("layers", 1), ("steps", 1), ("batch_size", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(
                    f"Refinement.{name} must be a whole number >= {least}, got {value!r}"
                )
        if not 0 < self.lr < 1:
            raise ValueError(f"Refinement.lr must be in (0, 1), got {self.lr}")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(
                f"Refinement.precision must be 'float32' or 'bfloat16', got {self.precision!r}"
            )


def require_inputs(refine: Refinement | None, calibration: Tensor | None) -> None:
    """Refuses what cannot be refined, or is no refinement.

    Raises:
        InputError: There are settings without inputs, or something else than settings.
    """
    if refine is None:
        return
    if not isinstance(refine, Refinement):
        raise InputError(f"refine must be automl.Refinement(...) or None, got {refine!r}")
    if calibration is None:
        raise InputError("refine needs calibration=, unlabelled inputs of shape (images, ...)")


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
        self._inputs, self._report = calibration, report or _be_silent
        self._segments = Segments(model, plan, together)

    def __call__(self, slim: nn.Module, kept: Kept, units: KeptUnits) -> list[Refined]:
        """Refines ``slim`` in place.

        Args:
            slim: Slim network in module form, eval mode.
            kept: Its kept counts, shape (targets,).
            units: The kept units of every target.

        Returns:
            One entry for every segment from the first one whose values differ from the dense
            network's; none for networks that take several inputs, or one size of batch alone, and
            those in float16.

        Raises:
            InputError: It is called within ``torch.inference_mode()``.
        """
        if torch.is_inference_mode_enabled():
            raise InputError(
                "networks cannot be refined within torch.inference_mode(): use torch.no_grad()"
            )
        hindrance = self._hindrance(slim)
        if hindrance:
            self._report(f"left out: {hindrance}")
            return []
        with evaluating(self._model), evaluating(slim), torch.no_grad():
            # Mixed, for inputs may come class by class: all are to be fitted on, and to check.
            mixed = torch.randperm(len(self._inputs), generator=self._generator(0))
            points = self._segments.points(slim, kept, units, self._inputs[mixed[:_PROBED]])
            segments = self._segments.between(points, self._settings.layers)
            ours = self._inputs[mixed[: self._affordable(segments)]]
            return self._run(slim, kept, segments, ours)

    def _run(
        self, slim: nn.Module, kept: Kept, segments: Sequence[Segment], ours: Tensor
    ) -> list[Refined]:
        tensors = [self._segments.tensors(slim, segment) for segment in segments]
        # What several segments read, one of them would spoil for the others.
        readers = Counter(id(one) for parameters in tensors for one in parameters)
        owned = [[one for one in some if readers[id(one)] == 1] for some in tensors]
        old = [[one.detach().clone() for one in own] for own in owned]
        unrefined = self._end(slim, kept, segments, ours)
        found, theirs, wanted = [], ours, unrefined
        for number, (segment, own) in enumerate(zip(segments, owned, strict=True), 1):
            targets, theirs = self._dense_values(segment, theirs)
            fit = _Fit(partial(self._segments.passed, slim, kept, segment), own, ours, targets)
            before, after = fit.run(self._settings, slim, self._generator(number))
            ours, wanted = fit.end(), targets[-1]
            if before == after == 0:
                continue
            found.append(Refined(segment.layers, before, after))
            self._report(f"{number}/{len(segments)}, error {before:.4f} to {after:.4f}")
        most = _NO_WORSE * _distance(unrefined, wanted)
        if not found or _distance(ours, wanted) <= most:
            return found
        # Ends of inner blocks came nearer to the dense values, at the cost of the network's end.
        for own, values in zip(owned, old, strict=True):
            for parameter, value in zip(own, values, strict=True):
                parameter.copy_(value)
        self._report("undone: behind the last block the error would be larger than before")
        return [Refined(one.layers, one.before, one.before) for one in found]

    def _end(
        self, slim: nn.Module, kept: Kept, segments: Sequence[Segment], inputs: Tensor
    ) -> Tensor:
        """The values behind the last segment."""
        ends = []
        for rows in torch.split(inputs, _CHUNK):
            values = rows.clone()  # the network may write into it
            for segment in segments:
                values = self._segments.passed(slim, kept, segment, values)[-1]
            ends.append(values)
        return torch.cat(ends)

    def _hindrance(self, slim: nn.Module) -> str:
        """Why nothing can be refined; empty where it can."""
        if not self._segments.applies:
            return "the network takes several inputs, or one size of batch alone"
        if len(self._inputs) < 2:
            return "there is one calibration input"
        if any(parameter.dtype == torch.float16 for parameter in slim.parameters()):
            return "float16 is too coarse for small steps"
        return ""

    def _affordable(self, segments: Sequence[Segment]) -> int:
        """How many calibration inputs are used: all, as long as their values fit into memory."""
        points = [point for segment in segments for point in segment.points]
        most = max((len(segment.points) for segment in segments), default=0)
        size = max((point.size for point in points), default=1)
        # Inputs and values of both networks, and targets; twice, while they are laid out anew.
        count = int(_MEMORY * _free_memory(self._inputs.device) / (2 * (2 + most) * size))
        if count < len(self._inputs):
            count = max(2, count)
            self._report(f"on {count} inputs of {len(self._inputs)}: more do not fit into memory")
        return min(count, len(self._inputs))

    def _generator(self, number: int) -> torch.Generator:
        return torch.Generator().manual_seed(self._settings.seed + number)

    def _dense_values(self, segment: Segment, inputs: Tensor) -> tuple[list[Tensor], Tensor]:
        """What a pruned network has to compute at a segment's points; and all that its end has."""
        found = []
        for rows in torch.split(inputs, _CHUNK):
            own = rows.clone() if segment.start == 0 else rows  # the network may write into it
            values = self._segments.passed(self._model, self._plan.dense, segment, own)
            kept = (p.of_dense(value) for p, value in zip(segment.points, values, strict=True))
            found.append([*kept, values[-1]])
        *targets, end = (torch.cat(parts) for parts in zip(*found, strict=True))
        return targets, end


class _Fit:
    """One segment being fitted.

    Args:
        passes: The segment's values at its points, from inputs.
        parameters: What is fitted.
        inputs: Those that it gets, shape (examples, ...).
        targets: What it is to have at its points.
    """

    def __init__(
        self,
        passes: Callable[[Tensor], list[Tensor]],
        parameters: Sequence[nn.Parameter],
        inputs: Tensor,
        targets: Sequence[Tensor],
    ) -> None:
        self._passes, self._parameters = passes, parameters
        self._inputs, self._targets = _Rows(inputs), [_Rows(values) for values in targets]
        self._scales = [1 / max(rows.variance(), 1e-12) for rows in self._targets]
        everything = torch.arange(len(inputs))
        checked = min(max(1, len(inputs) // _CHECKED), _MOST_CHECKED)
        self._fitted, self._checked = len(inputs) - checked, everything[-checked:]

    def end(self) -> Tensor:
        """The values at its last point."""
        chunks = torch.split(torch.arange(len(self._inputs)), _CHUNK)
        return torch.cat([self._passes(self._inputs.take(at))[-1] for at in chunks])

    def run(
        self, settings: Refinement, network: nn.Module, generator: torch.Generator
    ) -> tuple[float, float]:
        """Error before and after; both 0 where there is nothing to fit."""
        before = self.error()
        if not before > _NOTHING or not self._parameters:
            return 0.0, 0.0
        old, lr = [one.detach().clone() for one in self._parameters], settings.lr
        for _ in range(_ATTEMPTS):
            self._descend(settings, lr, network, generator)
            after, lr = self.error(), lr * _SLOWER
            if after < before:
                return before, after
            for parameter, values in zip(self._parameters, old, strict=True):
                parameter.copy_(values)
        return before, before

    def error(self) -> float:
        """On the inputs that check, in float32."""
        chunks = torch.split(self._checked, _CHUNK)
        return sum(len(at) * float(self._distance(at)) for at in chunks) / len(self._checked)

    def _descend(
        self, settings: Refinement, lr: float, network: nn.Module, generator: torch.Generator
    ) -> None:
        """Takes all steps, from a learning rate down to nothing."""
        # Of inputs that want no gradient and lie channels last, torch 2.13's group norm computes
        # one all the same on a CPU, into memory that is not there.
        wanted = any(isinstance(module, nn.GroupNorm) for module in network.modules())
        with _trainable(self._parameters, network), torch.enable_grad():
            groups = [{"params": [one], "lr": _size(one) * lr} for one in self._parameters]
            optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
            protect(optimizer, network)
            full = [group["lr"] for group in optimizer.param_groups]
            batch = min(settings.batch_size, self._fitted)
            for step in range(settings.steps):
                share = 0.5 * (1 + math.cos(math.pi * step / settings.steps))
                for group, most in zip(optimizer.param_groups, full, strict=True):
                    group["lr"] = share * most
                at = torch.randint(self._fitted, (batch,), generator=generator)
                loss = self._distance(at, settings.precision == "bfloat16", wanted)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()

    def _distance(self, at: Tensor, low: bool = False, differentiable: bool = False) -> Tensor:
        inputs = self._inputs.take(at)
        if differentiable and inputs.is_floating_point():
            inputs = inputs.requires_grad_(True).clone()  # the network may write into it
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=low):
            values = self._passes(inputs)
        distances = [
            scale * nn.functional.mse_loss(value.float(), rows.take(at).float())
            for value, rows, scale in zip(values, self._targets, self._scales, strict=True)
        ]
        return torch.stack(distances).sum()


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


def _distance(values: Tensor, wanted: Tensor) -> float:
    """Mean square of the difference."""
    return float((values.float() - wanted.float()).square().mean())


def _free_memory(device: torch.device) -> float:
    """Bytes there are on a device."""
    if device.type != "cuda":
        return available_memory()
    free, _ = torch.cuda.mem_get_info(device)
    # What torch keeps for itself counts as taken there, and can be had all the same.
    return float(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def _be_silent(line: str) -> None:
    """For those who want no lines."""


def _size(parameter: Tensor) -> float:
    """Root mean square of its weights, and a hundredth where they are all about zero."""
    return max(float(parameter.detach().float().square().mean().sqrt()), _SMALL)


@contextmanager
def _trainable(parameters: Sequence[nn.Parameter], network: nn.Module) -> Iterator[None]:
    """Gradients for some of a network's parameters and no others, and none left behind."""
    chosen = {id(parameter) for parameter in parameters}
    everything = {id(parameter): parameter for parameter in (*network.parameters(), *parameters)}
    flags = [(parameter, parameter.requires_grad) for parameter in everything.values()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(id(parameter) in chosen)
        yield
    finally:
        for parameter, flag in flags:
            if id(parameter) in chosen:
                parameter.grad = None
            parameter.requires_grad_(flag)
