"""Layers in sparse formats against torch.

    python scripts/bench_executors.py fc --seconds 3
    python scripts/bench_executors.py fc --layers Alex-7 NT-We --formats pell csc --json table.json
    python scripts/bench_executors.py batch
    python scripts/bench_executors.py nm24
    python scripts/bench_executors.py conv
    python scripts/bench_executors.py network --seconds 20
    python scripts/bench_executors.py eie

``fc`` and ``batch`` have the nine layers of the EIE paper (arXiv 1602.01528, table III) with random
weights of the paper's densities, shared among 15 values so that a codebook is exact, and random
activations of its densities: one example against ``torch.nn.functional.linear``, and 64 against
oneDNN with weights packed beforehand. ``nm24`` has 2:4 weights and one example. ``conv`` has
convolutions of MobileNetV1 and ResNet-50 for one image with 80, 90 and 95 % of the weights zero,
against the fastest of torch's: channels first, channels last, and oneDNN with packed weights.
``network`` has whole networks (``bench_networks.py``). ``eie`` counts what EIE would do with the
layers of ``fc`` (``bench_eie.py``).

One thread, timed by its own processor time: other work that takes turns on the core does not count
(``--clock wall``: it does). Weights are cold: in every round the baseline and all formats run once,
and each has as many copies of its weights as it takes for three times the last-level cache to be
read before one is used again. A speed-up is the median over rounds of the baseline's time to the
format's in the same round; compilation and packing are not timed. Every output is compared with a
float64 product first. ``read`` takes turns with them too: a loop that does nothing but read as many
bytes as the first format has, as cold; shares of the bandwidth refer to it.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_timing import CLOCKS, Array, Calls, Clock, about, error, interleaved
from numpy.typing import NDArray

from automl.environment import cpu_name
from automl.executors import formats
from automl.executors.cache import last_level_cache
from automl.executors.kernels import cpu
from automl.executors.packed import PackedLinear, aligned_zeros

#: Largest error of an output to the largest output, by format: what its rounding explains.
TOLERANCE = dict.fromkeys(["pell_bf16", "nm24_bf16"], 1e-2)
TOLERANCE |= dict.fromkeys(["pell_int8", "pell_codebook_int8", "nm24_int8"], 3e-2)


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

#: Dense matrices whose rows then keep two of every four: (inputs, outputs).
TWO_OF_FOUR = {"2:4 4096 x 4096": (4096, 4096), "2:4 11008 x 4096": (11008, 4096)}


#: A format, the layers on which it is to use the memory's bandwidth, and the least share.
BANDWIDTH_REACH = ("pell", ("Alex-7", "VGG-7"), 0.85)

READ = "read"


@dataclass(frozen=True)
class Suite:
    """A table.

    Attributes:
        formats: What is measured unless told otherwise.
        baseline: What comes first, and speed-ups refer to.
        reach: Name -> formats of which the best counts on each layer, and the least geometric
            mean over all layers.
    """

    formats: tuple[str, ...]
    baseline: str
    reach: Mapping[str, tuple[tuple[str, ...], float]]


SUITES = {
    "fc": Suite(
        (
            "pell",
            "csc",
            "bitmap",
            "pell_codebook",
            "eie",
            "pell_codebook_int8",
            "pell_bf16",
            "pell_int8",
        ),
        "F.linear",
        {
            "best exact fp32": (("pell", "csc", "bitmap"), 9.0),
            "4-bit codebook": (("pell_codebook", "eie", "pell_codebook_int8"), 18.0),
            "4-bit codebook, float32 activations": (("pell_codebook", "eie"), 18.0),
            "int8": (("pell_int8",), 20.0),
        },
    ),
    "batch": Suite(("spmm",), "oneDNN, prepacked", {"batch 64": (("spmm",), 5.0)}),
    "nm24": Suite(
        ("nm24", "nm24_bf16", "nm24_int8"),
        "F.linear",
        {"2:4 fp32": (("nm24",), 1.6), "2:4 bf16 (of bf16: half)": (("nm24_bf16",), 3.2)},
    ),
}


@dataclass(frozen=True)
class Row:
    """What was measured of one format on one layer; times in microseconds."""

    layer: str
    format: str
    median_us: float
    iqr_us: float
    best_us: float
    speedup: float
    megabytes: float
    bandwidth_share: float
    error: float


def main() -> None:
    """Measures, prints the table and the geometric means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suite", choices=[*SUITES, "conv", "network", "eie"])
    parser.add_argument("--layers", nargs="*", help="only these")
    parser.add_argument("--formats", nargs="*", choices=formats.names(), help="only these")
    parser.add_argument("--seconds", type=float, default=3.0, help="per layer (default 3)")
    parser.add_argument("--clock", choices=CLOCKS, default="processor", help="(default processor)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.suite == "network":
        from bench_networks import networks

        networks(0.9, options.seconds, options.seed, CLOCKS[options.clock])
        return
    if options.suite == "conv":
        from bench_convolutions import convolutions

        convolutions(options.layers, options.seconds, options.seed, CLOCKS[options.clock])
        return
    if options.suite == "eie":
        from bench_eie import eie

        for line in eie((n, *inputs("fc", n, options.seed)) for n in options.layers or LAYERS):
            print(line, flush=True)
        return
    suite = SUITES[options.suite]
    chosen = options.formats or suite.formats
    print(about())
    print(f"{options.clock} time; memory is read at {memory_bandwidth():.1f} GB/s\n")
    print("| layer | format | median us | IQR | best | speed-up | MB | of bandwidth | error |")
    print("|---|---|---|---|---|---|---|---|---|")
    rows: list[Row] = []
    for name in options.layers or names(options.suite):
        weight, x = inputs(options.suite, name, options.seed)
        for row in measure(name, suite, chosen, weight, x, options.seconds, CLOCKS[options.clock]):
            rows.append(row)
            print(_line(row), flush=True)
    for line in summary(rows, suite):
        print(line)
    if options.json:
        content = {"cpu": cpu_name(), "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(content, indent=2) + "\n")


def _line(row: Row) -> str:
    return (
        f"| {row.layer} | {row.format} | {row.median_us:.0f} | {row.iqr_us:.0f} "
        f"| {row.best_us:.0f} | {row.speedup:.2f} | {row.megabytes:.2f} "
        f"| {row.bandwidth_share:.0%} | {row.error:.0e} |"
    )


def names(suite: str) -> list[str]:
    """The layers of a suite."""
    return list(TWO_OF_FOUR if suite == "nm24" else LAYERS)


def inputs(suite: str, name: str, seed: int) -> tuple[Array, Array]:
    """Weight and activations of a layer."""
    rng = np.random.default_rng(seed)
    if suite == "nm24":
        columns, rows = TWO_OF_FOUR[name]
        fours = rng.standard_normal((rows, columns // 4, 4), dtype=np.float32)
        least = np.argsort(np.abs(fours), -1)[..., :2]
        np.put_along_axis(fours, least, 0, -1)
        return fours.reshape(rows, columns), rng.standard_normal(columns, dtype=np.float32)
    layer = LAYERS[name]
    shared = np.concatenate([[0], 0.05 * rng.standard_normal(15)]).astype(np.float32)
    shape = (layer.outputs, layer.inputs)
    codes = rng.integers(1, 16, shape, dtype=np.uint8)
    codes *= rng.random(shape, dtype=np.float32) < layer.weights
    batch = (64, layer.inputs) if suite == "batch" else (layer.inputs,)
    x = np.abs(rng.standard_normal(batch)) * (rng.random(batch) < layer.activations)
    return shared[codes], x.astype(np.float32)


def measure(
    name: str,
    suite: Suite,
    chosen: Iterable[str],
    weight: Array,
    x: Array,
    seconds: float,
    clock: Clock,
) -> list[Row]:
    """Rows of one layer, the baseline first."""
    # In float64, row by row: the largest matrix would take a gigabyte more.
    exact = np.stack([x @ row.astype(np.float64) for row in weight], axis=-1)
    packed = {form: formats.load(form).pack(weight) for form in chosen}
    errors = {form: error(layer(x), exact) for form, layer in packed.items()}
    for form, value in errors.items():
        if not value < TOLERANCE.get(form, 1e-5):
            raise SystemExit(f"{form} on {name} is wrong: error {value:.1e}")
    sizes = {suite.baseline: weight.nbytes} | {form: p.nbytes for form, p in packed.items()}
    sizes[READ] = next(iter(packed.values())).nbytes // _READ_AT_ONCE * _READ_AT_ONCE
    copies = math.ceil(3 * last_level_cache() / sum(sizes.values())) + 1
    calls: dict[str, Calls] = {suite.baseline: list(baseline(suite.baseline, weight, x, copies))}
    calls |= {form: packed_calls(layer, x, copies) for form, layer in packed.items()}
    calls[READ] = read_calls(sizes[READ], copies)
    times = interleaved(calls, seconds, clock)
    base, reading = times[suite.baseline], times[READ]
    return [
        Row(
            layer=name,
            format=form,
            median_us=statistics.median(own) * 1e6,
            iqr_us=float(np.subtract(*np.percentile(own, [75, 25]))) * 1e6,
            best_us=min(own) * 1e6,
            speedup=statistics.median(t / s for t, s in zip(base, own, strict=True)),
            megabytes=sizes[form] / 1e6,
            bandwidth_share=statistics.median(
                sizes[form] / sizes[READ] * r / s for r, s in zip(reading, own, strict=True)
            ),
            error=errors.get(form, 0.0),
        )
        for form, own in times.items()
    ]


def baseline(name: str, weight: Array, x: Array, copies: int) -> Iterator[Callable[[], object]]:
    """What is compared with: a function per copy of the weights."""
    example = torch.from_numpy(np.atleast_2d(x))
    for _ in range(copies):
        own = torch.from_numpy(weight).clone()
        if name == "F.linear":
            yield lambda w=own: torch.nn.functional.linear(example, w)  # type: ignore[misc]
        else:
            ready = torch.ops.mkldnn._reorder_linear_weight(own, len(example))
            yield lambda w=ready: torch.ops.mkldnn._linear_pointwise(  # type: ignore[misc]
                example, w, None, "none", [], ""
            )


def packed_calls(layer: PackedLinear, x: Array, copies: int) -> Calls:
    """A function per copy of a packed layer."""
    layers = [
        replace(layer, **{name: aligned_copy(array) for name, array in layer.arrays.items()})
        for _ in range(copies)
    ]
    return [lambda p=p: p(x) for p in layers]  # type: ignore[misc]


#: Bytes that ``read_all`` takes at once.
_READ_AT_ONCE = 256


def read_calls(size: int, copies: int) -> Calls:
    """A function per buffer of so many bytes, which reads it."""
    buffers = [torch.from_numpy(aligned_zeros(size // 4, np.float32)) for _ in range(copies)]
    for buffer in buffers:
        buffer.fill_(1)  # Fresh pages are one and the same page of zeros.
    return [lambda b=b: read_all(b) for b in buffers]  # type: ignore[misc]


def aligned_copy(array: NDArray[Any]) -> NDArray[Any]:
    """A copy that starts at a cache line, as a packed layer's own arrays do."""
    copy = aligned_zeros(array.size, array.dtype.type)
    copy[:] = array.ravel()
    return copy.reshape(array.shape)


def memory_bandwidth() -> float:
    """GB/s at which one thread reads a buffer five times the last-level cache; best of 7."""
    buffer = torch.ones(5 * last_level_cache() // 4096 * 1024)
    seconds = []
    for _ in range(8):
        start = time.perf_counter()
        read_all(buffer)
        seconds.append(time.perf_counter() - start)
    return buffer.nbytes / min(seconds[1:]) / 1e9


def read_all(words: torch.Tensor) -> object:
    """Reads a contiguous tensor of a multiple of 64 elements, as fast as can be."""
    if not cpu.supports(cpu.FLOATS):
        return words.sum()
    from automl.executors.kernels.bandwidth import read

    return read(words.numpy().reshape(-1))


def summary(rows: Sequence[Row], suite: Suite) -> Iterator[str]:
    """Geometric means over layers: of every format, and of the best of each kind."""
    layers = list(dict.fromkeys(row.layer for row in rows))
    speedups = {(row.format, row.layer): row.speedup for row in rows}
    yield ""
    for form in dict.fromkeys(row.format for row in rows if row.format != READ):
        mean = statistics.geometric_mean(speedups[form, layer] for layer in layers)
        yield f"{form:18s} geometric mean {mean:6.2f}"
    for kind, (choices, least) in suite.reach.items():
        measured = [form for form in choices if (form, layers[0]) in speedups]
        if measured:
            best = [max(speedups[form, layer] for form in measured) for layer in layers]
            mean = statistics.geometric_mean(best)
            yield f"{kind}: geometric mean {mean:.2f} over {len(best)} layers (reach {least})"
    form, wanted, least = BANDWIDTH_REACH
    for row in rows:
        if row.format == form and row.layer in wanted:
            share = f"{row.bandwidth_share:.0%} of the bandwidth"
            yield f"{form} on {row.layer}: {share} (reach {least:.0%})"


if __name__ == "__main__":
    main()
