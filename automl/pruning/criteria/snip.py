"""Connection sensitivity: SNIP, and its form with momentum.

Sources: Lee, Ajanthan and Torr, "SNIP: Single-shot Network Pruning based on Connection
Sensitivity" (arXiv 1810.02340), equation 5, ``|dL/dc| = |g w|`` for a gate c on every weight, of
one large batch. With momentum: Intel Neural Compressor's ``snip_momentum``,
``score_n = 1.0 * score_{n-1} + 0.9 * |W_n * G_n|`` over training steps n.

Deviation: equation 6 divides all sensitivities by their sum, which orders them alike and is left
out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from automl.pruning.criteria import Context, ElementCriterion
from automl.pruning.criteria.checks import OnGradients
from automl.pruning.criteria.gradients import (
    batch_gradients,
)

#: How much of the score so far stays, and what a step's sensitivity counts.
DECAY, GAIN = 1.0, 0.9


@dataclass(frozen=True)
class Snip(OnGradients, ElementCriterion):
    """``saliency(w) = |g w|``, g the gradient of the mean loss over all inputs.

    Meant for networks at initialisation (``model.checkpoint=null``); of a trained network the mean
    gradient is close to zero and the order mostly noise. Needs labelled inputs and a loss; costs
    a forward and backward pass.
    """

    title: ClassVar[str] = "snip"

    images: int = 512
    batch_size: int = 64

    def score_weights(self, context: Context, weights: Sequence[str]) -> dict[str, Tensor]:
        """Name -> saliency, of all parameters in one pass."""
        sums: dict[str, Tensor] = {}
        examples = 0
        for size, grads in batch_gradients(context, self.images, self.batch_size, self.labels):
            examples += size
            for name, grad in grads.items():
                term = size * grad.double()
                sums[name] = sums[name].add_(term) if name in sums else term
        return {
            name: (total / examples * context.parameter(name)).abs() for name, total in sums.items()
        }


@dataclass(frozen=True)
class SnipMomentum(OnGradients, ElementCriterion):
    """``score_n = 1.0 * score_{n-1} + 0.9 * |W_n * G_n|``, n over minibatches.

    Scored at once, weights are the same in all steps; a schedule that trains calls
    :func:`snip_momentum` in every step instead. Needs labelled inputs and a loss; costs a forward
    and backward pass.
    """

    title: ClassVar[str] = "snip_momentum"

    def score_weights(self, context: Context, weights: Sequence[str]) -> dict[str, Tensor]:
        """Name -> saliency, of all parameters in one pass."""
        scores: dict[str, Tensor] = {}
        for _, grads in batch_gradients(context, self.images, self.batch_size, self.labels):
            for name, grad in grads.items():
                scores[name] = snip_momentum(scores.get(name), context.parameter(name), grad)
        return scores


def snip_momentum(score: Tensor | None, weight: Tensor, gradient: Tensor) -> Tensor:
    """One step of the recurrence.

    Args:
        score: After the step before, float64; None before the first.
        weight: W_n.
        gradient: G_n, of the same shape.

    Returns:
        The score after this step, float64.
    """
    gain = GAIN * (weight.detach().double() * gradient.double()).abs()
    return gain if score is None else torch.add(gain, score, alpha=DECAY)
