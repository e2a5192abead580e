"""Modes of a network: put on for a while, and given back as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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


def state_tensors(network: nn.Module) -> dict[str, Tensor]:
    """The tensors of a network's state; what modules keep beside (``get_extra_state``) is none."""
    state = network.state_dict()
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}
