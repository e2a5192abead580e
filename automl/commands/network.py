"""The dense network of a run, as ``model.*`` asks for it, and what it runs on."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

import torch

from automl.commands.settings import Config, number, path, seed_of
from automl.graph.deadline import Deadline
from automl.graph.identity import identity
from automl.graph.trace import Trace, trace
from automl.hashing import digest
from automl.models import LoadedModel, load_model, resolve_checkpoint
from automl.training.state import evaluating, state_tensors
from automl.types import InputError

#: So many traced networks are remembered.
_MOST_REMEMBERED = 8


@dataclass(frozen=True, eq=False)
class _Remembered:
    """A network that this process has traced.

    Attributes:
        trace: Of it, with the network left out.
        said: The warnings.
        code: Kept, so that nothing else gets its place in memory (see ``automl.graph.identity``).
    """

    trace: Trace
    said: tuple[Warning, ...]
    code: tuple[Any, ...]


_remembered: OrderedDict[tuple[Any, ...], _Remembered] = OrderedDict()


def complete_network(config: Config, device: torch.device) -> LoadedModel:
    """The dense network with all its blocks, on the device.

    Raises:
        InputError: A setting is off, or a weight is not finite.
    """
    settings = config["model"]
    checkpoint, root = path(settings, "model.checkpoint"), path(config["data"], "data.root")
    loaded = load_model(
        settings["factory"],
        kwargs=settings.get("kwargs"),
        checkpoint=resolve_checkpoint(checkpoint, root),
        input_shape=settings.get("input_shape"),
        seed=seed_of(config),
    )
    _require_finite(loaded)
    loaded.model.to(device)
    return loaded


def _require_finite(loaded: LoadedModel) -> None:
    for name, tensor in state_tensors(loaded.model).items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            source = loaded.checkpoint or loaded.factory
            raise InputError(f"{name} of {source} holds NaN or infinite values; load other weights")


def structure(model: torch.nn.Module, inputs: tuple[torch.Tensor, ...], config: Config) -> Trace:
    """What is connected in a network, without what ``exclude`` names.

    A network that this process has traced before is not traced again: the cells of a sweep mostly
    have the same one.

    Args:
        model: Which.
        inputs: Example inputs, on the network's device.
        config: The resolved configuration.

    Raises:
        InputError: A setting is off, or the network cannot be traced in time.
    """
    exclude, deadline_s = config["exclude"], number(config, "trace_deadline_s", 0)
    if not isinstance(exclude, list) or not all(isinstance(name, str) for name in exclude):
        raise InputError(f"exclude must be a list of patterns, as [fc,layer1.*], got {exclude}")
    was = identity(model, inputs)
    # The settings too: a factory may have set what no attribute of the network tells.
    made_by = digest(config["model"], config.get("depth"))
    key = None if was is None else (was.key, made_by, deadline_s, *exclude)
    known = None if key is None else _remembered.get(key)
    if known is not None:
        for warning in known.said:
            warnings.warn(warning, stacklevel=2)
        return replace(known.trace, model=model.eval(), example_inputs=inputs)
    with warnings.catch_warnings(record=True) as said:
        found = trace(model, inputs, exclude=exclude, deadline_s=deadline_s)
    told = tuple(one.message for one in said if isinstance(one.message, Warning))
    if was is not None and key is not None and found.model is model:
        forgotten = replace(found, model=torch.nn.Module(), example_inputs=())
        _remembered[key] = _Remembered(forgotten, told, was.code)
        if len(_remembered) > _MOST_REMEMBERED:
            _remembered.popitem(last=False)
    for warning in told:
        warnings.warn(warning, stacklevel=2)
    return found


def runs_channels_last(loaded: LoadedModel, config: Config, device: torch.device) -> bool:
    """Whether a network of images runs on images that lie channels last.

    One that calls ``view`` behind a convolution may not.

    Args:
        loaded: The network, on the device.
        config: The resolved configuration.
        device: Where it is tried.

    Raises:
        InputError: ``trace_deadline_s`` is off, or the network takes longer.
    """
    x, model = loaded.example_inputs[0], loaded.model
    if len(loaded.input_shape) != 3 or x.ndim != 4:
        return False
    try:
        deadline = Deadline(number(config, "trace_deadline_s", 0))
        # The first time that its forward is called, which may never return.
        with deadline.interrupting(), evaluating(model), torch.inference_mode():
            # A copy: of one channel, both layouts are the same and only strides tell.
            model(x.to(device, copy=True, memory_format=torch.channels_last))
    except RuntimeError:
        return False
    return True
