"""How many examples to run at once: a rule that repeats exactly, or a measurement."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

#: Sizes that `fastest_batch_size` is meant to try.
CANDIDATES = (64, 128, 256, 512)

# Values (not images) in a batch: 250 CIFAR images keep a CPU busy without leaving its caches; a
# GPU takes sixteen times that (81 images of 224 x 224 pixels) to be busy.
_CPU_VALUES = 250 * 3 * 32 * 32
_CUDA_VALUES = 16 * _CPU_VALUES
_LEAST, _MOST = 32, 1000

# Inputs and outputs of the largest layer in a batch: those of 250 CIFAR images in a ResNet. Three
# times as many, MobileNetV1's, are no faster (4 % slower an image) and take three times the memory.
_CPU_ACTIVATIONS = 250 * 2 * 16 * 32 * 32


def default_batch_size(values: int, device: torch.device, activations: int | None = None) -> int:
    """A batch size for inference, by rule: the same on every machine of the kind.

    Args:
        values: Numbers in one example, for example 3 * 32 * 32.
        device: Where it runs.
        activations: Numbers that the largest layer reads and writes for one example, where that
            is known; on a CPU, those of a batch are to fit into its caches.
    """
    if device.type == "cuda":
        return min(max(_CUDA_VALUES // values, _LEAST), _MOST)
    size = min(_CPU_VALUES // values, _MOST)
    if activations is not None:
        size = min(size, _CPU_ACTIVATIONS // max(activations, 1))
    return max(size, _LEAST)


def fastest_batch_size(forward: Callable[[int], None], sizes: Sequence[int]) -> int:
    """The size with the most examples per second, measured; the rest do not fit or are slower.

    Args:
        forward: Runs one batch of the size given, to the end (on a GPU: synchronised).
        sizes: What to try, rising; at least one.

    Raises:
        torch.OutOfMemoryError: Not even the first fits into memory.
    """
    rates: dict[int, float] = {}
    for size in sizes:
        try:
            rates[size] = size / _seconds(partial(forward, size))
        except torch.OutOfMemoryError:
            if not rates:
                raise
            break
    return max(rates, key=rates.__getitem__)


def _seconds(run: Callable[[], None], repeats: int = 3) -> float:
    """The least of ``repeats`` wall times, after a first run that is not counted."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)
