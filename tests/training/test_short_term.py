"""Short training of trials: in place, repeatable, told apart by what it was."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from automl.graph.trace import trace
from automl.pruning.pruner import Pruner
from automl.pruning.trained import TrainedPruner
from automl.training.config import FinetuneConfig
from automl.training.short_term import ShortTerm


class Images:
    """Ready-made images in the interface of ``TensorSet``."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.randn(40, 1, 4, 4, generator=generator)
        self.labels = torch.arange(40) % 3

    def batches(self, batch_size, *, generator, shuffle, **_):
        order = torch.randperm(40, generator=generator) if shuffle else torch.arange(40)
        for part in order.split(batch_size):
            yield self.images[part], self.labels[part]


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)]
    return nn.Sequential(*layers).eval()


@pytest.fixture(scope="module")
def pruner() -> Pruner:
    return Pruner(trace(network(), torch.zeros(2, 1, 4, 4)))


CONFIG = FinetuneConfig(epochs=2, lr=0.05, batch_size=10, distill_weight=1.0)


def short_term(**changes) -> ShortTerm:
    return replace(ShortTerm(Images(), CONFIG, teacher=network()), **changes)


def weights(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_a_pruned_network_is_trained_towards_the_dense_one(pruner):
    trained = TrainedPruner(pruner, short_term())
    policy = pruner.policy(np.array([4]))
    before, after = pruner.prune(policy), trained.prune(policy)
    dense, x = network(), Images().images
    with torch.no_grad():
        gap = [
            nn.functional.kl_div(m(x).log_softmax(1), dense(x).softmax(1), reduction="batchmean")
            for m in (before, after)
        ]
    assert gap[1] < 0.8 * gap[0]
    assert not after.training


def test_the_dense_network_is_left_alone(pruner):
    trained = TrainedPruner(pruner, short_term())
    dense = trained.prune(pruner.policy(np.array([8])))
    assert torch.equal(weights(dense), weights(network()))
    assert torch.equal(weights(pruner.trace.model), weights(network()))


def test_the_same_policy_gives_the_same_weights_whatever_came_before(pruner):
    trained = TrainedPruner(pruner, short_term())
    policy = pruner.policy(np.array([4]))
    first = weights(trained.prune(policy))
    torch.manual_seed(7)
    trained.prune(pruner.policy(np.array([2])))
    assert torch.equal(weights(trained.prune(policy)), first)


def test_everything_that_matters_is_in_the_fingerprint(pruner):
    other = network()
    with torch.no_grad():
        other[0].weight += 1
    variants = [
        short_term(),
        short_term(train=Images(1)),
        short_term(config=replace(CONFIG, lr=0.01)),
        short_term(config=replace(CONFIG, epochs=1)),
        short_term(mean=(0.5,), std=(0.5,)),
        short_term(teacher=other),
    ]
    prints = [TrainedPruner(pruner, one).fingerprint for one in variants]
    assert len({pruner.fingerprint, *prints}) == 1 + len(variants)
    assert TrainedPruner(pruner, short_term()).fingerprint == prints[0]


def test_policies_and_weights_are_those_of_the_pruner(pruner):
    trained = TrainedPruner(pruner, short_term())
    assert trained.model_hash == pruner.model_hash
    assert trained.policy(np.array([3])) == pruner.policy(np.array([3]))
