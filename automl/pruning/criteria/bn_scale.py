"""Batch-norm scaling factors.

Source: Liu et al., "Learning Efficient Convolutional Networks through Network Slimming" (arXiv
1708.06519), section 3: channels with small ``|gamma|`` go, best after training with an L1 penalty
on all gammas (criterion ``slimming``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from automl.pruning.criteria import Context, Scores, UnitCriterion, by_target
from automl.types import InputError


@dataclass(frozen=True)
class BatchNormScale(UnitCriterion):
    """``score(u) = sum of |gamma_u|`` over the batch norms that scale u, coupled ones included.

    Needs no data; costs nothing.
    """

    @property
    def name(self) -> str:
        """``bn_scale``."""
        return "bn_scale"

    def score_units(self, context: Context) -> Scores:
        """Sums per unit.

        Raises:
            InputError: Targets have no batch norm; they are named.
        """
        plan = context.plan
        totals, times = np.zeros((2, int(plan.offsets[-1]) + 1))
        for name, axis_index in batchnorm_scales(context):
            values = context.parameter(name).abs().double().cpu().numpy()
            axis = plan.axes[axis_index]
            for units in (axis.first, axis.second):
                np.add.at(totals, units, values)  # -1 lands in the spare last entry
                np.add.at(times, units, 1.0)
        missing = [
            t.name for t, n in zip(plan.targets, by_target(plan, times), strict=True) if 0 in n
        ]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise InputError(
                "criterion bn_scale needs a batch norm with scales behind every pruned layer, and "
                f"{', '.join(missing[:3])}{more} has none; exclude it, or choose a criterion such "
                "as l2"
            )
        return by_target(plan, totals)


def batchnorm_scales(context: Context) -> Iterator[tuple[str, int]]:
    """Names of the prunable scales of batch norms, each with the axis of its units."""
    for tensor in context.plan.tensors:
        owner, _, attribute = tensor.name.rpartition(".")
        axis = tensor.axes[0]
        if attribute == "weight" and len(tensor.shape) == 1 and axis is not None:
            module = context.model.get_submodule(owner)
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                yield tensor.name, axis
