"""Cost models: what a pruned network costs, as a function of the kept counts alone."""

from __future__ import annotations

from automl.cost.arithmetic import MacsCost, ParamsCost, SizeCost
from automl.plan import IndexPlan
from automl.types import CostModel, Resource

__all__ = ["MacsCost", "ParamsCost", "SizeCost", "standard_costs"]


def standard_costs(plan: IndexPlan) -> dict[Resource, CostModel]:
    """The cost models that need nothing but the plan: macs, params and size_bytes (fp32)."""
    return {"macs": MacsCost(plan), "params": ParamsCost(plan), "size_bytes": SizeCost(plan)}
