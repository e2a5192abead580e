"""Sparse 3-D convolution against gather, mm and index_add in torch.

    python scripts/bench_spconv3d.py
    python scripts/bench_spconv3d.py --voxels 38000 --channels 64 --seconds 10
    python scripts/bench_spconv3d.py pruned
    python scripts/bench_spconv3d.py sizes

``layer`` (the default) convolves a generated street scene (ground, walls, poles; one cloud) with a
submanifold kernel of 3 x 3 x 3. The baseline is, for every offset of the kernel,
``y.index_add_(0, target, x.index_select(0, source) @ weight)``, the middle one a plain product,
with pairs in the same order and made beforehand; the map's own time is in a row of its own.
``pruned`` sets weights to zero: offsets, input channels of an offset, output channels, single
weights. ``sizes`` varies voxels and channels, to show where little is gained.

One thread; in every round all run once in turn, and a speed-up is the median over rounds of the
baseline's time to the other's in the same round. Every output is compared with a float64 product.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from automl.environment import cpu_name
from automl.executors.kernel_map import KernelMap, strided_map, submanifold_map
from automl.executors.spconv3d import SparseTensor, SubmanifoldConv3d
from automl.executors.spconv3d_product import multiply, multiply_grouped

KERNEL = (3, 3, 3)
SIZES = ((500, 64), (2000, 64), (10000, 64), (38000, 16), (38000, 32), (38000, 128), (150000, 64))


@dataclass(frozen=True)
class Case:
    """A layer on a cloud, and the lists of pairs that the baseline reads."""

    x: SparseTensor
    layer: SubmanifoldConv3d
    found: KernelMap
    pairs: list[tuple[Tensor, Tensor]]

    @property
    def macs(self) -> int:
        """Multiplications of the dense kernel."""
        outputs, inputs = self.layer.weight.shape[:2]
        return int(self.found.sizes.sum()) * outputs * inputs


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("table", nargs="?", choices=["layer", "pruned", "sizes"], default="layer")
    parser.add_argument("--voxels", type=int, default=38000)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=5.0, help="per case (default 5)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if min(options.voxels, options.channels) < 1:
        parser.error("--voxels and --channels must be at least 1")
    torch.set_num_threads(1)
    print(f"{cpu_name()}, torch {torch.__version__}, one thread; {time.strftime('%Y-%m-%d')}")
    if options.table == "sizes":
        sizes(options.seconds, options.seed)
        return
    case = make_case(options.voxels, options.channels, options.seed)
    fill = case.found.sizes.mean() / len(case.x.features)
    print(f"{len(case.x.features)} voxels, {options.channels} channels in and out, "
          f"{fill:.0%} of the neighbours occupied, {case.macs / 1e9:.2f} GMACs\n")  # fmt: skip
    with torch.inference_mode():
        if options.table == "layer":
            layer(case, options.seconds)
        else:
            pruned(case, options.seconds, options.seed)


def layer(case: Case, seconds: float) -> None:
    """The roads, and what making a map costs."""
    coordinates, weight = case.x.coordinates, case.layer.weight.detach()
    calls: dict[str, Callable[[], object]] = {
        "torch": lambda: baseline(case),
        "fused": lambda: case.layer(case.x),
        "grouped": lambda: multiply_grouped(case.x.features, case.found, weight, None),
        "making the map": lambda: submanifold_map(coordinates.clone(), KERNEL),
        "making a strided map (2)": lambda: strided_map(
            coordinates.clone(), (2, 2, 2), (2, 2, 2), (0, 0, 0)
        ),
    }
    check(case)
    show(interleaved(calls, seconds), case.macs, ("fused", "grouped"))


def pruned(case: Case, seconds: float, seed: int) -> None:
    """Weights set to zero in several ways; the baseline multiplies by them."""
    random = np.random.default_rng(seed)
    inputs = case.layer.in_channels
    dense = case.layer.weight.clone()
    masks = {
        "no zeros": np.ones(1),
        "half of the offsets": (np.arange(27) % 2 == 0).reshape(1, 1, *KERNEL),
        "half of the input channels": (np.arange(inputs) % 2 == 0).reshape(1, inputs, 1, 1, 1),
        "half of the output channels": (np.arange(len(dense)) % 2 == 0).reshape(-1, 1, 1, 1, 1),
        "75 % of (offset, input channel)": random.random((1, inputs, *KERNEL)) < 0.25,
        "90 % of the weights, anywhere": random.random(dense.shape) < 0.1,
    }
    print("| zeros | torch ms | ours ms | speed-up |\n|---|---|---|---|")
    for name, mask in masks.items():
        case.layer.weight.copy_(dense * torch.from_numpy(mask.astype(np.float32)))
        check(case)
        times = interleaved({"torch": lambda: baseline(case), "ours": lambda: case.layer(case.x)},
                            seconds / 2)  # fmt: skip
        base, own = times["torch"], times["ours"]
        medians = f"{1e3 * statistics.median(base):.1f} | {1e3 * statistics.median(own):.1f}"
        print(f"| {name} | {medians} | {speedup(base, own):.2f} |", flush=True)


def sizes(seconds: float, seed: int) -> None:
    """Speed-up by voxels and channels."""
    print("\n| voxels | channels | torch ms | ours ms | speed-up | map ms |")
    print("|---|---|---|---|---|---|")
    for voxels, channels in SIZES:
        case = make_case(voxels, channels, seed)
        with torch.inference_mode():
            check(case)
            calls: dict[str, Callable[[], object]] = {
                "torch": lambda case=case: baseline(case),  # type: ignore[misc]
                "ours": lambda case=case: case.layer(case.x),  # type: ignore[misc]
                "map": lambda case=case: submanifold_map(  # type: ignore[misc]
                    case.x.coordinates.clone(), KERNEL
                ),
            }
            times = interleaved(calls, seconds / 2)
        base, own, making = (times[name] for name in calls)
        print(f"| {voxels} | {channels} | {1e3 * statistics.median(base):.2f} "
              f"| {1e3 * statistics.median(own):.2f} | {speedup(base, own):.2f} "
              f"| {1e3 * statistics.median(making):.2f} |", flush=True)  # fmt: skip


def make_case(voxels: int, channels: int, seed: int) -> Case:
    """A scene with so many voxels, sorted, and random features and weights."""
    coordinates = torch.from_numpy(street(voxels, seed))
    torch.manual_seed(seed)
    module = SubmanifoldConv3d(channels, channels, KERNEL, bias=False)
    x = SparseTensor(coordinates, torch.randn(len(coordinates), channels))
    found = submanifold_map(coordinates, KERNEL)
    pairs = [tuple(torch.from_numpy(rows).long() for rows in found.pairs(o)) for o in range(27)]
    return Case(x, module, found, pairs)  # type: ignore[arg-type]


def street(voxels: int, seed: int) -> np.ndarray:
    """Coordinates (batch, x, y, z) of a scene: uneven ground, walls at any angle, poles."""
    random = np.random.default_rng(seed)
    half = 0.54 * voxels**0.5
    ground = np.c_[random.uniform(-half, half, (voxels, 2)), random.normal(0, 0.6, voxels)]
    parts = [ground]
    for _ in range(12):
        middle, angle = random.uniform(-half, half, 2), random.uniform(0, np.pi)
        along = random.uniform(-0.2, 0.2, voxels // 8) * half
        walls = middle + np.outer(along, [np.cos(angle), np.sin(angle)])
        height = random.uniform(0, 20, len(along))
        parts.append(np.c_[walls + random.normal(0, 0.3, walls.shape), height])
    for _ in range(40):
        height = random.uniform(0, 10, voxels // 400)
        pole = random.uniform(-half, half, 2) + random.normal(0, 0.3, (len(height), 2))
        parts.append(np.c_[pole, height])
    found = np.unique(np.floor(np.concatenate(parts)).astype(np.int32), axis=0)
    if len(found) < voxels:
        raise SystemExit(f"the scene has {len(found)} voxels, fewer than {voxels}")
    # Whole columns from one side on, so that neighbours stay neighbours.
    found = found[:voxels]
    return np.c_[np.zeros(len(found), np.int32), found]


def baseline(case: Case) -> Tensor:
    """Gather, mm, index_add."""
    x, weight = case.x.features, case.layer.weight
    matrices = weight.reshape(*weight.shape[:2], -1).permute(2, 1, 0).contiguous()
    middle = len(matrices) // 2
    y = x @ matrices[middle]
    for offset, (source, target) in enumerate(case.pairs):
        if offset != middle:
            y.index_add_(0, target, x.index_select(0, source) @ matrices[offset])
    return y


def check(case: Case) -> None:
    """Compares both with float64."""
    exact = multiply(case.x.features.double(), case.found, case.layer.weight.double(), None)
    for y in (baseline(case), case.layer(case.x).features):
        if not float((y - exact).abs().max() / exact.abs().max()) < 1e-5:
            raise SystemExit("an output is wrong")


def interleaved(
    calls: Mapping[str, Callable[[], object]], seconds: float, least: int = 11
) -> dict[str, list[float]]:
    """Seconds of each call, in rounds that run each once; two rounds to warm up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while len(times[next(iter(calls))]) < least + 2 or time.perf_counter() < end:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: own[2:] for name, own in times.items()}


def speedup(base: Iterable[float], own: Iterable[float]) -> float:
    """Median over rounds."""
    return statistics.median(b / o for b, o in zip(base, own, strict=True))


def show(times: Mapping[str, list[float]], macs: int, products: Iterable[str]) -> None:
    """One row per call."""
    base = next(iter(times.values()))
    print("| | median ms | IQR | best | speed-up | GMAC/s |\n|---|---|---|---|---|---|")
    for name, own in times.items():
        middle = statistics.median(own)
        spread = float(np.subtract(*np.percentile(own, [75, 25])))
        multiplies = own is base or name in products
        ratio, rate = f"{speedup(base, own):.2f}", f"{macs / middle / 1e9:.1f}"
        last = f"{ratio} | {rate}" if multiplies else "- | -"
        numbers = f"{1e3 * middle:.1f} | {1e3 * spread:.1f} | {1e3 * min(own):.1f}"
        print(f"| {name} | {numbers} | {last} |")


if __name__ == "__main__":
    main()
