"""Weight magnitude.

Sources: Han et al., "Learning both Weights and Connections for Efficient Neural Networks" (arXiv
1506.02626), section 3, for single weights; Li et al., "Pruning Filters for Efficient ConvNets"
(arXiv 1608.08710), section 3.1, for the L1 norm of a filter; coupled layers are added up as in
DepGraph (arXiv 2301.12900), section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from automl.pruning.criteria import Context, ElementCriterion


@dataclass(frozen=True)
class Magnitude(ElementCriterion):
    """``saliency(w) = |w| ** p``.

    Sums are p-th powers of the Lp norm, which order grains of one size like the norm. Needs no
    data; costs one pass over the weights.

    Attributes:
        p: The power, > 0; 1 for L1, 2 for L2.

    Raises:
        ValueError: ``p`` is not a finite number above 0.
    """

    p: float = 1.0

    def __post_init__(self) -> None:
        """Checks the power."""
        fine = isinstance(self.p, int | float) and not isinstance(self.p, bool)
        if not (fine and math.isfinite(self.p) and self.p > 0):
            raise ValueError(f"Magnitude.p must be a finite number > 0, got {self.p!r}")

    @property
    def name(self) -> str:
        """``l1``, ``l2`` or ``l`` and the power."""
        return f"l{self.p:g}"

    def score_weights(self, context: Context, weights: Sequence[str]) -> dict[str, Tensor]:
        """Name -> ``|w| ** p``."""
        return {name: self._of(context.parameter(name)) for name in weights}

    def _of(self, weight: Tensor) -> Tensor:
        # Half precision would overflow when squared.
        weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
        if self.p == 1:
            return weight.abs()
        return weight.square() if self.p == 2 else weight.abs().pow(self.p)
