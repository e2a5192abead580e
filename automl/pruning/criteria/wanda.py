"""Wanda: magnitude times the norm of what it multiplies.

Source: Sun et al., "A Simple and Effective Pruning Approach for Large Language Models" (arXiv
2306.11695), equation 1: ``S_ij = |W_ij| * ||X_j||_2``, compared within a row (an output).

Deviations: the norm is a root mean square over examples and positions, which orders weights alike
and does not grow with the data; convolutions see the patches below their kernel; weights are
compared over whatever the granularity compares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from automl.pruning.criteria import Context, ElementCriterion
from automl.pruning.criteria.activations import (
    LayerUse,
    as_matrices,
    from_matrices,
    input_powers,
    require_uses,
)
from automl.pruning.criteria.checks import OnInputs


@dataclass(frozen=True)
class Wanda(OnInputs, ElementCriterion):
    """``saliency(w_ij) = |w_ij| * sqrt(mean of x_j ** 2)``, x_j the input that w_ij multiplies.

    Needs inputs, no labels; costs one forward pass over them.
    """

    title: ClassVar[str] = "wanda"

    def score_weights(self, context: Context, weights: Sequence[str]) -> dict[str, Tensor]:
        """Name -> saliency."""
        uses = {use.weight: use for use in require_uses("wanda", context, weights)}
        power = input_powers(context, self.images)
        return {
            name: _times(context.parameter(name), power[name].sqrt(), uses[name])
            for name in weights
        }


def _times(weight: Tensor, norms: Tensor, use: LayerUse) -> Tensor:
    """``|w| * norm`` with norms of shape (groups, features of a group)."""
    found = as_matrices(weight.double().abs(), use) * norms[:, None]
    return from_matrices(found, weight, use)
