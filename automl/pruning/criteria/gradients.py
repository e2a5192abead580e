"""Gradients of the loss on calibration data, batch by batch, the network untouched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.func import functional_call

from automl.pruning.criteria.checks import Labels
from automl.pruning.criteria.context import Context, cross_entropy
from automl.types import InputError

Gradients = dict[str, Tensor]


def leaves_of(context: Context) -> dict[str, Tensor]:
    """The floating-point weights, as leaves of their own that share memory with them."""
    first: dict[int, tuple[str, Tensor]] = {}
    for name, weight in context.weights.items():
        if weight.is_floating_point():
            first.setdefault(id(weight), (name, weight))
    return {name: weight.detach().requires_grad_() for name, weight in first.values()}


def batch_losses(
    context: Context, leaves: Mapping[str, Tensor], images: int, batch_size: int, labels: Labels
) -> Iterator[tuple[int, Tensor]]:
    """Size and mean loss of every batch, differentiable with respect to ``leaves``.

    Args:
        context: The network and its data.
        leaves: Of :func:`leaves_of`.
        images: How many inputs.
        batch_size: How many per batch.
        labels: ``data``: the loss with the data's labels. ``model``: cross entropy with classes
            drawn from the network's own predictions, whose gradients give the true Fisher
            information and need no labels.

    Raises:
        InputError: The network's output is not what the loss takes.
    """
    generator = torch.Generator().manual_seed(context.seed)
    with torch.enable_grad():
        for x, y in context.batches(images, batch_size):
            outputs = functional_call(context.model, dict(leaves), (x,))
            if labels == "model":
                loss = cross_entropy(outputs, _drawn(outputs, generator))
            else:
                assert context.loss is not None and y is not None  # needs were checked
                loss = context.loss(outputs, y)
            yield len(x), _scalar(loss)


def _drawn(outputs: object, generator: torch.Generator) -> Tensor:
    if not isinstance(outputs, Tensor) or outputs.dim() not in (2, 3):
        raise InputError("labels=model needs a network that returns logits (..., classes)")
    chances = outputs.detach().float().softmax(-1).flatten(0, -2).cpu()
    drawn = torch.multinomial(chances, 1, generator=generator)
    return drawn.reshape(outputs.shape[:-1]).to(outputs.device)


def _scalar(loss: object) -> Tensor:
    if not isinstance(loss, Tensor) or loss.dim() != 0 or not loss.requires_grad:
        raise InputError(
            "the criterion's loss must return a scalar tensor that depends on the network, got "
            f"{type(loss).__name__}"
        )
    return loss


def batch_gradients(
    context: Context, images: int, batch_size: int, labels: Labels = "data"
) -> Iterator[tuple[int, Gradients]]:
    """Size of every batch, and the gradient of its mean loss for every parameter.

    Yields:
        Examples in the batch, and name -> gradient under every name of a shared parameter; zero
        where the loss does not depend on a parameter.
    """
    leaves = leaves_of(context)
    names = all_names(context, leaves)
    for size, loss in batch_losses(context, leaves, images, batch_size, labels):
        grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        found = {
            name: torch.zeros_like(leaf) if grad is None else grad
            for (name, leaf), grad in zip(leaves.items(), grads, strict=True)
        }
        yield size, {name: found[first] for name, first in names.items()}


def all_names(context: Context, leaves: Mapping[str, Tensor]) -> dict[str, str]:
    """Every name of a weight -> the first one."""
    weights = context.weights
    first = {id(weights[name]): name for name in leaves}
    return {name: first[id(one)] for name, one in weights.items() if id(one) in first}


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Attention by plain products: the fused kernels have no second derivative."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        yield
