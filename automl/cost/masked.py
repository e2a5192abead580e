"""Costs of networks with zeros inside layers, where zeros are neither multiplied nor stored.

What an executor really gains from them is measured, not counted: see
``automl.cost.sparse_latency``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from automl.cost.arithmetic import Counts, MacsCost, ParamsCost
from automl.types import CostModel, Kept, Resource


class StoredCounts(Counts, Protocol):
    """Counts that know how zeros are stored; ``automl.pruning.masked_plan.MaskedPlan``."""

    def stored_bits(self, kept: Kept, bits_per_value: int = 32) -> NDArray[Any]:
        """Bits of the trainable parameters with the index of what is left; batched."""


@dataclass(frozen=True)
class StoredSize:
    """Bytes of the trainable parameters, every weight dense or packed, whichever is smaller.

    Attributes:
        plan: What counts.
        bits_per_value: 32 for fp32, 16 for bf16.
    """

    plan: StoredCounts
    bits_per_value: int = 32
    resource: ClassVar[Resource] = "size_bytes"

    def __call__(self, kept: Kept) -> NDArray[np.float64]:
        """Bytes; batched: (..., targets) gives (...)."""
        bits = self.plan.stored_bits(kept, self.bits_per_value)
        return np.asarray(np.ceil(bits / 8), np.float64)


def masked_costs(plan: StoredCounts) -> dict[Resource, CostModel]:
    """Multiplications by what is left, parameters that are left, bytes to store them."""
    return {"macs": MacsCost(plan), "params": ParamsCost(plan), "size_bytes": StoredSize(plan)}
