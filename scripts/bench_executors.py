"""Fully connected layers in sparse formats against ``torch.nn.functional.linear``, batch 1.

    python scripts/bench_executors.py --seconds 3
    python scripts/bench_executors.py --layers Alex-7 NT-We --formats pell csc --json table.json

The nine layers are those of the EIE paper (arXiv 1602.01528, table III) with random weights of the
paper's densities, shared among 15 values so that a codebook is exact, and random activations of
its densities. One thread. Weights are cold: in every round the dense layer and all formats run
once, and each has as many copies of its weights as it takes for three times the last-level cache
to be read before one is used again. A speed-up is the median over rounds of the dense layer's time
to the format's in the same round; compilation and packing are not timed. Every output is compared
with a float64 product first.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from automl.environment import cpu_name
from automl.executors import formats
from automl.executors.kernels.bandwidth import read
from automl.executors.packed import PackedLinear

#: Largest error of an output to the largest output, by format: what its rounding explains.
TOLERANCE = {"pell_bf16": 1e-2, "pell_int8": 3e-2, "nm24_bf16": 1e-2}
EXACT, CODEBOOK, INT8 = ("pell", "csc", "bitmap"), ("pell_codebook", "eie"), ("pell_int8",)

#: What the geometric means over the nine layers should reach: (formats to choose from, least).
REACH = {"best exact fp32": (EXACT, 9.0), "4-bit codebook": (CODEBOOK, 18.0), "int8": (INT8, 20.0)}


@dataclass(frozen=True)
class Layer:
    """A fully connected layer of the paper."""

    inputs: int
    outputs: int
    weights: float
    activations: float


LAYERS = {
    "Alex-6": Layer(9216, 4096, 0.09, 0.351),
    "Alex-7": Layer(4096, 4096, 0.09, 0.353),
    "Alex-8": Layer(4096, 1000, 0.25, 0.375),
    "VGG-6": Layer(25088, 4096, 0.04, 0.183),
    "VGG-7": Layer(4096, 4096, 0.04, 0.375),
    "VGG-8": Layer(4096, 1000, 0.23, 0.411),
    "NT-We": Layer(4096, 600, 0.10, 1.0),
    "NT-Wd": Layer(600, 8791, 0.11, 1.0),
    "NT-LSTM": Layer(1201, 2400, 0.10, 1.0),
}


@dataclass(frozen=True)
class Row:
    """What was measured of one format on one layer."""

    layer: str
    format: str
    median_us: float
    iqr_us: float
    speedup: float
    megabytes: float
    gigabytes_per_s: float
    error: float


def main() -> None:
    """Measures, prints the table and the geometric means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", nargs="*", choices=LAYERS, default=list(LAYERS))
    known = [name for name in formats.names() if name not in ("dense", "nm24", "nm24_bf16")]
    parser.add_argument("--formats", nargs="*", choices=known, default=known)
    parser.add_argument("--seconds", type=float, default=3.0, help="per layer (default 3)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    bandwidth = memory_bandwidth()
    print(f"{cpu_name()}, torch {torch.__version__}, one thread; {time.strftime('%Y-%m-%d')}")
    print(f"memory is read at {bandwidth:.1f} GB/s\n")
    print("| layer | format | median us | IQR | speed-up | MB | GB/s | error |")
    print("|---|---|---|---|---|---|---|---|")
    rows: list[Row] = []
    for name in options.layers:
        for row in measure(name, options.formats, options.seconds, options.seed):
            rows.append(row)
            print(
                f"| {row.layer} | {row.format} | {row.median_us:.0f} | {row.iqr_us:.0f} "
                f"| {row.speedup:.2f} | {row.megabytes:.2f} | {row.gigabytes_per_s:.1f} "
                f"| {row.error:.0e} |",
                flush=True,
            )
    summary(rows)
    if options.json:
        content = {"cpu": cpu_name(), "bandwidth": bandwidth, "rows": [asdict(r) for r in rows]}
        options.json.write_text(json.dumps(content, indent=2) + "\n")


def measure(name: str, chosen: Sequence[str], seconds: float, seed: int) -> list[Row]:
    """Rows of one layer, the dense one first."""
    weight, x = random_layer(LAYERS[name], seed)
    # In float64, row by row: the largest matrix would take a gigabyte more.
    exact = np.array([row.astype(np.float64) @ x for row in weight])
    packed = {form: formats.load(form).pack(weight) for form in chosen}
    errors = {form: error(layer(x), exact) for form, layer in packed.items()}
    for form, value in errors.items():
        if not value < TOLERANCE.get(form, 1e-5):
            raise SystemExit(f"{form} on {name} is wrong: error {value:.1e}")
    sizes = {"F.linear": weight.nbytes} | {form: p.nbytes for form, p in packed.items()}
    copies = math.ceil(3 * last_level_cache() / sum(sizes.values())) + 1
    calls = {"F.linear": dense_calls(weight, x, copies)}
    calls |= {form: packed_calls(layer, x, copies) for form, layer in packed.items()}
    times = interleaved(calls, seconds)
    base = times["F.linear"]
    return [
        Row(
            name,
            form,
            statistics.median(own) * 1e6,
            float(np.subtract(*np.percentile(own, [75, 25]))) * 1e6,
            statistics.median(t / s for t, s in zip(base, own, strict=True)),
            sizes[form] / 1e6,
            sizes[form] / statistics.median(own) / 1e9,
            errors.get(form, 0.0),
        )
        for form, own in times.items()
    ]


def random_layer(layer: Layer, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights shared among 15 values, and activations as after a ReLU."""
    rng = np.random.default_rng(seed)
    shared = np.concatenate([[0], 0.05 * rng.standard_normal(15)]).astype(np.float32)
    shape = (layer.outputs, layer.inputs)
    codes = rng.integers(1, 16, shape, dtype=np.uint8)
    codes *= rng.random(shape, dtype=np.float32) < layer.weights
    x = np.abs(rng.standard_normal(layer.inputs)) * (rng.random(layer.inputs) < layer.activations)
    return shared[codes], x.astype(np.float32)


def error(y: NDArray[np.float32], exact: NDArray[np.float64]) -> float:
    """Largest error to the largest output."""
    return float(np.abs(y - exact).max() / np.abs(exact).max())


def dense_calls(
    weight: NDArray[np.float32], x: NDArray[np.float32], copies: int
) -> list[Callable[[], object]]:
    """What is compared with: a function per copy of the weights."""
    example = torch.from_numpy(x)[None]
    weights = [torch.from_numpy(weight).clone() for _ in range(copies)]
    return [lambda w=w: torch.nn.functional.linear(example, w) for w in weights]  # type: ignore[misc]


def packed_calls(
    layer: PackedLinear, x: NDArray[np.float32], copies: int
) -> list[Callable[[], object]]:
    """A function per copy of a packed layer."""
    layers = [
        replace(layer, **{name: aligned_copy(array) for name, array in layer.arrays.items()})
        for _ in range(copies)
    ]
    return [lambda p=p: p(x) for p in layers]  # type: ignore[misc]


def aligned_copy(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """A copy that starts at a cache line, as a packed layer's own arrays do."""
    from automl.executors.packed import aligned_zeros

    copy = aligned_zeros(array.size, array.dtype.type)
    copy[:] = array.ravel()
    return copy.reshape(array.shape)


def interleaved(
    calls: Mapping[str, Sequence[Callable[[], object]]], seconds: float, least: int = 15
) -> dict[str, list[float]]:
    """Seconds of each call, in rounds that run each once."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        end, index = 0.0, -2
        while index < least or time.perf_counter() < end:
            if index == 0:
                end = time.perf_counter() + seconds
                times = {name: [] for name in calls}
            for name, copies in calls.items():
                call = copies[index % len(copies)]
                start = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - start)
            index += 1
    return times


def memory_bandwidth() -> float:
    """GB/s at which one thread reads a buffer five times the last-level cache; best of 7."""
    buffer = np.ones(5 * last_level_cache() // 4096 * 1024, np.float32)
    seconds = []
    for _ in range(8):
        start = time.perf_counter()
        read(buffer)
        seconds.append(time.perf_counter() - start)
    return buffer.nbytes / min(seconds[1:]) / 1e9


def last_level_cache() -> int:
    """Bytes of the last-level cache; 32 MiB where the system does not tell."""
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text()
        return int(text.strip().removesuffix("K")) * 1024
    except (OSError, ValueError):
        return 32 * 2**20


def summary(rows: Sequence[Row]) -> None:
    """Prints the geometric means over layers of the best format of each kind."""
    layers = list(dict.fromkeys(row.layer for row in rows))
    print()
    by_format = {form: [r.speedup for r in rows if r.format == form] for form in
                 dict.fromkeys(r.format for r in rows)}  # fmt: skip
    for form, speedups in by_format.items():
        print(f"{form:18s} geometric mean {statistics.geometric_mean(speedups):6.2f}")
    for kind, (choices, least) in REACH.items():
        best = [
            max((r.speedup for r in rows if r.layer == name and r.format in choices), default=0)
            for name in layers
        ]
        if all(best):
            mean = statistics.geometric_mean(best)
            print(f"{kind:18s} geometric mean {mean:6.2f} over {len(best)} layers (reach {least})")


if __name__ == "__main__":
    main()
