"""Whole pruned networks against the best dense one; ``python scripts/bench_executors.py network``.

MobileNetV1 at 224 with 90 % of its pointwise convolutions zero, and ResNet-50 at 224 with 90 % of
all convolutions but the first and of the fully connected layer, one image. Weights are random and
the smallest are zeroed, layer by layer: places of zeros are those of magnitude pruning, values do
not matter. ``automl.compile`` chooses; then dense (each way that there is) and sparse take turns,
timed by the thread's own processor time unless told otherwise.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import automl
from automl.environment import cpu_name
from automl.executors import baselines
from automl.executors.latency import measure_latency

#: Least speed-up over the best dense network.
REACH = 2.5


def mobilenet_v1() -> nn.Module:
    """MobileNetV1; pointwise convolutions will be pruned."""
    from automl.models.mobilenet import mobilenet_v1 as build

    return build()


def resnet50() -> nn.Module:
    """Torchvision's ResNet-50."""
    from vision import make_torchvision_importable

    make_torchvision_importable()
    from torchvision.models import resnet50 as build

    network: nn.Module = build()
    return network


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "MobileNetV1": mobilenet_v1,
    "ResNet-50": resnet50,
}


def is_pruned(name: str, layer: nn.Module) -> bool:
    """Whether a layer of a network is."""
    if isinstance(layer, nn.Conv2d):
        pointwise = layer.kernel_size == (1, 1) and layer.groups == 1
        return pointwise if name == "MobileNetV1" else layer.in_channels > 3
    return isinstance(layer, nn.Linear) and name == "ResNet-50"


@torch.no_grad()
def prune(name: str, network: nn.Module, sparsity: float) -> nn.Module:
    """Zeroes the smallest weights of every layer that is pruned, in place."""
    for layer in network.modules():
        if is_pruned(name, layer):
            weight = layer.weight
            least = weight.abs().flatten().kthvalue(round(sparsity * weight.numel())).values
            weight.mul_(weight.abs() > least)
    return network.eval()


def networks(
    sparsity: float, seconds: float, seed: int, clock: Callable[[], float] = time.thread_time
) -> list[dict[str, object]]:
    """Measures and prints the table.

    Returns:
        A row per network and form.
    """
    print(f"{cpu_name()}, torch {torch.__version__}, one thread; {time.strftime('%Y-%m-%d')}")
    print(f"{100 * sparsity:g} % zeros, one image of 224 x 224\n")
    print("| network | form | median ms | IQR | undisturbed | times as fast as the best dense |")
    print("|---|---|---|---|---|---|")
    rows: list[dict[str, object]] = []
    for name, build in NETWORKS.items():
        torch.manual_seed(seed)
        network, x = prune(name, build(), sparsity), torch.randn(1, 3, 224, 224)
        run = automl.compile(network, x, remember=False)
        forms = baselines.dense_forms(baselines.fold(network, (x,)), (x,))
        best = run.verdict.dense
        # The best dense one first: ratios refer to it.
        timed = {best: forms.pop(best), **forms}
        if run.sparse is not None:
            timed["sparse"] = run.sparse
        for form, found in measure_latency(timed, x, budget_s=seconds, clock=clock).items():
            print(
                f"| {name} | {form} | {found.median_ms:.1f} | {found.iqr_ms:.1f} "
                f"| {found.undisturbed_ms:.1f} | {1 / found.ratio:.2f} |",
                flush=True,
            )
            rows.append(
                {"network": name, "form": form, "ms": found.median_ms, "ratio": found.ratio}
            )
        sparse = sum(choice.is_sparse for choice in run.tried)
        print(f"{name}: {sparse} of {len(run.tried)} layers sparse; {run.verdict.reason}; "
              f"reach {REACH}", flush=True)  # fmt: skip
    return rows


def main() -> None:
    """Measures, and writes the rows if asked."""
    import json

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--seconds", type=float, default=20.0, help="per network (default 20)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = networks(options.sparsity, options.seconds, options.seed)
    if options.json:
        options.json.write_text(json.dumps({"cpu": cpu_name(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
