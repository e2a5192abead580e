"""Random scores, the control that any criterion has to beat.

Source: Mittal et al., "Recovering from Random Pruning" (arXiv 1801.10447), which shows how small
the lead of criteria is after fine-tuning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from automl.hashing import digest
from automl.pruning.criteria import Context, ElementCriterion, Need


@dataclass(frozen=True)
class Random(ElementCriterion):
    """``saliency(w) ~ U(0, 1)``, independent for all weights.

    Needs no data; costs one pass over the weights. The seed is the context's; every weight tensor
    has random numbers of its own, whatever else is scored.
    """

    @property
    def name(self) -> str:
        """``random``."""
        return "random"

    @property
    def needs(self) -> frozenset[Need]:
        """A seed."""
        return frozenset({"seed"})

    def score_weights(self, context: Context, weights: Sequence[str]) -> dict[str, Tensor]:
        """Name -> uniform random numbers."""
        return {name: self._of(context.parameter(name), context.seed, name) for name in weights}

    def _of(self, weight: Tensor, seed: int, name: str) -> Tensor:
        generator = torch.Generator().manual_seed(int(digest(seed, name)[:15], 16))
        return torch.rand(weight.shape, generator=generator).to(weight.device)
