"""Networks that write into their buffers when they run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Gives buffers back the values they had, for a network that writes into them when it runs."""
    stores = [(module._buffers, dict(module._buffers)) for module in model.modules()]
    before = [(buffer, buffer.clone(), _version(buffer)) for buffer in model.buffers()]
    try:
        yield
    finally:
        for store, held in stores:
            store.clear()
            store.update(held)
        for buffer, values, version in before:
            # Statistics of batch norms change without a new version.
            if _version(buffer) != version or not torch.equal(buffer, values):
                buffer.copy_(values)


def _version(tensor: Tensor) -> int:
    """Changes whenever the tensor is written to; inference tensors cannot be."""
    return 0 if tensor.is_inference() else tensor._version
