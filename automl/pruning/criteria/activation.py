"""Statistics of a unit's activations: mean activation and APoZ.

Sources: mean activation as in Molchanov et al., "Pruning Convolutional Neural Networks for
Resource Efficient Inference" (arXiv 1611.06440), section 2.2; APoZ (average percentage of zeros)
from Hu et al., "Network Trimming" (arXiv 1607.03250), equation 1.

A unit's activations are those that the layers behind it read, after normalisation, activation
function and shortcut sums; where several layers read them, statistics are averaged over these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from automl.plan_axes import Axis
from automl.pruning.criteria import Context, Scores, UnitCriterion, by_target
from automl.pruning.criteria.activations import LayerUse, layer_uses, observe
from automl.pruning.criteria.checks import OnInputs
from automl.pruning.criteria.context import in_words
from automl.types import InputError


@dataclass(frozen=True)
class MeanActivation(OnInputs, UnitCriterion):
    """``score(u) = mean of |a_u|`` over examples, positions and the layers that read u.

    With a ReLU in front |a| = a, the paper's form; elsewhere signs would cancel. Needs inputs, no
    labels; costs one forward pass over them.
    """

    title: ClassVar[str] = "mean_activation"

    def score_units(self, context: Context) -> Scores:
        """Means per unit."""
        return _read_means(self.name, context, self.images, torch.abs)


@dataclass(frozen=True)
class APoZ(OnInputs, UnitCriterion):
    """``score(u) = 1 - APoZ(u)``, the share of u's activations that are not zero.

    Needs inputs, no labels, and activation functions with exact zeros, such as ReLU; costs one
    forward pass.
    """

    title: ClassVar[str] = "apoz"

    def score_units(self, context: Context) -> Scores:
        """Shares per unit.

        Raises:
            InputError: The activations of a target are never zero, so that all would be equal.
        """
        scores = _read_means("apoz", context, self.images, lambda data: data != 0)
        dense = [
            target.name
            for target, values in zip(context.plan.targets, scores, strict=True)
            if (values == 1).all()
        ]
        if dense:
            raise InputError(
                f"criterion apoz counts zeros behind a ReLU, and {_listed(dense)} never has any; "
                "exclude it, or choose criterion=mean_activation"
            )
        return scores


def _read_means(
    name: str, context: Context, images: int, of_element: Callable[[Tensor], Tensor]
) -> Scores:
    """Means of a function of the activations that layers read, per unit.

    Raises:
        InputError: No observable layer reads a target.
    """
    plan = context.plan
    uses = [u for u in layer_uses(context.model, plan) if u.layer.in_axis is not None]
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def visit(use: LayerUse, data: Tensor) -> None:
        channels = data if use.conv is None else data.movedim(1, -1)
        values = of_element(channels).flatten(0, -2)
        found = values.sum(0, dtype=torch.float64)
        sums[use.step.name] = sums[use.step.name] + found if use.step.name in sums else found
        counts[use.step.name] = counts.get(use.step.name, 0) + len(values)

    observe(context, images, uses, visit)
    totals, times = np.zeros((2, int(plan.offsets[-1]) + 1))
    for use in uses:
        mean = (sums[use.step.name] / counts[use.step.name]).cpu().numpy()
        assert use.layer.in_axis is not None
        _add(totals, times, mean, plan.axes[use.layer.in_axis])
    unread = [t.name for t, n in zip(plan.targets, by_target(plan, times), strict=True) if 0 in n]
    if unread:
        raise InputError(
            f"criterion {in_words(name)} looks at what linear layers and convolutions read, and "
            f"none reads {_listed(unread)}; exclude it, or choose a criterion such as l2 or taylor"
        )
    return by_target(plan, totals[:-1] / times[:-1])


def _add(totals: np.ndarray, times: np.ndarray, mean: np.ndarray, axis: Axis) -> None:
    """Every layer counts once for a unit, however many positions of its input belong to it."""
    for units in (axis.first, axis.second):
        found, here = np.zeros((2, len(totals)))
        np.add.at(found, units, mean)  # -1 lands in the spare last entry
        np.add.at(here, units, 1.0)
        there = here > 0
        totals[there] += found[there] / here[there]
        times[there] += 1


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
