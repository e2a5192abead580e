"""One call from a name in a config to a network that is ready to be traced."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from automl.engines.errors import one_line
from automl.graph.compiled import uncompiled
from automl.models.checkpoint import load_checkpoint, resolve_checkpoint
from automl.models.factory import build
from automl.training.state import evaluating
from automl.types import InputError

#: Examples in ``example_inputs``; two, so that tracing tells the batch from a size that is 1.
EXAMPLE_BATCH = 2


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A network and all that is needed to load it again.

    Attributes:
        model: The network, in eval mode, on the CPU.
        example_inputs: What its forward takes: one tensor of shape (2, *input_shape), float32, or
            int64 for networks that read token ids.
        name: Short name, for tables and folders.
        factory: What built it (see :func:`load_model`).
        kwargs: Arguments of the factory.
        checkpoint: Path of the weights, None where they are as the factory made them.
        input_shape: (channels, height, width) of one example.
        mean: Per channel mean its weights expect of images in [0, 1]; None where only the data
            set knows.
        std: Per channel standard deviation likewise.
        seed: Of what the factory drew.
    """

    model: nn.Module
    example_inputs: tuple[Tensor, ...]
    name: str
    factory: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    input_shape: tuple[int, ...] = ()
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    seed: int = 0


def load_model(
    factory: str,
    *,
    kwargs: Mapping[str, Any] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    input_shape: Sequence[int] | None = None,
    seed: int = 0,
) -> LoadedModel:
    """Builds a network and loads its weights.

    Args:
        factory: ``torchvision:NAME``, ``timm:NAME``, ``hf:NAME`` or a dotted path to a
            function or class
            (``automl.models.cifar.resnet20``, ``mypackage.nets:small``).
        kwargs: Arguments of the factory.
        checkpoint: Weights to load (see :func:`~automl.models.checkpoint.load_checkpoint`;
            ``package:`` and ``data:`` paths are resolved); None leaves the factory's.
        input_shape: (channels, height, width) of one example; torchvision and timm know theirs.
        seed: Of the initial weights and the example inputs; the caller's random state is kept.

    Raises:
        InputError: Anything of the above that does not name, fit or load; one line says what.
    """
    if not isinstance(factory, str) or not factory:
        raise InputError(
            "model.factory must be torchvision:NAME, timm:NAME, hf:NAME or a dotted path, for "
            f"example model.factory=torchvision:resnet18, got {factory!r}"
        )
    kwargs = {} if kwargs is None else kwargs
    if not isinstance(kwargs, Mapping) or not all(isinstance(key, str) for key in kwargs):
        raise InputError(
            f"model.kwargs must be arguments by name, as model.kwargs.width=8, got {kwargs!r}"
        )
    path = resolve_checkpoint(checkpoint)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = build(factory, dict(kwargs))
        shape = _input_shape(factory, input_shape, built.input_shape)
        example = _example(shape, built.vocab_size)
        model = uncompiled(built.model)
        _initialise(model, example, factory)
    if path is not None:
        load_checkpoint(model, path)
    return LoadedModel(
        model=model.eval(),
        example_inputs=(example,),
        name=built.name,
        factory=factory,
        kwargs=dict(kwargs),
        checkpoint=None if path is None else str(path),
        input_shape=shape,
        mean=built.mean,
        std=built.std,
        seed=seed,
    )


def _initialise(model: nn.Module, example: Tensor, factory: str) -> None:
    """Gives the parameters of lazy modules their shapes, which an input tells.

    Raises:
        InputError: The network fails on it, or leaves some without a shape.
    """
    if not _lazy(model):
        return
    try:
        with evaluating(model), torch.no_grad():
            model(example)
    except Exception as error:
        raise InputError(
            f"model.factory {factory} has parameters without a shape ({_lazy(model)[0]}), and "
            f"fails on an input of shape {tuple(example.shape)}: {one_line(error)}"
        ) from error
    if left := _lazy(model):
        raise InputError(
            f"model.factory {factory} leaves {left[0]} without a shape, which no input reaches; "
            "make it without lazy modules"
        )


def _lazy(model: nn.Module) -> list[str]:
    named = (*model.named_parameters(), *model.named_buffers())
    return [name for name, tensor in named if is_lazy(tensor)]


def _example(shape: tuple[int, ...], vocab_size: int | None) -> Tensor:
    if vocab_size is None:
        return torch.randn(EXAMPLE_BATCH, *shape)
    return torch.randint(vocab_size, (EXAMPLE_BATCH, *shape))


def _input_shape(
    factory: str, given: Sequence[int] | None, known: tuple[int, ...] | None
) -> tuple[int, ...]:
    if given is None:
        if known is None:
            raise InputError(
                f"model.input_shape must be given for {factory}, as [channels, height, width], "
                "for example model.input_shape=[3,32,32]"
            )
        return known
    shape = tuple(given) if isinstance(given, Sequence) else ()
    if not shape or not all(type(size) is int and size > 0 for size in shape):
        raise InputError(
            "model.input_shape must be positive whole numbers [channels, height, width], "
            f"got {given!r}"
        )
    return shape
