"""The table of ``prunepilot prune``: what the network cost and scored before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from automl.cost.arithmetic import SizeCost
from automl.cost.masked import StoredSize
from automl.plan import IndexPlan
from automl.policy import Policy
from automl.pruning.grains import is_inside
from automl.pruning.masked_plan import MaskedPlan
from automl.types import Kept, Scorer


def print_networks(
    model: str,
    policy: Policy,
    networks: Mapping[str, nn.Module],
    costs: Sequence[Sequence[int]],
    scorers: Mapping[str, Scorer],
) -> None:
    """Prints one row per network, the dense one first.

    Args:
        model: Name of the model.
        policy: What is kept.
        networks: Name in the table -> network.
        costs: Of each network, see :func:`costs_of`.
        scorers: Part of the data -> scorer that reports ``top1``.
    """
    from rich.table import Table

    from automl.commands.wide_table import show

    table = Table(title=f"{model}, {_about(policy)}", title_justify="left")
    table.add_column("network", no_wrap=True)
    for heading in ("MACs", "params", "bytes", *(f"{part} top-1" for part in scorers)):
        table.add_column(heading, justify="right", no_wrap=True)
    for (name, network), own in zip(networks.items(), costs, strict=True):
        cells = [f"{c:,} ({100 * c / d:.1f} %)" for c, d in zip(own, costs[0], strict=True)]
        top1 = [scorer(network)[1]["top1"] for scorer in scorers.values()]
        table.add_row(name, *cells, *(f"{100 * value:.2f} %" for value in top1))
    show(table)
    if any(is_inside(one.granularity) for one in policy.decisions):
        print("MACs: multiplications by weights that are left; bytes: each weight dense or packed")


def costs_of(plan: IndexPlan | MaskedPlan, kept: Kept) -> list[int]:
    """MACs, parameters and bytes of what is kept."""
    size = StoredSize(plan) if isinstance(plan, MaskedPlan) else SizeCost(plan)
    return [int(plan.macs(kept)), int(plan.params(kept)), int(size(kept))]


def _about(policy: Policy) -> str:
    """The grains and how much each removes."""
    by_grain: dict[str, list[float]] = {}
    for decision in policy.decisions:
        by_grain.setdefault(decision.granularity, []).append(decision.removed)
    parts = []
    for grain, removed in by_grain.items():
        low, high = (f"{100 * value:.3g}" for value in (min(removed), max(removed)))
        parts.append(f"{grain} {low} %" if low == high else f"{grain} {low} to {high} %")
    return ", ".join(parts)
