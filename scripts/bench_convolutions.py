"""Convolutions against the fastest of torch's; ``python scripts/bench_executors.py conv``.

Convolutions of MobileNetV1 and ResNet-50 for one image with 80, 90 and 95 % of the weights zero,
weights warm, against channels first, channels last, and oneDNN with packed weights.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable

import numpy as np
import torch
from bench_timing import Clock, about, error, interleaved

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
#: Density -> least geometric mean over the convolutions.
CONVOLUTION_REACH = {0.2: 2.0, 0.1: 3.3, 0.05: 5.0}


def convolutions(layers: Iterable[str] | None, seconds: float, seed: int, clock: Clock) -> None:
    """Measures convolutions and prints the table."""
    print(f"{about()}\n")
    print("| convolution | density | channels first us | last | packed | sparse us | speed-up |")
    print("|---|---|---|---|---|---|---|")
    speedups: dict[float, list[float]] = {density: [] for density in CONVOLUTION_REACH}
    for name in layers or CONVOLUTIONS:
        for density, own in speedups.items():
            calls = convolution_calls(*CONVOLUTIONS[name], density, seed)
            times = interleaved({form: [call] for form, call in calls.items()}, seconds / 3, clock)
            dense = [times[form] for form in ("first", "last", "packed")]
            best = [min(turn) for turn in zip(*dense, strict=True)]
            own.append(statistics.median(t / s for t, s in zip(best, times["sparse"], strict=True)))
            medians = " | ".join(f"{statistics.median(t) * 1e6:.0f}" for t in times.values())
            print(f"| {name} | {density:.0%} | {medians} | {own[-1]:.2f} |", flush=True)
    print()
    for density, own in speedups.items():
        least = CONVOLUTION_REACH[density]
        mean = statistics.geometric_mean(own)
        print(f"density {density:.0%}: geometric mean {mean:.2f} (reach {least})")


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
