"""Which networks the tracer understands: prunes each at random and checks what comes out.

    python scripts/model_coverage.py                        # the whole list, some minutes
    python scripts/model_coverage.py resnet18 timm:levit_128s

Every network gets random weights in float64. It is traced, its plan goes through JSON, 30 to 90 %
of the units of every group are kept at random, and the slim network is compared with the dense one
in which all that writes a removed unit is zero (layer norms and other statistics over channels
are taken by hand over the channels that are left; ``tests/oracle.py``). MACs and parameters are
compared with PyTorch's own counter on the slim network. The last column is what Torch-Pruning makes
of the same network: prune half of every group, then run it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from vision import make_torchvision_importable

from automl.graph.trace import trace
from automl.plan import IndexPlan

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
from oracle import compare, counted_macs, random_units, randomise

#: NAME or timm:NAME, with @SIZE where less than the usual image is enough.
NETWORKS = """
resnet18@96 resnet50@96 resnext50_32x4d@96 wide_resnet50_2@96 vgg11_bn mobilenet_v2@96
mobilenet_v3_small@96 mobilenet_v3_large@96 efficientnet_b0@96 efficientnet_v2_s@96 densenet121@96
squeezenet1_0@96 googlenet@96 shufflenet_v2_x1_0 mnasnet1_0@96 regnet_y_400mf@96 convnext_tiny@96
vit_b_16 swin_t swin_v2_t@256 maxvit_t
timm:deit_tiny_patch16_224 timm:mixer_s16_224 timm:mobilevit_s
timm:res2net50_26w_4s@96 timm:resnetv2_50@96 timm:resnetv2_50x1_bit@96 timm:convnextv2_atto@96
timm:levit_128s timm:ghostnet_100@96 timm:pit_ti_224 timm:xcit_nano_12_p16_224
timm:edgenext_xx_small
timm:efficientformer_l1 timm:nfnet_f0@96 timm:gmlp_ti16_224 timm:hrnet_w18_small@128
timm:skresnet18@96 timm:resnest14d@96 timm:crossvit_tiny_240 timm:twins_svt_small timm:pvt_v2_b0
timm:davit_tiny timm:mobilenetv4_conv_small@96 timm:eva02_tiny_patch14_336 timm:hiera_tiny_224
timm:mambaout_femto
""".split()


#: What Torch-Pruning may take for one network.
SECONDS, MEMORY = 60, 12 * 2**30
COLUMNS = (
    "network", "groups", "kinds", "frozen", "form", "MMACs", "counts exact", "error", "s",
    "Torch-Pruning",
)  # fmt: skip


def load(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A network with random weights, and one example."""
    name, _, size = name.partition("@")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name.startswith("timm:"):
            import timm

            model = timm.create_model(name.removeprefix("timm:"))
            side = model.default_cfg["input_size"][-1]
        else:
            from torchvision import models

            plain = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
            model, side = getattr(models, name)(weights=None, **plain), 224
    side = int(size or side)
    return model.eval(), torch.randn(1, 3, side, side)


def row(name: str, second_opinion: bool) -> str:
    """One line of the table."""
    model, image = load(name)
    other = second(name) if second_opinion else "-"
    model, image = randomise(model), image.double().expand(2, -1, -1, -1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = trace(model, image)
    plan = IndexPlan.from_json(traced.plan.to_json())
    units = random_units(plan, seed=0)
    kept = np.array([len(u) for u in units])
    slim = traced.materialise(units)
    found = compare(slim, model, plan, units, (image,))
    exact = counted_macs(slim, (image[:1],)) == int(plan.macs(kept))
    exact &= sum(p.numel() for p in slim.parameters()) == int(plan.params(kept))
    kinds = ", ".join(sorted({target.kind for target in plan.targets})) or "-"
    form = "graph" if plan.needs_graph_form(kept) else "own classes"
    cells = (
        name,
        len(plan.targets),
        kinds,
        len(plan.frozen),
        form,
        f"{traced.macs / 1e6:,.0f} -> {int(plan.macs(kept)) / 1e6:,.0f}",
        "yes" if exact else "NO",
        f"{found.error:.0e}" + (" (by hand)" if found.by_hand else ""),
        f"{traced.seconds:.1f}",
        other,
    )
    return f"| {' | '.join(map(str, cells))} |"


def second(name: str) -> str:
    """Torch-Pruning's outcome, from a process of its own: on some networks it does not end."""
    command = [sys.executable, __file__, "--second", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return f"not done in {SECONDS} s"
    return done.stdout.strip() or f"exits with {done.returncode}"


def torch_pruning(model: nn.Module, image: torch.Tensor) -> str:
    """What Torch-Pruning's dependency graph makes of the network."""
    import copy
    import resource

    import torch_pruning as tp

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    network = copy.deepcopy(model)
    heads = [m for m in network.modules() if isinstance(m, nn.Linear)][-1:]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pruner = tp.pruner.MagnitudePruner(
                network, image, tp.importance.RandomImportance(), pruning_ratio=0.5,
                ignored_layers=heads,
            )  # fmt: skip
            pruner.step()
            network(image)
    except Exception as error:
        return f"fails: {type(error).__name__}"
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, network))
    return f"{after / before:.2f} of parameters" if after < before else "prunes nothing"


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; exit code 1 if a network failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--no-second-opinion", action="store_true", help="without Torch-Pruning")
    parser.add_argument("--second", metavar="NETWORK", help="Torch-Pruning's outcome alone")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    make_torchvision_importable()
    if options.second:
        print(torch_pruning(*load(options.second)))
        return 0
    print(f"| {' | '.join(COLUMNS)} |")
    print("|---" * len(COLUMNS) + "|")
    failed, started = 0, time.perf_counter()
    for name in options.networks:
        try:
            print(row(name, not options.no_second_opinion), flush=True)
        except Exception as error:
            failed += 1
            print(f"| {name} | FAILED: {type(error).__name__}: {str(error)[:100]} |", flush=True)
    total = len(options.networks)
    print(f"\n{total - failed} of {total} in {time.perf_counter() - started:.0f} s")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
