"""Re-estimates what BatchNorm layers normalise with, after pruning has shifted their inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from automl.training.state import restored_modes

Batch = Tensor | tuple[Tensor, Any] | list[Any]


def recalibrate_batchnorm(model: nn.Module, batches: Iterable[Batch]) -> int:
    """Replaces the running statistics of all BatchNorm layers by those of ``batches``.

    Mean and variance are pooled exactly over all examples: batch means and squared deviations are
    merged by Chan, Golub and LeVeque's formula (1979, "Updating Formulae and a Pairwise
    Algorithm", equation 2.1) in float64, so unequal batches weigh what they hold, and the variance
    between batches counts, which averaging over batches would lose. As in training, each layer
    sees activations that were normalised by their own batch upstream, so large batches are
    better. Everything but BatchNorm is in eval mode. On an error nothing has changed.

    Args:
        model: Changed in place: running_mean, running_var, num_batches_tracked. Layers that keep
            no running statistics, or that no batch reaches, stay as they are.
        batches: Inputs (batch, ...), or tuples that begin with them; on the network's device.

    Returns:
        How many layers were re-estimated.

    Raises:
        ValueError: ``batches`` is empty, or a layer saw a single value per channel.
    """
    layers = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]
    if not layers:
        return 0
    pooled = {layer: _Pool() for layer in layers}
    with restored_modes(model), _observed(model, pooled), torch.no_grad():
        count = 0
        for batch in batches:
            model(batch if isinstance(batch, Tensor) else batch[0])
            count += 1
    if count == 0:
        raise ValueError("recalibrate_batchnorm.batches must hold at least one batch, got none")
    reached = [layer for layer in layers if pooled[layer].count > 1]
    for layer in reached:
        _write(layer, pooled[layer], count)
    return len(reached)


class _Pool:
    """Mean and sum of squared deviations per channel, shape (channels,), of all values so far."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self.deviations = torch.zeros(())

    def add(self, x: Tensor) -> None:
        """Merges the values of ``x``, shape (batch, channels, ...)."""
        dims = [dim for dim in range(x.ndim) if dim != 1]
        exact = x if x.dtype == torch.float64 else x.float()
        variance, mean = torch.var_mean(exact, dim=dims, correction=0)
        count, mean = x.numel() // x.shape[1], mean.double()
        deviations = variance.double() * count
        if self.count == 0:
            self.count, self.mean, self.deviations = count, mean, deviations
            return
        total = self.count + count
        delta = mean - self.mean
        self.mean = self.mean + delta * (count / total)
        self.deviations = self.deviations + deviations + delta**2 * (self.count * count / total)
        self.count = total


@contextmanager
def _observed(model: nn.Module, pooled: dict[_BatchNorm, _Pool]) -> Iterator[None]:
    """Lets BatchNorm layers use batch statistics and pools their inputs, writing no buffer."""
    tracks = {layer: layer.track_running_stats for layer in pooled}
    hooks = []
    try:
        model.eval()
        for layer in pooled:
            layer.training = True
            layer.track_running_stats = False
            hooks.append(layer.register_forward_pre_hook(_pooling(pooled[layer])))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer, track in tracks.items():
            layer.track_running_stats = track


def _pooling(pool: _Pool) -> Any:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        pool.add(inputs[0])

    return hook


def _write(layer: _BatchNorm, pool: _Pool, batches: int) -> None:
    assert layer.running_mean is not None and layer.running_var is not None  # for mypy
    layer.running_mean.copy_(pool.mean)
    # The unbiased variance, as torch keeps it.
    layer.running_var.copy_(pool.deviations / (pool.count - 1))
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked.fill_(batches)
