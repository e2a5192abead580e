"""What a network is at a moment: its training flags, and the content of its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts ``model`` in eval mode for the block; afterwards every module has its own mode again.

    Modes are restored module by module, because networks with frozen normalisation mix them.
    """
    with restored_modes(model):
        model.eval()
        yield


@contextmanager
def restored_modes(model: nn.Module) -> Iterator[None]:
    """Gives every module of ``model`` its training flag back at the end of the block."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


def digest(*parts: object) -> str:
    """SHA-256 (hexadecimal) over JSON values and tensors, equal on every machine.

    Args:
        parts: Tensors count with type, shape and values, wherever they lie and however they are
            strided; everything else must be JSON-serialisable.

    Raises:
        TypeError: A part is neither a tensor nor JSON-serialisable.
    """
    state = hashlib.sha256()
    for part in parts:
        for chunk in _chunks(part):
            state.update(len(chunk).to_bytes(8, "little"))
            state.update(chunk)
    return state.hexdigest()


def digest_module(model: nn.Module) -> str:
    """SHA-256 (hexadecimal) over the names and values of a network's parameters and buffers."""
    entries = [part for item in sorted(_tensors(model)) for part in item]
    return digest(*entries)


def _tensors(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    return ((name, t) for name, t in model.state_dict().items() if isinstance(t, Tensor))


def _chunks(part: object) -> Iterator[memoryview | bytes]:
    if not isinstance(part, Tensor):
        yield json.dumps(part, sort_keys=True).encode()
        return
    yield json.dumps([str(part.dtype), list(part.shape)]).encode()
    # Bytes, because NumPy has no bfloat16; a reshape first, because views need a last dimension.
    flat = part.detach().cpu().contiguous().reshape(-1)
    yield flat.view(torch.uint8).numpy().data
