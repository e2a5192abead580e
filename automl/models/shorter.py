"""Networks without some of their blocks, and a factory that makes them again."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from automl.models.factory import build
from automl.types import InputError


def shorter(
    factory: str, kwargs: Mapping[str, Any], blocks: str, removed: Sequence[int]
) -> nn.Module:
    """What another factory makes, without some blocks.

    Args:
        factory: See :func:`automl.models.load_model`.
        kwargs: Its arguments.
        blocks: Path of the ``nn.Sequential`` or ``nn.ModuleList`` of residual blocks.
        removed: Positions of those to leave out.

    Raises:
        InputError: The factory is refused, or there are no such blocks.
    """
    return without_blocks(build(factory, kwargs).model, blocks, removed)


def without_blocks(model: nn.Module, blocks: str, removed: Sequence[int]) -> nn.Module:
    """A copy of the network without some blocks.

    Raises:
        InputError: There are no such blocks.
    """
    left = copy.deepcopy(model)
    held = blocks_of(left, blocks)
    for block in sorted(removed, reverse=True):  # from the end: positions before it stay
        if not 0 <= block < len(held):
            raise InputError(f"{blocks} has {len(held)} blocks, so none is number {block}")
        del held[block]
    return left


def blocks_of(model: nn.Module, path: str) -> nn.Sequential | nn.ModuleList:
    """The list of modules at a path.

    Raises:
        InputError: There is none; names those that there are.
    """
    try:
        held = model.get_submodule(path)
    except AttributeError:
        held = None
    if not isinstance(held, nn.Sequential | nn.ModuleList):
        kinds = (nn.Sequential, nn.ModuleList)
        lists = [name for name, m in model.named_modules() if name and isinstance(m, kinds)]
        known = f"there are {', '.join(lists)}" if lists else "there are none"
        raise InputError(f"blocks must be a list of modules of the network, got {path!r}; {known}")
    return held
