"""How long it takes to make a slim network: from a plan, and by Torch-Pruning.

    python scripts/bench_materialise.py --repeats 30

For each network both tools remove the same share of every group, on one thread, taking turns, so
that what else the machine does falls on both alike. Ours is one call of
``Trace.materialise(kept)``; Torch-Pruning's is what it takes to get a slim network from a dense
one that must stay as it is: ``copy.deepcopy``, ``DependencyGraph.build_dependency`` and pruning
every group. The table has medians and, in brackets, the best of all repeats.
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from vision import make_torchvision_importable

from automl.graph.trace import trace
from automl.models.cifar import resnet20
from automl.models.factory import build

#: Network -> (factory, example input's shape, goal in ms on a quiet machine).
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], float]] = {
    "ResNet-20": (resnet20, (1, 3, 32, 32), 1.0),
    "MobileNetV2": (lambda: build("torchvision:mobilenet_v2", {}).model, (1, 3, 224, 224), 4.0),
    "ResNet-50": (lambda: build("torchvision:resnet50", {}).model, (1, 3, 224, 224), 10.0),
}


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=30, help="turns per network (default 30)")
    parser.add_argument("--ratio", type=float, default=0.5, help="share removed (default 0.5)")
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, default=list(NETWORKS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    make_torchvision_importable()
    head = f"{'network':12s} {'params':>16s} {'ours ms':>15s} {'torch-pruning ms':>18s}"
    print(f"{head} {'ratio':>7s} {'goal ms':>8s}")
    for name in options.networks:
        print(_row(name, options.ratio, options.repeats), flush=True)


def _row(name: str, ratio: float, repeats: int) -> str:
    make, shape, goal = NETWORKS[name]
    model, inputs = make().eval(), torch.randn(shape)
    ours, params = _ours(model, inputs, ratio)
    theirs = _torch_pruning(model, inputs, ratio)
    times = _interleaved([ours] if theirs is None else [ours, theirs], repeats)
    size = f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} -> {params / 1e6:.2f} M"
    row = f"{name:12s} {size:>16s} {_median_and_best(times[0]):>15s}"
    if theirs is None:
        return f"{row} {'not installed':>18s} {'':>7s} {goal:8.1f}"
    factor = statistics.median(times[1]) / statistics.median(times[0])
    return f"{row} {_median_and_best(times[1]):>18s} {factor:6.1f}x {goal:8.1f}"


def _ours(model: nn.Module, inputs: torch.Tensor, ratio: float) -> tuple[Callable[[], Any], int]:
    traced = trace(model, inputs)
    generator = torch.Generator().manual_seed(0)
    kept = []
    for target in traced.groups:
        count = max(1, round(target.units * (1 - ratio)))
        # Scattered, as importance leaves them; runs of neighbours would be easier.
        kept.append(torch.randperm(target.units, generator=generator)[:count].sort()[0].tolist())
    slim = traced.materialise(kept)
    params = sum(p.numel() for p in slim.parameters())
    return lambda: traced.materialise(kept), params


def _torch_pruning(
    model: nn.Module, inputs: torch.Tensor, ratio: float
) -> Callable[[], Any] | None:
    try:
        import torch_pruning as tp
    except ImportError:
        return None
    head = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    ignored = [name for name, module in model.named_modules() if module is head]

    def prune() -> nn.Module:
        slim = copy.deepcopy(model)
        graph = tp.DependencyGraph().build_dependency(slim, example_inputs=inputs)
        layers = [slim.get_submodule(name) for name in ignored]
        for group in graph.get_all_groups(
            ignored_layers=layers, root_module_types=[nn.Conv2d, nn.Linear]
        ):
            dependency, indices = group[0]
            graph.get_pruning_group(
                dependency.target.module,
                dependency.handler,
                list(range(round(len(indices) * ratio))),
            ).prune()
        return slim

    prune()
    return prune


def _interleaved(functions: list[Callable[[], Any]], repeats: int) -> list[list[float]]:
    """Milliseconds of each call, the functions taking turns."""
    for function in functions:
        function()
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats):
        for function, record in zip(functions, times, strict=True):
            gc.collect()
            gc.disable()  # as timeit does: whose garbage is collected when is chance
            started = time.perf_counter()
            function()
            record.append(1e3 * (time.perf_counter() - started))
            gc.enable()
    return times


def _median_and_best(times: list[float]) -> str:
    return f"{statistics.median(times):.2f} ({min(times):.2f})"


if __name__ == "__main__":
    main()
