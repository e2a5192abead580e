"""A network that runs as fused steps."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from automl.executors.fused.buffers import allocate
from automl.executors.fused.steps import Operate, Step, Values
from automl.executors.packed import working_memory


class FusedNetwork(nn.Module):
    """Steps in buffers that are kept from call to call, for inputs of one shape.

    Inputs of other shapes, and those that lead to NaN or infinity anywhere, are left to the
    network that it was made of. Calls take turns: they share the buffers.

    Attributes:
        steps: What is done, in order.
        layers: Bytes of every convolution that is fused with its neighbours, by its name.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        values: Values,
        source: tuple[int, tuple[int, ...]],
        output: int,
        network: nn.Module,
        layers: Mapping[str, int],
    ) -> None:
        """Allocates the buffers.

        Args:
            steps: In order.
            values: Tensors that do not change, in the places of their numbers.
            source: Number and shape of the input.
            output: Number of the output.
            network: What the steps were made of.
            layers: Bytes of every fused convolution by its name.
        """
        super().__init__()
        self.steps, self.layers = tuple(steps), dict(layers)
        buffers = allocate(steps, output)
        memory = working_memory(max(step.floats for step in steps))
        self._values = list(values)
        for number, array in buffers.items():
            self._values[number] = torch.from_numpy(array)
        calls = [step.bind(buffers, memory) for step in steps]
        self._calls = [call for call in calls if call is not None]
        self._source, self._shape, self._output = *source, output
        self._operates = any(isinstance(step, Operate) for step in steps)
        self._lock = threading.Lock()
        # In a tuple: its weights are not this one's parameters.
        self._network = (network,)

    def forward(self, x: Tensor) -> Any:
        """The network's output."""
        if x.shape != self._shape or x.dtype != torch.float32 or x.device.type != "cpu":
            return self._network[0](x)
        with self._lock:
            values = list(self._values)
            values[self._source] = x.detach()
            if self._runs(values):
                # A copy: it may lie in a buffer.
                return values[self._output].clone()
        return self._network[0](x)

    def _runs(self, values: Values) -> bool:
        if self._operates:
            with torch.inference_mode():
                return all(call(values) for call in self._calls)
        # Without torch's operators there is nothing to switch off, which takes a while.
        for call in self._calls:
            if not call(values):
                return False
        return True
