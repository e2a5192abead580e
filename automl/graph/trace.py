"""``automl.trace``: what a network is made of and what of it can be pruned."""

from __future__ import annotations

import fnmatch
import logging
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from automl.graph.build import PlanBuilder
from automl.graph.caveats import find_caveats, layers_of
from automl.graph.compiled import is_compiled, uncompiled
from automl.graph.deadline import Deadline
from automl.graph.export import Exported, export
from automl.graph.form import choose_form, failing_targets
from automl.graph.materialise import Materialiser
from automl.graph.propagate import Propagated, propagate
from automl.plan import IndexPlan
from automl.types import Frozen, InputError, LayerSpec, Target, one_or_more

_log = logging.getLogger(__name__)

#: How many times as long as all before it a graph for all sizes of inputs may be computed on, and
#: seconds beside, in which a small network's is found however much else the processor does.
_PATIENCE, _PATIENCE_S = 1.0, 3.0


@dataclass(frozen=True, eq=False)
class Trace:
    """A traced network.

    Attributes:
        plan: The network's structure as plain data.
        model: The dense model, in eval mode.
        example_inputs: What it was traced with.
        seconds: How long the analysis took.
    """

    plan: IndexPlan
    model: nn.Module
    example_inputs: tuple[Any, ...]
    seconds: float

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        """Layers in execution order."""
        return self.plan.layers

    @property
    def groups(self) -> tuple[Target, ...]:
        """Groups of units that are pruned together, the decision targets."""
        return self.plan.targets

    @property
    def targets(self) -> tuple[Target, ...]:
        """The same as :attr:`groups`."""
        return self.plan.targets

    @property
    def frozen(self) -> tuple[Frozen, ...]:
        """What cannot be pruned, with the reasons."""
        return self.plan.frozen

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one example."""
        return int(self.plan.macs(self.plan.dense))

    @property
    def params(self) -> int:
        """Trainable parameters."""
        return int(self.plan.params(self.plan.dense))

    @cached_property
    def materialise(self) -> Materialiser:
        """Makes slim networks: ``trace.materialise(kept_units)``."""
        return Materialiser(self.model, self.plan)

    def summary(self) -> str:
        """Layers, groups, frozen parts with reasons, MACs: what ``prunepilot trace`` shows."""
        from automl.graph.summary import summarise

        return summarise(self)


def trace(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Any],
    exclude: str | Sequence[str] = (),
    deadline_s: float = 60.0,
) -> Trace:
    """Analyses a network once, so that it can be pruned and counted without tracing again.

    Args:
        model: The network; it is put in eval mode, its weights are not touched. Of one that
            ``torch.compile`` has wrapped, what is inside.
        example_inputs: A tensor or the positional arguments of ``forward``. The first dimension
            is taken for the batch.
        exclude: Shell patterns of layer names whose output channels must stay; one, or several.
        deadline_s: Seconds the analysis may take.

    Raises:
        InputError: If it is no network, parts of it are compiled, the forward fails, it cannot be
            exported or comes out as something else, a pattern matches no layer, or the deadline
            passes.

    Example:
        >>> t = automl.trace(model, example_inputs)
        >>> len(t.groups), t.groups[0].name
        (8, 'conv1')
        >>> automl.trace(model, example_inputs, exclude=["conv1"]).groups[0].name == "conv1"
        False
    """
    started, computing = time.perf_counter(), time.thread_time()
    inputs = _as_arguments(example_inputs)
    deadline = Deadline(deadline_s)
    model = _plain(model)
    exported = export(model, inputs, deadline)
    plan, unknown = _analysed(model, exported, exclude, deadline)
    failing = failing_targets(model, plan, exported.example_inputs, deadline)
    caveats = find_caveats(model, plan, exported.example_inputs, deadline)
    if caveats.sizes:
        spent = time.thread_time() - computing
        more = deadline.of_computing(_PATIENCE * spent + _PATIENCE_S)
        open_plan = _with_every_size(model, inputs, exclude, more, plan)
        if open_plan is not None:
            plan, caveats = open_plan, replace(caveats, sizes=False)
    for where, operator in dict.fromkeys(unknown):
        warnings.warn(
            f"{where}: operator {operator} is not known; what it reads is not pruned and its "
            "MACs are not counted",
            stacklevel=2,
        )
    if failing:
        warnings.warn(
            f"{type(model).__name__}: slim networks in which few units are left of "
            f"{layers_of(plan, [target.index for target in failing])} do not run; exclude these "
            "layers, and please report the network",
            stacklevel=2,
        )
    if plan.graph_targets and not plan.dynamic_batch:
        warnings.warn(
            f"{type(model).__name__}.forward makes the batch size a constant (len(x), int(...)): "
            f"slim networks in graph form take batches of {plan.batch} only; use x.shape[0]",
            stacklevel=2,
        )
    for line in caveats.lines(type(model).__name__, plan):
        warnings.warn(line, stacklevel=2)
    return Trace(plan, model, inputs, time.perf_counter() - started)


def _analysed(
    model: nn.Module, exported: Exported, exclude: str | Sequence[str], deadline: Deadline
) -> tuple[IndexPlan, tuple[tuple[str, str], ...]]:
    """The plan, and where there are operators that no handler knows."""
    found = propagate(exported, frozenset(), deadline)
    if exclude:
        found = propagate(exported, _matching(found, one_or_more(exclude)), deadline)
    builder = PlanBuilder(model, exported, found)
    plan, sizes = builder.build(), builder.open_sizes
    return choose_form(model, plan, sizes, exported.example_inputs, deadline), found.unknown


def _with_every_size(
    model: nn.Module,
    inputs: tuple[Any, ...],
    exclude: str | Sequence[str],
    deadline: Deadline,
    plan: IndexPlan,
) -> IndexPlan | None:
    """The same plan with a program for inputs of all sizes; None if there is none.

    Not tried first: torch takes longer for it, fails more often, and few networks need it.
    """
    try:
        exported = export(model, inputs, deadline, every_size=True)
        found, _ = _analysed(model, exported, exclude, deadline)
        same = found.targets == plan.targets and found.graph_targets == plan.graph_targets
        if same and not find_caveats(model, found, exported.example_inputs, deadline).sizes:
            return found
    except Exception as error:  # torch raises nearly anything here, and there is a plan already
        _log.info("no graph for all sizes of inputs: %s", error)
    return None


def _as_arguments(example_inputs: Any) -> tuple[Any, ...]:
    if isinstance(example_inputs, Tensor):
        return (example_inputs,)
    if not isinstance(example_inputs, Sequence) or isinstance(example_inputs, str):
        raise InputError(
            "example_inputs must be a tensor or the arguments of forward, "
            f"got {type(example_inputs).__name__}"
        )
    return tuple(example_inputs)


def _plain(given: Any) -> nn.Module:
    """The network in eval mode, outside of what ``torch.compile`` has made of it."""
    if not isinstance(given, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {type(given).__name__}")
    model = uncompiled(given)
    # Compiled code run on fake tensors, as slim networks are, takes the process down.
    compiled = [name or "it" for name, part in model.named_modules() if is_compiled(part)]
    if compiled:
        raise InputError(
            f"parts of the network are compiled ({', '.join(compiled[:3])}); prune it first and "
            "call torch.compile on what comes out"
        )
    try:
        model.eval()
    except NotImplementedError as error:
        raise InputError(
            "an exported program cannot be pruned; give the network that it was exported from"
        ) from error
    return model


def _matching(found: Propagated, patterns: Sequence[str]) -> frozenset[str]:
    names = [layer.name for layer in found.record.layers]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise InputError(
                f"exclude pattern {pattern!r} matches no layer; see `prunepilot trace`"
            )
    return frozenset(n for p in patterns for n in fnmatch.filter(names, p))
