"""The dense network of a run, as ``model.*`` asks for it, and what it runs on."""

from __future__ import annotations

import torch

from automl.commands.settings import Config, number, path, seed_of
from automl.graph.export import Deadline
from automl.graph.trace import Trace, trace
from automl.models import LoadedModel, load_model, resolve_checkpoint
from automl.training.state import evaluating
from automl.types import InputError


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
    for name, tensor in loaded.model.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            source = loaded.checkpoint or loaded.factory
            raise InputError(f"{name} of {source} holds NaN or infinite values; load other weights")


def structure(model: torch.nn.Module, inputs: tuple[torch.Tensor, ...], config: Config) -> Trace:
    """What is connected in a network, without what ``exclude`` names.

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
    return trace(model, inputs, exclude=exclude, deadline_s=deadline_s)


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
