"""Convolutions against the fastest of torch's; ``python scripts/bench_executors.py conv``.

Convolutions of MobileNetV1 and ResNet-50 for one image with 80, 90 and 95 % of the weights zero,
against channels first, channels last, and oneDNN with packed weights. Each finds in the caches what
the three others left, and then, in turns of two calls of which the second counts, what it left
there itself ("warm"); the reach refers to the former.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from bench_timing import Calls, Clock, about, error, interleaved

from automl.executors.conv import pack_conv2d

#: Convolutions: (channels read, channels written, kernel, height and width).
CONVOLUTIONS = {
    "MobileNetV1 256, 1x1, 28": (256, 256, 1, 28),
    "MobileNetV1 512, 1x1, 14": (512, 512, 1, 14),
    "MobileNetV1 1024, 1x1, 7": (1024, 1024, 1, 7),
    "ResNet-50 128, 3x3, 28": (128, 128, 3, 28),
    "ResNet-50 256, 3x3, 14": (256, 256, 3, 14),
    "ResNet-50 512, 3x3, 7": (512, 512, 3, 7),
}
#: What a convolution is held against.
DENSE = ("first", "last", "packed")
#: Density -> least geometric mean over the convolutions.
CONVOLUTION_REACH = {0.2: 2.0, 0.1: 3.3, 0.05: 5.0}


def convolutions(layers: Iterable[str] | None, seconds: float, seed: int, clock: Clock) -> None:
    """Measures convolutions and prints the table."""
    print(f"{about()}\n")
    columns = ("convolution", "density", "channels first us", "last", "packed", "sparse us")
    print(f"| {' | '.join(columns)} | speed-up | warm |")
    print("|---|---|---|---|---|---|---|---|")
    speedups: dict[float, list[tuple[float, float]]] = {d: [] for d in CONVOLUTION_REACH}
    for name in layers or CONVOLUTIONS:
        for density, own in speedups.items():
            calls = convolution_calls(*CONVOLUTIONS[name], density, seed)
            turns: dict[str, Calls] = {form: [call] for form, call in calls.items()}
            times = interleaved(turns, seconds / 6, clock)
            again = interleaved(turns, seconds / 6, clock, warm=True)
            own.append((_speedup(times), _speedup(again)))
            medians = " | ".join(f"{statistics.median(t) * 1e6:.0f}" for t in times.values())
            figures = " | ".join(f"{figure:.2f}" for figure in own[-1])
            print(f"| {name} | {density:.0%} | {medians} | {figures} |", flush=True)
    print()
    for density, own in speedups.items():
        least = CONVOLUTION_REACH[density]
        cold, warm = (statistics.geometric_mean(column) for column in zip(*own, strict=True))
        print(f"density {density:.0%}: geometric mean {cold:.2f} (reach {least}), warm {warm:.2f}")


def _speedup(times: Mapping[str, list[float]]) -> float:
    """Of the sparse convolution over the fastest dense one in the same round, the median."""
    best = [min(turn) for turn in zip(*(times[form] for form in DENSE), strict=True)]
    return float(statistics.median(t / s for t, s in zip(best, times["sparse"], strict=True)))


def convolution_calls(
    inputs: int, outputs: int, kernel: int, size: int, density: float, seed: int
) -> dict[str, Callable[[], object]]:
    """One image through one convolution, dense in three ways and sparse, weights warm."""
    rng = np.random.default_rng(seed)
    shape = (outputs, inputs, kernel, kernel)
    weight = rng.standard_normal(shape, dtype=np.float32) * (rng.random(shape) < density)
    weight = weight.astype(np.float32)
    x = rng.standard_normal((1, inputs, size, size), dtype=np.float32)
    pad, one = (kernel // 2,) * 2, (1, 1)
    sparse = pack_conv2d(weight, padding=pad)
    w, image = torch.from_numpy(weight), torch.from_numpy(x)
    last = {"memory_format": torch.channels_last}
    w_last, image_last = w.to(**last), image.to(**last)
    ready = torch.ops.mkldnn._reorder_convolution_weight(w, pad, one, one, 1, list(x.shape))
    packed = torch.ops.mkldnn._convolution_pointwise
    exact = torch.conv2d(image.double(), w.double(), None, 1, pad).numpy()
    if not error(sparse(x), exact) < 1e-5:
        raise SystemExit("the sparse convolution is wrong")
    return {
        "first": lambda: torch.conv2d(image, w, None, 1, pad),
        "last": lambda: torch.conv2d(image_last, w_last, None, 1, pad),
        "packed": lambda: packed(image, ready, None, pad, one, one, 1, "none", [], ""),
        "sparse": lambda: sparse(x),
    }
