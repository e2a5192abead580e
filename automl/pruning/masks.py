"""Masks that keep pruned weights at exactly 0.0, through training and on disk.

A mask is a buffer beside its parameter (``weight`` -> ``weight_mask``, True where a weight
stays), so that it is part of every ``state_dict``, is copied with the network and moves with it.
Three things keep the zeros:

- a hook on every masked parameter zeroes the gradients of pruned weights after every backward
  pass, so that momentum never gathers for them, in training and in eval mode, compiled or not,
  whichever module is called. With an optimiser made after pruning this alone keeps them 0.0,
  whatever the number of steps. A hook on the network zeroes the weights themselves before every
  forward pass that records gradients. At the first it also gives copies of the network, which lose
  the hooks of their parameters, new ones; a copy that is compiled before needs :func:`watch`;
- :func:`protect` adds a hook to an optimiser that zeroes weights and the optimiser's state after
  every step. It is needed where the optimiser was used before pruning (its momentum would move
  pruned weights) or mixes coordinates; ``automl.training.finetune`` always calls it;
- :func:`enforce` zeroes them by hand.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from automl.graph.mask_buffers import SUFFIX, is_mask
from automl.types import InputError

#: Ending of a mask's name on disk, where eight weights share a byte.
PACKED = "_mask.packed"


class Masked(NamedTuple):
    """A parameter and its mask, as they are now, and the module that has both."""

    weight: nn.Parameter
    mask: Tensor
    owner: nn.Module
    leaf: str


def attach(network: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Masks parameters in place and keeps them so; a mask that is there already is replaced.

    Args:
        network: Any network.
        masks: Name of a parameter -> booleans of its shape, True where it stays.

    Raises:
        ValueError: A mask has another type or shape than its parameter asks for, or the name of
            its buffer is taken.
    """
    register(network, masks)
    if masks:
        watch(network)


