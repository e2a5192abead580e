"""Networks small enough for whole matrices of settings, with data and a training loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from automl.graph.trace import Trace, trace
from automl.models.digits import digits_cnn
from automl.models.vit import vit_tiny
from automl.pruning import criteria, granularities
from automl.pruning.criteria import Context
from automl.pruning.grains import Grains
from automl.pruning.granularities import CHANNEL
from automl.pruning.masked_plan import MaskedPlan
from automl.pruning.masks import masks_of, protect
from automl.pruning.pruner import Pruner, policy_from_ratios
from automl.pruning.reconstruct import Reconstruction
from automl.pruning.sparse_pruner import SparsePruner, counts_from_ratios
from automl.training.finetune import finetune

#: Granularities of the matrix, with parameters that the small networks have room for.
GRAINS = ["channel", "channel+unstructured", *(
    {"block": "block:4x4"}.get(name, name) for name in granularities.names()
)]  # fmt: skip

VIT = {"image_size": 8, "patch_size": 4, "in_channels": 1, "dim": 16, "depth": 1, "num_heads": 2}


def cnn() -> nn.Module:
    return digits_cnn((8, 8), (1, 1))


def vit() -> nn.Module:
    return vit_tiny(**VIT, mlp_ratio=2.0)


NETWORKS: dict[str, Callable[[], nn.Module]] = {"cnn": cnn, "vit": vit}


def made(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return NETWORKS[name]()


def traced(name: str) -> Trace:
    return trace(made(name).eval(), torch.zeros(2, 1, 8, 8))


def data(examples: int = 32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(examples, 1, 8, 8, generator=generator)
    return images, torch.randint(10, (examples,), generator=generator)


@dataclass
class Training:
    """One step an epoch, with momentum; remembers what it was asked for."""

    name: str
    calls: list[tuple[int, bool]] = field(default_factory=list)
    seen: list[Tensor] = field(default_factory=list)

    def __call__(self, network, epochs, last, after_step) -> None:
        self.calls.append((epochs, last))
        images, labels = data()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
        protect(optimizer, network)
        network.train()
        for step in range(epochs):
            optimizer.zero_grad()
            F.cross_entropy(network(images), labels).backward()
            optimizer.step()
            if after_step is not None:
                after_step(step + 1)

    def batch(self, number):
        return data()

    def untrained(self) -> nn.Module:
        return made(self.name, seed=1)


def train(model, penalty, tuning, images) -> None:
    """One pass, for criteria that look at what a regulariser leaves."""
    x, y = data()
    finetune(model, [(x, y)], replace(tuning, epochs=1), regularizer=penalty)


def pruner_of(trace: Trace, grain: str, criterion: str = "l2", *, repairs=False, refine=None):
    """Of a grain, or several joined by ``+``."""
    images, labels = data()
    context = Context(trace.model, trace.plan, images, labels, trainer=train, trained_on="noise")
    settings = {
        "criterion": criteria.load(criterion),
        "context": context,
        "reconstruct": Reconstruction() if repairs else None,
        "calibration": images if repairs or refine else None,
        "refine": refine,
    }
    if grain == CHANNEL:
        return Pruner(trace, **settings)
    plan = MaskedPlan.of(trace.model, trace.plan, Grains.parse(grain.split("+")))
    return SparsePruner(trace, plan, **settings)


def policy_of(pruner, ratio: float):
    if isinstance(pruner, Pruner):
        return policy_from_ratios(pruner, ratio, 1)
    return pruner.policy(counts_from_ratios(pruner.plan, ratio, 1))


def assert_pruned(pruner, policy, network):
    """The network has exactly the zeros and sizes of its policy."""
    kept = policy.kept(pruner.plan.targets)
    if isinstance(pruner, Pruner):
        assert masks_of(network) == {}
        assert sum(p.numel() for p in network.parameters()) == int(pruner.plan.params(kept))
        return
    masks = masks_of(network)
    channels, inside = pruner.plan.split(kept)
    for weight, count in zip(pruner.plan.weights, inside, strict=True):
        mask = masks[weight.name]
        assert (network.get_parameter(weight.name)[~mask] == 0).all()
        sizes = weight.sizes_at(pruner.plan.base.lengths(channels))
        units = weight.units_kept(count, sizes)
        wanted = int(weight.granularity.nonzeros(units, sizes))
        found = int(mask.sum())
        assert found == wanted or (weight.granularity.name.startswith("block") and found < wanted)
