"""Shared weights, trained: 16 values for all weights of a layer, one of them zero.

S. Han, H. Mao and W. Dally, "Deep Compression" (arXiv 1510.00149, section 3). Zeros stay zeros; all
other weights of a layer become the nearest of 15 values found by k-means
(``automl.executors.shared_weights``). In training a weight's value is looked up by its code, which
does not change, so that the gradient of a shared value is the sum of those of its weights (equation
3), and an optimiser sees 15 numbers a layer. Afterwards the layer holds plain weights again, which
the formats ``pell_codebook`` and ``eie`` store exactly.

    with sharing(network):
        finetune(network, train, config)

Deviation: the paper writes codes in 8 bits for convolutions and 5 for fully connected layers, here
all take 4, as EIE's do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from automl.executors.shared_weights import CENTROIDS, share
from automl.types import InputError

#: Values of a layer, zero among them.
SHARED_VALUES = CENTROIDS + 1

_WEIGHT = "weight"


@contextmanager
def sharing(network: nn.Module) -> Iterator[tuple[str, ...]]:
    """Shares the weights of a network's layers, in place, and lets the shared values be trained.

    Layers are modules with a ``weight`` of two dimensions or more, embeddings and weights that
    several modules have in common excepted. Everything else (biases, norms) stays as it is and
    is trained as before. Make the optimiser inside.

    Args:
        network: In float32; masks stay, and so do zeros.

    Yields:
        The layers' names. After the block their weights are plain parameters again, of at most 16
        values each.

    Raises:
        InputError: A weight is NaN or infinite, or there is no layer to share weights in.
    """
    layers = _layers(network)
    if not layers:
        raise InputError("the network has no layer whose weights could be shared")
    for name, layer in layers.items():
        if not bool(layer.weight.isfinite().all()):
            raise InputError(
                f"{name}.weight holds NaN or infinite weights, which no value stands for"
            )
    orders = {name: list(layer._parameters) for name, layer in layers.items()}
    for layer in layers.values():
        parametrize.register_parametrization(layer, _WEIGHT, _Codebook(layer.weight))
    try:
        yield tuple(layers)
    finally:
        for name, layer in layers.items():
            parametrize.remove_parametrizations(layer, _WEIGHT, leave_parametrized=True)
            layer.weight.grad = None  # It has the shape of the shared values.
            for key in orders[name]:  # It came back as the last of them.
                layer._parameters[key] = layer._parameters.pop(key)


def _layers(network: nn.Module) -> dict[str, Any]:
    weights = [id(weight) for _, weight in network.named_parameters(remove_duplicate=False)]
    times = Counter(weights)
    found = {}
    for name, module in network.named_modules():
        weight = module._parameters.get(_WEIGHT)
        if weight is None or weight.dim() < 2 or isinstance(module, nn.Embedding):
            continue
        if times[id(weight)] == 1:
            found[name] = module
    return found


class _Codebook(nn.Module):
    """Looks weights up; the shared values are what is trained.

    Attributes:
        codes: 0 for zero, else 1 to 15; int32, of the weight's shape.
    """

    codes: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        flat = weight.detach().cpu().reshape(-1)
        there = flat != 0
        codes, table = share(flat[there].numpy())
        whole = torch.zeros(flat.shape, dtype=torch.int32)
        whole[there] = torch.from_numpy(codes).int()
        self.register_buffer("codes", whole.reshape(weight.shape).to(weight.device))
        self._start = torch.from_numpy(table[1:]).to(weight)

    def forward(self, values: Tensor) -> Tensor:
        """Shared values (15) to a weight."""
        weight: Tensor = _LookUp.apply(values, self.codes)  # type: ignore[no-untyped-call]
        return weight

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The shared values of the weight that it was made from."""
        return self._start


class _LookUp(torch.autograd.Function):
    """Values by code; the gradient of a value is the sum of its weights' gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, codes: Tensor) -> Tensor:
        ctx.save_for_backward(codes)
        table = torch.cat([values.new_zeros(1), values])
        return table.index_select(0, codes.reshape(-1)).reshape(codes.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (codes,), (gradient,) = ctx.saved_tensors, gradients
        sums = torch.bincount(codes.reshape(-1), gradient.reshape(-1), SHARED_VALUES)
        return sums[1:].to(gradient), None