def register(network: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """As :func:`attach`, for a part of a network that :func:`watch` will look after."""
    for name, mask in masks.items():
        owner, leaf = _owner(network, name)
        weight = owner._parameters.get(leaf)
        if weight is None:
            raise ValueError(f"masks.attach: {name!r} must be a parameter, got none of that name")
        if mask.dtype != torch.bool or mask.shape != weight.shape:
            raise ValueError(
                f"masks.attach: the mask of {name!r} must be bool {tuple(weight.shape)}, "
                f"got {mask.dtype} {tuple(mask.shape)}"
            )
        if leaf + SUFFIX not in owner._buffers and hasattr(owner, leaf + SUFFIX):
            raise ValueError(f"masks.attach: {name + SUFFIX!r} must be free, got one that is taken")
        owner.register_buffer(leaf + SUFFIX, mask.detach().clone().to(weight.device))
    enforce(network)


def watch(network: nn.Module) -> None:
    """Makes sure that training ``network`` keeps its masks; once is enough, more does no harm."""
    hooks = network._forward_pre_hooks.values()
    if not any(isinstance(hook, _KeepZero) for hook in hooks):
        network.register_forward_pre_hook(_KeepZero())
    _mask_gradients(network)


def detach(network: nn.Module) -> None:
    """Takes all masks off: the zeros stay, as plain weights that training may change."""
    for _, masked in list(_masked(network)):
        del masked.owner._buffers[masked.leaf + SUFFIX]
    for key, hook in list(network._forward_pre_hooks.items()):
        if isinstance(hook, _KeepZero):
            del network._forward_pre_hooks[key]


def masks_of(network: nn.Module) -> dict[str, Tensor]:
    """Name of every masked parameter -> its mask, the buffer itself."""
    return {name: masked.mask for name, masked in _masked(network)}


def sparsity(network: nn.Module) -> float:
    """Fraction of the masked parameters' weights that is pruned, in [0, 1)."""
    masks = masks_of(network).values()
    total = sum(mask.numel() for mask in masks)
    return 1 - sum(int(mask.sum()) for mask in masks) / total if total else 0.0


@torch.no_grad()
def enforce(network: nn.Module) -> None:
    """Sets every pruned weight to 0.0, whatever it is now (NaN too)."""
    for _, (weight, mask, *_) in _masked(network):
        weight.masked_fill_(~mask, 0.0)


def protect(optimizer: torch.optim.Optimizer, network: nn.Module) -> None:
    """Makes every step of ``optimizer`` end with pruned weights, and their state, at 0.0.

    Costs nothing for a network without masks. Masks attached later are kept, too.
    """

    def after_step(optimizer: torch.optim.Optimizer, *arguments: Any) -> None:
        with torch.no_grad():
            for _, (weight, mask, *_) in _masked(network):
                weight.masked_fill_(~mask, 0.0)
                for value in optimizer.state.get(weight, {}).values():
                    if isinstance(value, Tensor) and value.shape == weight.shape:
                        value.masked_fill_(~mask, 0)

    optimizer.register_step_post_hook(after_step)


class _KeepZero:
    """Forward pre-hook of a network; has no state, so that copies of the network may share it."""

    def __call__(self, network: nn.Module, args: Any) -> None:
        traced = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
        if traced or not torch.is_grad_enabled():
            return
        for _, (weight, mask, *_) in _masked(network):
            # What torch.func puts in a parameter's place is not ours to change.
            if weight.requires_grad and isinstance(weight, nn.Parameter):
                # By .data, which autograd does not count: there may be a graph that has read them.
                weight.data.masked_fill_(~mask, 0.0)
        _mask_gradients(network)


def _mask_gradients(network: nn.Module) -> None:
    """Gives every masked parameter that is trained its hook, unless it has one."""
    for _, (weight, _, owner, leaf) in _masked(network):
        if not (weight.requires_grad and isinstance(weight, nn.Parameter)):
            continue
        hooks = (weight._post_accumulate_grad_hooks or {}).values()
        known = [hook for hook in hooks if isinstance(hook, _GradientMask)]
        if not any(hook.is_of(owner, leaf) for hook in known):
            # After accumulation, so that torch.autograd.grad still sees dense gradients (RigL).
            weight.register_post_accumulate_grad_hook(_GradientMask(owner, leaf))  # type: ignore[no-untyped-call]


class _GradientMask:
    """Zeroes the gradient of pruned weights, by the mask that its module has at that moment.

    Masks are replaced, move to other devices and are taken off. The module is held weakly, so
    that no cycle arises.
    """

    def __init__(self, owner: nn.Module, leaf: str) -> None:
        self._owner, self._leaf = weakref.ref(owner), leaf

    def is_of(self, owner: nn.Module, leaf: str) -> bool:
        """Whether it is the hook of this module's parameter."""
        return self._owner() is owner and self._leaf == leaf

    def __call__(self, weight: Tensor) -> None:
        owner = self._owner()
        mask = None if owner is None else owner._buffers.get(self._leaf + SUFFIX)
        if mask is not None and mask.shape == weight.shape and weight.grad is not None:
            weight.grad.masked_fill_(~mask, 0.0)


# ---- on disk


def pack(state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """A state in which every mask takes one bit a weight, under names that end in ``PACKED``."""
    names = {name + SUFFIX for name in masks_of(network)}
    return {
        (name.removesuffix(SUFFIX) + PACKED if name in names else name): (
            torch.from_numpy(np.packbits(value.cpu().numpy())) if name in names else value
        )
        for name, value in state.items()
    }


def unpack(tensors: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The masks in what :func:`pack` wrote.

    Args:
        tensors: Everything that was written.
        network: Has the parameters, whose shapes are not stored with the masks.

    Raises:
        InputError: A mask belongs to no parameter or has too few bits.
    """
    parameters = dict(network.named_parameters(remove_duplicate=False))
    masks = {}
    for key, packed in tensors.items():
        if not key.endswith(PACKED):
            continue
        name = key.removesuffix(PACKED)
        weight = parameters.get(name)
        if weight is None or packed.numel() != -(-weight.numel() // 8):
            raise InputError(f"the mask of {name!r} does not fit the network")
        bits = np.unpackbits(packed.numpy(), count=weight.numel())
        masks[name] = torch.from_numpy(bits.astype(bool)).reshape(weight.shape)
    return masks


# ---- where masks are


def _masked(network: nn.Module) -> Iterator[tuple[str, Masked]]:
    for path, module in network.named_modules():
        for key, mask in module._buffers.items():
            leaf = key.removesuffix(SUFFIX)
            weight = module._parameters.get(leaf)
            if weight is not None and mask is not None and is_mask(module, key):
                yield f"{path}.{leaf}" if path else leaf, Masked(weight, mask, module, leaf)


def _owner(network: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return network.get_submodule(path), leaf
