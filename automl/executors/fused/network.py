"""A network that runs as fused steps."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from automl.executors.fused.buffers import allocate
from automl.executors.fused.steps import Convolve, Step, Values
from automl.executors.packed import aligned_zeros


class FusedNetwork(nn.Module):
    """Steps in buffers that are kept from call to call, for inputs of one shape.

    Inputs of other shapes, and those that lead to NaN or infinity anywhere, are left to the
    network that it was made of. Calls take turns: they share the buffers.

    Attributes:
        steps: What is done, in order.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        values: Values,
        source: tuple[int, tuple[int, ...]],
        output: int,
        network: nn.Module,
    ) -> None:
        """Allocates the buffers.

        Args:
            steps: In order.
            values: Tensors that do not change, in the places of their numbers.
            source: Number and shape of the input.
            output: Number of the output.
            network: What the steps were made of.
        """
        super().__init__()
        self.steps = tuple(steps)
        buffers = allocate(steps, output)
        memory = aligned_zeros(max(step.floats for step in steps), np.float32)
        self._values = list(values)
        for number, array in buffers.items():
            self._values[number] = torch.from_numpy(array)
        self._calls = [step.bind(buffers, memory) for step in steps]
        self._source, self._shape, self._output = *source, output
        self._lock = threading.Lock()
        # In a tuple: its weights are not this one's parameters.
        self._network = (network,)

    @property
    def nbytes(self) -> int:
        """Bytes of packed weights."""
        return sum(step.packed.nbytes for step in self.steps if isinstance(step, Convolve))

    def forward(self, x: Tensor) -> Any:
        """The network's output."""
        if x.shape == self._shape and x.dtype == torch.float32 and x.device.type == "cpu":
            with torch.inference_mode(), self._lock:
                values = list(self._values)
                values[self._source] = x
                if all(call(values) for call in self._calls):
                    # A copy: it may lie in a buffer.
                    return values[self._output].clone()
        return self._network[0](x)
