"""2:4 products on an NVIDIA GPU against dense cuBLAS.

    python scripts/bench_nm24_cuda.py --json nm24_cuda.json

Square bfloat16 products of 4096, 8192 and 16384, the two layers of ViT-B's MLP for 64 images, and a
fully connected layer for few examples, where compression rarely pays. Each takes turns with dense;
CUDA events around several calls; medians over rounds. Every result is compared with dense first.
Needs compute capability 8.0; about a minute.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from automl.executors import nm24_cuda

#: Name -> (examples, inputs, outputs).
PRODUCTS = {
    "4096": (4096, 4096, 4096),
    "8192": (8192, 8192, 8192),
    "16384": (16384, 16384, 16384),
    "ViT-B MLP up, 64 images": (64 * 197, 768, 3072),
    "ViT-B MLP down, 64 images": (64 * 197, 3072, 768),
    "4096 x 4096, 1 example": (1, 4096, 4096),
    "4096 x 4096, 64 examples": (64, 4096, 4096),
}
_CALLS, _WARM_UP = 10, 5


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    reason = nm24_cuda.unsupported()
    if reason:
        raise SystemExit(f"2:4 does not run here: {reason}")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bfloat16\n")
    print("| product | dense us | 2:4 us | speed-up |\n|---|---|---|---|")
    rows = []
    for name, (examples, inputs, outputs) in PRODUCTS.items():
        dense, sparse = measure(examples, inputs, outputs, options.rounds)
        rows.append({"product": name, "dense_us": dense, "sparse_us": sparse})
        note = "" if dense > sparse else " (loses)"
        print(f"| {name} | {dense:.0f} | {sparse:.0f} | {dense / sparse:.2f}{note} |", flush=True)
    if options.json:
        content = {"device": torch.cuda.get_device_name(), "rows": rows}
        options.json.write_text(json.dumps(content, indent=2) + "\n")


@torch.inference_mode()
def measure(examples: int, inputs: int, outputs: int, rounds: int) -> tuple[float, float]:
    """Median microseconds of dense and of 2:4."""
    torch.manual_seed(0)
    layer = nn.Linear(inputs, outputs, bias=False, device="cuda", dtype=torch.bfloat16)
    layer.weight.view(-1, 4)[:, :2] = 0
    x = torch.randn(examples, inputs, device="cuda", dtype=torch.bfloat16)
    sparse = nm24_cuda.SemiStructuredLinear(layer)
    expected = F.linear(x, layer.weight)
    error = (sparse(x) - expected).abs().max() / expected.abs().max()
    if not float(error) < 2e-2:
        raise SystemExit(f"2:4 is wrong: error {float(error):.1e}")
    calls: list[Callable[[], object]] = [lambda: F.linear(x, layer.weight), lambda: sparse(x)]
    times: list[list[float]] = [[], []]
    for index in range(-_WARM_UP, rounds):
        for call, own in zip(calls, times, strict=True):
            taken = timed(call)
            if index >= 0:
                own.append(taken)
    return statistics.median(times[0]), statistics.median(times[1])


def timed(call: Callable[[], object]) -> float:
    """Microseconds of one of several calls in a row."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(_CALLS):
        call()
    end.record()
    end.synchronize()
    return 1e3 * start.elapsed_time(end) / _CALLS


if __name__ == "__main__":
    main()
