"""Repair from Gram matrices of the dense network: the textbook fit, without running anything."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import automl
from automl.pruning.lookup import LookupRepairer
from automl.pruning.pruner import Pruner, policy_from_ratios
from automl.pruning.reconstruct import Reconstruction
from automl.types import InputError

SETTINGS = Reconstruction(inputs="dense", points=64, ridge=1e-6)


class Net(nn.Module):
    """Two convolutions, of which the second reads pruned channels, and a head that does."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=bias)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 12, 3, padding=1, bias=bias)
        self.bn2 = nn.BatchNorm2d(12)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.head(torch.relu(self.bn2(self.conv2(x))).mean((2, 3)))


def network(bias: bool = False) -> nn.Module:
    torch.manual_seed(0)
    net = Net(bias)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return net.eval()


@pytest.fixture
def images():
    return torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def pruner_of(net, images, settings=SETTINGS) -> Pruner:
    return Pruner(automl.trace(net, images[:2]), calibration=images, reconstruct=settings)


@pytest.mark.parametrize("bias", [False, True])
def test_the_second_layer_is_the_textbook_fit_on_the_dense_inputs(images, bias):
    """Against float64 least squares on all positions of the dense network's own inputs."""
    net = network(bias)
    pruner = pruner_of(net, images, Reconstruction(inputs="dense", points=4000, ridge=1e-9))
    pruner._repairer  # noqa: B018 - the sample is drawn with repetition: compare outputs, not bits
    policy = policy_from_ratios(pruner, {"conv1": 0.5}, rounding=1)
    slim = pruner.prune(policy)
    kept = torch.tensor(pruner.units_of(policy)[0])
    with torch.no_grad():
        x = torch.relu(net.bn1(net.conv1(images)))
        wanted = net.bn2(net.conv2(x))
        found = slim.bn2(slim.conv2(torch.relu(slim.bn1(slim.conv1(images)))))
        columns = nn.functional.unfold(x[:, kept], 3, padding=1).transpose(1, 2).flatten(0, 1)
        goal = net.conv2(x).movedim(1, -1).flatten(0, 2).double()
        ones = torch.ones(len(columns), 1)
        design = torch.cat([columns, ones], 1).double()
        best = torch.linalg.lstsq(design, goal).solution
        residual = (design @ best - goal).square().mean()
        scale = (net.bn2.weight / torch.sqrt(net.bn2.running_var + net.bn2.eps)).double()
        reached = ((found - wanted).movedim(1, -1).flatten(0, 2).double() / scale).square().mean()
    assert residual <= reached <= 1.05 * residual


def test_nothing_pruned_changes_nothing(images):
    net = network()
    pruner = pruner_of(net, images)
    slim = pruner.prune(policy_from_ratios(pruner, 0.0, rounding=1))
    assert torch.equal(slim(images), net(images))


def test_it_repairs_and_the_dense_network_stays_as_it_was(images):
    net = network()
    before = copy.deepcopy(net.state_dict())
    errors = []
    for settings in (None, SETTINGS):
        pruner = pruner_of(net, images, settings)
        slim = pruner.prune(policy_from_ratios(pruner, 0.5, rounding=1))
        with torch.no_grad():
            errors.append(float((slim(images) - net(images)).square().mean()))
    assert errors[1] < 0.5 * errors[0]
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_what_was_solved_is_looked_up_and_equal_in_other_processes(images):
    pruner = pruner_of(network(), images)
    policy = policy_from_ratios(pruner, 0.5, rounding=1)
    first = pruner.prune(policy)
    repairer = pruner._repairer
    assert isinstance(repairer, LookupRepairer) and repairer._solved
    fresh = pickle.loads(pickle.dumps(repairer))
    assert not fresh._solved
    again = pruner.prune(policy)
    units, kept = pruner.units_of(policy), policy.kept(pruner.plan.targets)
    other = pruner.materialise.module_form(units)
    fresh(other, kept, units)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
        assert torch.equal(tensor, other.state_dict()[name])


def test_depthwise_layers_stay_and_the_next_one_is_refitted(images):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 6, 1),
        nn.Flatten(), nn.Linear(6 * 16, 4),
    ).eval()  # fmt: skip
    pruner = pruner_of(net, images)
    kept = pruner.plan.dense.copy()
    kept[0] = 4
    policy = pruner.policy(kept)
    slim = pruner.prune(policy)
    units = torch.tensor(pruner.units_of(policy)[0])
    assert torch.equal(slim[2].weight, net[2].weight[units])
    assert not torch.allclose(slim[4].weight, net[4].weight[:, units])


def test_masks_and_unknown_inputs_are_refused(images):
    pruner = pruner_of(network(), images)
    kept = pruner.plan.dense
    masks = {"conv2.weight": torch.zeros(12, 16, 3, 3, dtype=torch.bool)}
    with pytest.raises(InputError, match="granularity=channel"):
        pruner.make(kept, pruner.kept_units(kept), masks)
    with pytest.raises(ValueError, match="'pruned' or 'dense'"):
        Reconstruction(inputs="both")


def test_journals_from_before_there_was_a_choice_are_still_answered_from():
    assert "inputs" not in Reconstruction().settings()
    assert SETTINGS.settings()["inputs"] == "dense"
    assert np.isfinite(SETTINGS.ridge)
