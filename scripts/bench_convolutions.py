"""Convolutions against the fastest of torch's; ``python scripts/bench_executors.py conv``.

Convolutions of MobileNetV1 and ResNet-50 for one image with 80, 90 and 95 % of the weights zero,
against channels first, channels last, and oneDNN with packed weights. Three times, with different
things in the caches:

- *in place*: as in a network of such layers, where weights come from memory, and a layer of the
  same kind has just run, whose working memory is used again, and has written the image. There are
  so many copies of the weights that three times the last-level cache is read before one is used
  again; before each call that of another copy runs, and the image is read. The reach refers to
  this.
- *in turns*: what the three others left.
- *warm*: what the same call left, which is made twice and timed the second time.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from bench_timing import Calls, Clock, about, error, interleaved

from automl.executors.cache import last_level_cache
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
#: What is in the caches when a call is timed.
CACHES = ("in place", "in turns", "warm")
#: Density -> least geometric mean over the convolutions.
CONVOLUTION_REACH = {0.2: 2.0, 0.1: 3.3, 0.05: 5.0}


@dataclass(frozen=True)
class Case:
    """Calls that do the same, by name, one for each copy of the weights, and what each reads."""

    calls: Mapping[str, Calls]
    images: Mapping[str, torch.Tensor]


def convolutions(layers: Iterable[str] | None, seconds: float, seed: int, clock: Clock) -> None:
    """Measures convolutions and prints the table."""
    print(f"{about()}\n")
    columns = ("convolution", "density", "channels first us", "last", "packed", "sparse us")
    print(f"| {' | '.join((*columns, *CACHES))} |")
    print("|" + "---|" * (len(columns) + len(CACHES)))
    speedups: dict[float, list[tuple[float, ...]]] = {d: [] for d in CONVOLUTION_REACH}
    for name in layers or CONVOLUTIONS:
        for density, own in speedups.items():
            case = convolution(*CONVOLUTIONS[name], density, seed)
            times = [_times(case, caches, seconds / 6, clock) for caches in CACHES]
            own.append(tuple(map(_speedup, times)))
            medians = " | ".join(f"{statistics.median(t) * 1e6:.0f}" for t in times[0].values())
            figures = " | ".join(f"{figure:.2f}" for figure in own[-1])
            print(f"| {name} | {density:.0%} | {medians} | {figures} |", flush=True)
    print()
    for density, own in speedups.items():
        least = CONVOLUTION_REACH[density]
        means = (statistics.geometric_mean(column) for column in zip(*own, strict=True))
        figures = ", ".join(f"{c} {mean:.2f}" for c, mean in zip(CACHES, means, strict=True))
        print(f"density {density:.0%}: geometric means {figures} (reach {least})")


def _times(case: Case, caches: str, seconds: float, clock: Clock) -> dict[str, list[float]]:
    first = {form: copies[:1] for form, copies in case.calls.items()}
    if caches == "in turns":
        return interleaved(first, seconds, clock)
    if caches == "warm":
        return interleaved(first, seconds, clock, before=lambda form: first[form][0]())
    timed = {form: copies[::2] for form, copies in case.calls.items()}
    others = {form: itertools.cycle(copies[1::2]) for form, copies in case.calls.items()}

    def layer_before(form: str) -> None:
        next(others[form])()
        case.images[form].sum()

    return interleaved(timed, seconds, clock, before=layer_before)


def _speedup(times: Mapping[str, list[float]]) -> float:
    """Of the sparse convolution over the fastest dense one in the same round, the median."""
    best = [min(turn) for turn in zip(*(times[form] for form in DENSE), strict=True)]
    return float(statistics.median(t / s for t, s in zip(best, times["sparse"], strict=True)))


def convolution(
    inputs: int, outputs: int, kernel: int, size: int, density: float, seed: int
) -> Case:
    """One image through one convolution, dense in three ways and sparse."""
    rng = np.random.default_rng(seed)
    shape = (outputs, inputs, kernel, kernel)
    weight = rng.standard_normal(shape, dtype=np.float32) * (rng.random(shape) < density)
    weight = weight.astype(np.float32)
    x = rng.standard_normal((1, inputs, size, size), dtype=np.float32)
    pad, one = (kernel // 2,) * 2, (1, 1)
    sparse = pack_conv2d(weight, padding=pad)
    w, image = torch.from_numpy(weight), torch.from_numpy(x)
    image_last = image.to(memory_format=torch.channels_last)
    exact = torch.conv2d(image.double(), w.double(), None, 1, pad).numpy()
    if not error(sparse(x), exact) < 1e-5:
        raise SystemExit("the sparse convolution is wrong")
    packed = torch.ops.mkldnn._convolution_pointwise

    def calls() -> Iterator[Callable[[], object]]:
        w = torch.from_numpy(weight.copy())
        w_last = w.clone(memory_format=torch.channels_last)
        ready = torch.ops.mkldnn._reorder_convolution_weight(w, pad, one, one, 1, list(x.shape))
        own = pack_conv2d(weight, padding=pad)
        own(x)  # how images of a size are convolved is worked out once
        yield lambda: torch.conv2d(image, w, None, 1, pad)
        yield lambda: torch.conv2d(image_last, w_last, None, 1, pad)
        yield lambda: packed(image, ready, None, pad, one, one, 1, "none", [], "")
        yield lambda: own(x)

    copies = math.ceil(last_level_cache() / weight.nbytes) + 2
    turns = zip(*(calls() for _ in range(copies)), strict=True)
    return Case(
        dict(zip((*DENSE, "sparse"), turns, strict=True)),
        {"first": image, "last": image_last, "packed": image, "sparse": image},
    )
