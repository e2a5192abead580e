"""Exact counts: multiply-accumulates, parameters and dense bytes.

All three come from the one counting function of the project, the polynomials of
:class:`automl.plan.IndexPlan`; nothing else in the package counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from automl.types import Kept, Resource


class Counts(Protocol):
    """What can be counted: ``automl.plan.IndexPlan``, ``automl.pruning.masked_plan.MaskedPlan``."""

    def macs(self, kept: Kept) -> NDArray[Any]:
        """Multiply-accumulates of one example; batched."""

    def params(self, kept: Kept) -> NDArray[Any]:
        """Trainable parameters; batched."""


@dataclass(frozen=True)
class MacsCost:
    """Multiply-accumulates of one example: convolutions, linears and attention's matmuls.

    Element-wise work, pooling and normalisation are not counted, as in the literature.
    """

    plan: Counts
    resource: ClassVar[Resource] = "macs"

    def __call__(self, kept: Kept) -> NDArray[np.float64]:
        """MACs; batched: (..., targets) gives (...)."""
        return self.plan.macs(kept).astype(np.float64)


@dataclass(frozen=True)
class ParamsCost:
    """Trainable parameters; a tensor shared by several layers counts once."""

    plan: Counts
    resource: ClassVar[Resource] = "params"

    def __call__(self, kept: Kept) -> NDArray[np.float64]:
        """Parameters; batched: (..., targets) gives (...)."""
        return self.plan.params(kept).astype(np.float64)


@dataclass(frozen=True)
class SizeCost:
    """Bytes of the trainable parameters stored densely.

    Attributes:
        plan: The network's plan.
        bytes_per_param: 4 for fp32, 2 for bf16.
    """

    plan: Counts
    bytes_per_param: int = 4
    resource: ClassVar[Resource] = "size_bytes"

    def __call__(self, kept: Kept) -> NDArray[np.float64]:
        """Bytes; batched: (..., targets) gives (...)."""
        return self.plan.params(kept).astype(np.float64) * self.bytes_per_param
