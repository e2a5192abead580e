"""Optimal Brain Damage: the loss to second order, with a diagonal Hessian.

Source: LeCun, Denker and Solla, "Optimal Brain Damage" (NIPS 1989), equation 5: removing weight w
costs ``h_ww w ** 2 / 2`` at a minimum of the loss. Two estimates of the diagonal:

- empirical Fisher, ``h_ww = mean over examples of g_w ** 2``, as in Theis et al., "Faster gaze
  prediction with dense networks and Fisher pruning" (arXiv 1801.05787), section 2.1; never
  negative. With ``labels=model`` it is the Fisher information itself.
- Hutchinson, ``h_ww = mean of z_w (H z)_w`` over random signs z, as in Yao et al., "AdaHessian"
  (arXiv 2006.00719), section 3.1; of the true Hessian, so it may be negative, and noisy.

The expansion's first-order term is left out, as in the paper (``taylor`` has it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from automl.pruning.criteria import Context, ElementCriterion, Need
from automl.pruning.criteria.checks import OnGradients, require_counts
from automl.pruning.criteria.gradients import (
    all_names,
    batch_gradients,
    batch_losses,
    leaves_of,
    twice_differentiable,
)


@dataclass(frozen=True)
class Fisher(OnGradients, ElementCriterion):
    """``saliency(w) = w ** 2 / 2 * mean over examples of g_w ** 2``.

    Needs labelled inputs (or ``labels=model``) and a loss; costs a forward and backward pass per
    example, one at a time, because squares of single examples' gradients are needed. (Networks
    that take batches of one size only are given these, and a batch counts as an example.)
    """

    title: ClassVar[str] = "obd_fisher"

    images: int = 256
    batch_size: int = field(default=1, init=False)

    def score_weights(self, context: Context, weights: Sequence[str]) -> dict[str, Tensor]:
        """Name -> saliency, of all parameters in one pass."""
        sums: dict[str, Tensor] = {}
        examples = 0
        for _, grads in batch_gradients(context, self.images, self.batch_size, self.labels):
            examples += 1
            for name, grad in grads.items():
                square = grad.double().square()
                sums[name] = sums[name].add_(square) if name in sums else square
        return {
            name: context.parameter(name).double().square() * total / (2 * examples)
            for name, total in sums.items()
        }


@dataclass(frozen=True)
class Hutchinson(OnGradients, ElementCriterion):
    """``saliency(w) = w ** 2 / 2 * h_ww``, the Hessian's diagonal by random signs.

    Needs labelled inputs (or ``labels=model``) and a loss, twice differentiable; costs about four
    passes per probe. Saliencies may be negative: there the loss is expected to fall.

    Attributes:
        images: Calibration inputs used.
        batch_size: Inputs at once.
        probes: Vectors of random signs per batch; every batch draws its own.
        labels: See :class:`OnGradients`.

    Raises:
        ValueError: A field breaks its rule.
    """

    title: ClassVar[str] = "obd_hutchinson"

    images: int = 256
    batch_size: int = 64
    probes: int = 4

    def __post_init__(self) -> None:
        """Checks the fields."""
        super().__post_init__()
        require_counts(self, "probes")

    @property
    def needs(self) -> frozenset[Need]:
        """A seed, too."""
        return super().needs | {"seed"}

    def score_weights(self, context: Context, weights: Sequence[str]) -> dict[str, Tensor]:
        """Name -> saliency, of all parameters in one pass."""
        leaves = leaves_of(context)
        generator = torch.Generator().manual_seed(context.seed)
        diagonal = {
            name: torch.zeros_like(leaf, dtype=torch.float64) for name, leaf in leaves.items()
        }
        examples = 0
        with twice_differentiable():
            for size, loss in batch_losses(
                context, leaves, self.images, self.batch_size, self.labels
            ):
                examples += size
                self._probe(loss, size, leaves, diagonal, generator)
        scale = 2 * examples * self.probes
        return {
            name: context.parameter(name).double().square() * diagonal[first] / scale
            for name, first in all_names(context, leaves).items()
        }

    def _probe(
        self,
        loss: Tensor,
        size: int,
        leaves: dict[str, Tensor],
        diagonal: dict[str, Tensor],
        generator: torch.Generator,
    ) -> None:
        """Adds ``size * z * Hz`` of every probe."""
        found = torch.autograd.grad(
            loss, list(leaves.values()), create_graph=True, allow_unused=True
        )
        grads = {
            name: grad
            for name, grad in zip(leaves, found, strict=True)
            if grad is not None and grad.requires_grad
        }
        for probe in range(self.probes):
            signs = {name: _signs(leaves[name], generator) for name in grads}
            products = torch.autograd.grad(
                list(grads.values()),
                [leaves[name] for name in grads],
                grad_outputs=list(signs.values()),
                retain_graph=probe + 1 < self.probes,
                allow_unused=True,
            )
            for (name, sign), product in zip(signs.items(), products, strict=True):
                if product is not None:
                    diagonal[name] += size * (sign * product).double()


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    signs = torch.randint(0, 2, like.shape, generator=generator)
    return (2 * signs - 1).to(like)
