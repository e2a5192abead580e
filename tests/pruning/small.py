"""Networks small enough for whole matrices of settings, with data and a training loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from automl.graph.trace import Trace, trace
from automl.models.digits import digits_cnn
from automl.models.vit import vit_tiny
from automl.pruning.masks import protect

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
