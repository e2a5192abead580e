"""Dense layers: the baseline, and what is used where no sparse format pays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike

from automl.executors.packed import FiniteLinear
from automl.executors.rows import Float32, as_bias, as_weight


@dataclass(frozen=True, eq=False)
class DenseLinear(FiniteLinear):
    """A layer as torch runs it.

    Attributes:
        weight: Shape (out_features, in_features).
    """

    weight: Float32

    kind: ClassVar[str] = "dense"

    @property
    def name(self) -> str:
        """See ``PackedLinear``."""
        return "dense"

    def to_dense(self) -> Float32:
        """See ``PackedLinear``."""
        return self.weight

    def multiply(self, x: Float32) -> Float32:
        """See ``FiniteLinear``."""
        return self.multiply_batch(x[None]).reshape(-1)

    def multiply_batch(self, x: Float32) -> Float32:
        """See ``PackedLinear``."""
        tensors = map(torch.from_numpy, (x, self.weight, self.bias))
        with torch.inference_mode():
            return np.asarray(torch.nn.functional.linear(*tensors))


@dataclass(frozen=True, slots=True)
class Dense:
    """The format; it has no settings."""

    @property
    def name(self) -> str:
        """See ``Format``."""
        return "dense"

    def unfit(self, weight: ArrayLike) -> str | None:
        """See ``Format``."""
        return None

    def pack(self, weight: ArrayLike, bias: ArrayLike | None = None) -> DenseLinear:
        """See ``Format``."""
        matrix = as_weight(weight)
        return DenseLinear(matrix.shape[1], as_bias(bias, len(matrix)), np.array(matrix))
