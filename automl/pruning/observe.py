"""What a dense network has where layers are refitted: the targets of its slim networks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from automl.graph.interpret import ProgramRun
from automl.plan import IndexPlan
from automl.pruning.sampling import channel_dim, features, gather, layout, sample, thinned
from automl.pruning.sites import Site, find_sites, shared_tensors


@dataclass(frozen=True, eq=False)
class Targets:
    """What the dense network has at the sampled positions of a site, shape (samples, channels).

    Attributes:
        output: The layer's.
        total: The sum's with the shortcut; None where there is none of the layer's own shape.
        shape: Of all of the layer's output.
    """

    output: Tensor
    total: Tensor | None
    shape: torch.Size


@dataclass(frozen=True, eq=False)
class Observed:
    """One run of the dense network.

    Attributes:
        plan: Of the network.
        inputs: What it was run on, shape (images, ...).
        sites: Calls of layers that can be refitted, by instruction, in execution order.
        shared: Of them those whose weight is read more than once (see ``sites.shared_tensors``).
        targets: By instruction.
        positions: Those that were sampled, by instruction.
    """

    plan: IndexPlan
    inputs: Tensor
    sites: dict[str, Site]
    shared: dict[str, frozenset[str]]
    targets: dict[str, Targets]
    positions: dict[str, Tensor]


def observe(
    model: nn.Module, plan: IndexPlan, calibration: Tensor, points: int, seed: int, shortcut: bool
) -> Observed:
    """Runs the dense network once and remembers its outputs at sampled positions.

    Args:
        model: The dense network.
        plan: Its plan.
        calibration: Inputs, shape (images, ...).
        points: Positions sampled per image and layer.
        seed: Which ones.
        shortcut: Whether sums with shortcuts are wanted.
    """
    # Channels last: convolutions then need no reordering, and a sampled position is one row.
    rows = calibration.contiguous(memory_format=layout(calibration))
    sites = {site.call.name: site for site in find_sites(model, plan)}
    targets: dict[str, Targets] = {}
    positions: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(seed)
    wanted = frozenset(
        name for site in sites.values() for name in (site.call.name, site.sum_name) if name
    )
    with torch.inference_mode():
        for name, value in _values(model, plan, rows, wanted):
            for site in sites.values():
                call = site.call.name
                if name not in (call, site.sum_name):
                    continue
                layer = site.module(model)
                channels = channel_dim(layer)
                if call == name:
                    places = sample(value, channels, points, len(rows), generator)
                    positions[name] = thinned(places, features(layer))
                    output = gather(value, channels, positions[name])
                    targets[name] = Targets(output, None, value.shape)
                elif site.sum_name == name and shortcut and value.shape == targets[call].shape:
                    total = gather(value, channels, positions[call])
                    targets[call] = replace(targets[call], total=total)
    return Observed(plan, rows, sites, shared_tensors(model, plan), targets, positions)


def _values(
    model: nn.Module, plan: IndexPlan, inputs: Tensor, wanted: frozenset[str]
) -> Iterator[tuple[str, Tensor]]:
    """Values of the dense network in the order they are made, each forgotten once it was seen."""
    run = ProgramRun(model, plan, plan.dense, [inputs], keep=wanted)
    for instruction in plan.program:
        if instruction.op == "output":
            return
        value = run.value(instruction.name)
        if instruction.name in wanted:
            yield instruction.name, value
            run.forget(instruction.name)
