"""Policies from counts and ratios, applying them, and folding batch norm."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import automl
from automl.models.cifar import resnet20
from automl.models.mobilenet import mobilenet_v2
from automl.policy import Policy
from automl.pruning.pruner import Pruner, policy_from_ratios
from automl.pruning.sparse_pruner import pruner_for
from automl.types import InputError


@pytest.fixture(scope="module")
def trace():
    torch.manual_seed(0)
    return automl.trace(resnet20().eval(), torch.randn(1, 3, 32, 32))


@pytest.fixture(scope="module")
def pruner(trace):
    return Pruner(trace)


def test_policy_keeps_the_most_important_units(pruner):
    kept = pruner.plan.dense // 2
    policy = pruner.policy(kept)
    for decision, scores in zip(policy.decisions, pruner.scores, strict=True):
        gone = sorted(set(range(decision.units)) - set(decision.indices))
        assert scores[list(decision.indices)].min() >= scores[gone].max()


def test_more_kept_units_contain_fewer(pruner):
    few, more = pruner.kept_units(pruner.plan.dense // 4), pruner.kept_units(pruner.plan.dense // 2)
    assert all(set(a) <= set(b) for a, b in zip(few, more, strict=True))


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_slim_networks_have_the_counted_parameters(pruner, data):
    kept = np.array([data.draw(st.integers(1, t.units)) for t in pruner.plan.targets])
    slim = pruner.prune(pruner.policy(kept))
    assert sum(p.numel() for p in slim.parameters()) == int(pruner.plan.params(kept))
    assert slim(torch.randn(3, 3, 32, 32)).shape == (3, 10)


def test_a_loaded_policy_gives_the_same_network(pruner, tmp_path):
    policy = pruner.policy(pruner.plan.dense // 2)
    policy.save(tmp_path / "policy.json")
    images = torch.randn(2, 3, 32, 32)
    again = pruner.prune(Policy.load(tmp_path / "policy.json"))
    with torch.no_grad():
        assert torch.equal(again(images), pruner.prune(policy)(images))


def test_indices_of_a_policy_win_over_the_criterion(pruner):
    kept = pruner.plan.dense.copy()
    index = pruner.plan.target_index("layer1.0.conv1")
    kept[index] = 2
    indices = [None] * len(kept)
    indices[index] = (3, 11)
    policy = Policy.from_kept(pruner.plan.targets, kept, indices=indices)
    slim, dense = pruner.prune(policy), pruner.trace.model
    assert torch.equal(slim.layer1[0].conv1.weight, dense.layer1[0].conv1.weight[[3, 11]])
    assert torch.equal(slim.layer1[0].conv2.weight, dense.layer1[0].conv2.weight[:, [3, 11]])


def test_policy_of_another_network_is_refused(pruner):
    other = Pruner(automl.trace(mobilenet_v2().eval(), torch.randn(1, 3, 32, 32)))
    with pytest.raises(InputError, match="another network"):
        pruner.prune(other.policy(other.plan.dense))


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 2, float("nan"), True, "half"])
def test_ratios_out_of_range_are_refused(pruner, ratio):
    with pytest.raises(InputError, match=r"\[0, 1\)"):
        policy_from_ratios(pruner, ratio, rounding=1)


def test_ratios_by_name_prune_only_those(pruner):
    policy = policy_from_ratios(pruner, {"layer2.1.conv1": 0.5}, rounding=1)
    changed = [d.target for d in policy.decisions if d.kept < d.units]
    assert changed == ["layer2.1.conv1"]


@pytest.mark.parametrize(
    ("name", "says"),
    [("layer2.1.conv", "did you mean"), ("linear", "cannot be pruned"), ("zzz", "no prunable")],
)
def test_unknown_and_frozen_names_are_refused(pruner, name, says):
    with pytest.raises(InputError, match=says):
        policy_from_ratios(pruner, {name: 0.5}, rounding=1)


def test_fingerprint_tells_settings_apart(trace):
    images = torch.randn(8, 3, 32, 32)
    prints = {
        Pruner(trace).fingerprint,
        Pruner(trace, criterion="l1").fingerprint,
        Pruner(trace, calibration=images).fingerprint,
        Pruner(trace, calibration=images + 1).fingerprint,
        Pruner(trace, calibration=images, reconstruct=None).fingerprint,
        Pruner(trace, calibration=images, batchnorm_recalibration=True).fingerprint,
    }
    assert len(prints) == 5  # without repair the images do not matter


@pytest.mark.parametrize("count", [1, 2, 257])
def test_batch_norms_are_estimated_anew_on_any_number_of_inputs_that_have_a_variance(count):
    torch.manual_seed(0)
    layers = [nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)]
    trace = automl.trace(nn.Sequential(*layers).eval(), torch.randn(2, 6))
    settings = {"reconstruct": None, "batchnorm_recalibration": True}
    pruner = Pruner(trace, calibration=torch.randn(count, 6), **settings)
    policy = policy_from_ratios(pruner, 0.5, 1)
    if count == 1:
        with pytest.raises(InputError, match="one calibration input: give two or more"):
            pruner.prune(policy)
    else:
        assert pruner.prune(policy)[1].running_var.gt(0).all()


@pytest.mark.parametrize(
    ("calibration", "says"),
    [
        (torch.zeros(4, 1, 32, 32), r"calibration, \(4, 1, 32, 32\) of float32, where its example"),
        (torch.zeros(4, 3, 32, 32).double(), r"\(4, 3, 32, 32\) of float64, .* of float32: "),
    ],
)
def test_calibration_that_the_network_fails_on_is_named_with_both_shapes(trace, calibration, says):
    with pytest.raises(InputError, match=says):
        Pruner(trace, calibration=calibration)


def test_calibration_of_another_size_is_taken_where_the_network_runs_on_it(trace):
    Pruner(trace, calibration=torch.zeros(4, 3, 24, 24))


def test_batchnorm_recalibration_changes_only_the_statistics(trace):
    images = torch.randn(64, 3, 32, 32)
    plain = Pruner(trace)
    policy = plain.policy(plain.plan.dense // 2)
    settings = {"calibration": images, "reconstruct": None, "batchnorm_recalibration": True}
    slim = Pruner(trace, **settings).prune(policy).state_dict()
    for name, tensor in plain.prune(policy).state_dict().items():
        statistic = "running" in name or "num_batches" in name
        assert statistic or torch.equal(tensor, slim[name]), name
    assert not torch.equal(slim["bn1.running_mean"], plain.prune(policy).bn1.running_mean)


def test_prune_in_one_call():
    net = mobilenet_v2().eval()
    slim = automl.prune(net, torch.randn(1, 3, 32, 32), 0.5)
    assert type(slim) is type(net)
    assert sum(p.numel() for p in slim.parameters()) < 0.5 * sum(
        p.numel() for p in net.parameters()
    )


@pytest.mark.parametrize("granularity", ["channel", ["channel", "unstructured"]])
def test_a_policy_of_other_weights_keeps_its_counts_and_the_units_are_chosen_anew(granularity):
    def net(seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()

    x = torch.randn(1, 3, 8, 8)
    first, second = (pruner_for(automl.trace(net(seed), x), granularity) for seed in (0, 1))
    kept = np.maximum(first.plan.dense // 2, 1)
    policy, own = first.policy(kept), second.policy(kept)
    assert policy.decisions[0].indices != own.decisions[0].indices
    for learned in (policy, own):
        found, wanted = automl.prune(net(1), x, learned), second.prune(own)
        assert torch.equal(found[0].weight, wanted[0].weight)
        assert torch.equal(found[2].weight, wanted[2].weight)
    as_it_is = replace(policy, model_hash="")  # of whatever weights: its units are meant
    assert torch.equal(automl.prune(net(1), x, as_it_is)[0].bias, second.prune(policy)[0].bias)


@pytest.mark.parametrize("granularity", ["channel", "unstructured"])
def test_one_layer_to_exclude_needs_no_list(granularity):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 3))
    found = automl.prune(
        net, torch.randn(1, 3, 8, 8), 0.5, exclude="0", granularity=granularity
    ).state_dict()
    assert torch.equal(found["0.weight"], net[0].weight)
    assert found["2.weight"].count_nonzero() <= net[2].weight.numel() // 2


@pytest.mark.parametrize("factory", [resnet20, mobilenet_v2])
@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_folding_batchnorm_changes_no_output(factory, ratio):
    torch.manual_seed(0)
    net = factory().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    pruner = Pruner(automl.trace(net, torch.randn(1, 3, 32, 32)))
    slim = pruner.prune(policy_from_ratios(pruner, ratio, rounding=1))
    before = {name: tensor.clone() for name, tensor in slim.state_dict().items()}
    folded, images = pruner.for_inference(slim), torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        expected, found = slim(images), folded(images)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5
    assert all(torch.equal(tensor, slim.state_dict()[name]) for name, tensor in before.items())
