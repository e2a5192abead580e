"""Torch-Pruning's groups, where it finds any, are ours."""

from __future__ import annotations

import warnings
from functools import partial

import pytest
import torch
from torch import nn

from automl.graph.trace import trace
from automl.models.cifar import plain20
from automl.models.factory import build
from automl.models.mobilenet import mobilenet_v1, mobilenet_v2

tp = pytest.importorskip("torch_pruning")


def torchvision(name: str) -> nn.Module:
    pytest.importorskip("torchvision")
    return build(f"torchvision:{name}", {}).model


def theirs(model: nn.Module, image: torch.Tensor) -> set[frozenset[str]]:
    """Layers whose output channels each of Torch-Pruning's groups prunes."""
    names = {module: name for name, module in model.named_modules()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = tp.DependencyGraph().build_dependency(model, example_inputs=image)
        groups = graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear])
        found = set()
        for group in groups:
            written = [
                names[dependency.target.module]
                for dependency, _ in group
                if dependency.target.module in names
                and graph.is_out_channel_pruning_fn(dependency.handler)
                and isinstance(dependency.target.module, (nn.Conv2d, nn.Linear))
            ]
            found.add(frozenset(written))
    return found


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (partial(torchvision, "resnet18"), 32),
        (partial(torchvision, "resnet50"), 32),
        (partial(torchvision, "mobilenet_v3_small"), 32),
        (partial(torchvision, "squeezenet1_1"), 64),
        (plain20, 32),
        (mobilenet_v1, 32),
        (mobilenet_v2, 32),
    ],
    ids=[
        "resnet18",
        "resnet50",
        "mobilenet_v3",
        "squeezenet",
        "plain20",
        "mobilenet_v1",
        "mobilenet_v2",
    ],
)
def test_coupled_layers_are_the_same(make, size):
    model, image = make().eval(), torch.randn(1, 3, size, size)
    expected = theirs(model, image)
    found = trace(model, image)
    output = {part.name for part in found.frozen}
    assert {frozenset(group.producers) for group in found.groups} == {
        group for group in expected if not group & output
    }
