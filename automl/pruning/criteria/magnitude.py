"""Weight magnitude, L1 and L2, summed over the layers that write a unit together.

Source: Li et al., "Pruning Filters for Efficient ConvNets" (arXiv 1608.08710), section 3.1 for
the L1 norm of a filter; coupled layers are added up as in DepGraph (arXiv 2301.12900), section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from automl.plan import IndexPlan
from automl.pruning.criteria import Scores, written_sums


@dataclass(frozen=True)
class Magnitude:
    """``score(u) = sum over weights w that write unit u of |w|`` (L1), or of ``w ** 2`` (L2).

    The L2 score is the squared norm, which orders units like the norm. Needs no data; costs one
    pass over the weights.

    Attributes:
        norm: ``l1`` or ``l2``.

    Raises:
        ValueError: If ``norm`` is anything else.
    """

    norm: Literal["l1", "l2"] = "l1"

    def __post_init__(self) -> None:
        """Checks the norm."""
        if self.norm not in ("l1", "l2"):
            raise ValueError(f"Magnitude.norm must be 'l1' or 'l2', got {self.norm!r}")

    @property
    def name(self) -> str:
        """``l1`` or ``l2``."""
        return self.norm

    def __call__(self, model: nn.Module, plan: IndexPlan) -> Scores:
        """One array of shape (units,) per target."""
        return written_sums(model, plan, torch.abs if self.norm == "l1" else torch.square)
