"""Cost models: what a pruned network costs, as a function of the kept counts alone."""

from __future__ import annotations

from automl.cost.arithmetic import MacsCost, ParamsCost, SizeCost
from automl.cost.energy import EnergyCost, EnergyModel
from automl.plan import IndexPlan
from automl.types import CostModel, Resource

__all__ = ["EnergyCost", "EnergyModel", "MacsCost", "ParamsCost", "SizeCost", "standard_costs"]


def standard_costs(plan: IndexPlan, energy: EnergyModel | None = None) -> dict[Resource, CostModel]:
    """The cost models that need nothing but the plan: all but latency.

    Args:
        plan: The network's plan.
        energy: Energy per operation; None for the published figures of 45 nm.
    """
    return {
        "macs": MacsCost(plan),
        "params": ParamsCost(plan),
        "energy_mj": EnergyCost(plan, energy or EnergyModel()),
        "size_bytes": SizeCost(plan),
    }
