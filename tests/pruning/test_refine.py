"""Refinement: less error than least squares leaves, wherever networks can be compared."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import automl
from automl.pruning import refine
from automl.pruning.laid_back import computes_the_same, laid_back
from automl.pruning.masks import masks_of
from automl.pruning.pruner import Pruner, policy_from_ratios
from automl.pruning.refine import Refinement, Refiner

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "graph"))

from networks import CASES
from oracle import randomise

FEW = Refinement(layers=2, steps=30, batch_size=16)
SINGLE = [name for name, case in CASES.items() if len(case.inputs()) == 1]


class Block(nn.Module):
    def __init__(self, channels: int, stride: int = 1, norm=nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, stride, padding=1, bias=False)
        self.bn1 = norm(16)
        self.conv2 = nn.Conv2d(16, channels, 3, padding=1, bias=False)
        self.bn2 = norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + x)


class Net(nn.Module):
    """Four blocks between a stem and a classifier."""

    def __init__(self, norm=nn.BatchNorm2d) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(*[Block(8, norm=norm) for _ in range(4)])
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(torch.relu(self.stem(x))).mean((2, 3)))


def net(**arguments) -> nn.Module:
    torch.manual_seed(0)
    return randomise(Net(**arguments)).float().eval()


def images(count: int = 96, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def pruned(model, inputs, refinement, ratio=0.5, exclude=(), **arguments):
    pruner = Pruner(
        automl.trace(model, inputs[:2], exclude=exclude),
        calibration=inputs, refine=refinement, **arguments,
    )  # fmt: skip
    return pruner.prune(policy_from_ratios(pruner, ratio, rounding=1))


def refiner_of(model, inputs, refinement=FEW, ratio=0.5, **arguments):
    """A refiner, and a network that it has not refined, with its counts and units."""
    pruner = Pruner(automl.trace(model, inputs[:2]), calibration=inputs)
    policy = policy_from_ratios(pruner, ratio, rounding=1)
    kept, units = policy.kept(pruner.plan.targets), pruner.units_of(policy)
    slim = pruner.materialise.module_form(units)
    made = Refiner(
        pruner.trace.model, pruner.plan, inputs, refinement, pruner.fitted_together, **arguments
    )
    return made, slim, kept, units


def error(model, network) -> float:
    fresh = images(256, seed=99)
    with torch.no_grad():
        dense = model(fresh)
        return float((network(fresh) - dense).square().mean() / dense.var(0).mean())


@pytest.mark.parametrize(
    ("exclude", "left"), [((), 0.95), (("stem", "*.conv2"), 0.8)], ids=["streams too", "insides"]
)
def test_it_wins_back_much_of_what_least_squares_leaves(exclude, left):
    model, inputs = net(), images(256)
    more = Refinement(layers=4, steps=200, batch_size=32)
    fitted, refined = (pruned(model, inputs, how, exclude=exclude) for how in (None, more))
    assert error(model, refined) < left * error(model, fitted)


@pytest.mark.parametrize("repaired", [False, True])
def test_no_segment_gets_worse_on_inputs_it_was_not_fitted_on(repaired):
    made, slim, kept, units = refiner_of(net(), images())
    found = made(slim, kept, units)
    if repaired:  # a second time: little is left to win, nothing must be lost
        found = made(slim, kept, units)
    assert found and all(one.after <= one.before for one in found)


def test_where_every_fit_is_worse_the_old_weights_stay(monkeypatch):
    monkeypatch.setattr(refine, "_SLOWER", 1.0)
    lost = Refinement(layers=2, steps=3, lr=0.99, batch_size=2)
    made, slim, kept, units = refiner_of(net(), images(), lost, ratio=0.1)
    before = copy.deepcopy(slim.state_dict())
    found = made(slim, kept, units)
    assert found and all(one.after == one.before for one in found)
    assert all(torch.equal(slim.state_dict()[name], before[name]) for name in before)


def test_where_a_fit_is_worse_smaller_steps_are_tried():
    steep = Refinement(layers=2, steps=40, lr=0.6, batch_size=16)
    made, slim, kept, units = refiner_of(net(), images(256), steep)
    found = made(slim, kept, units)
    assert sum(one.after < one.before for one in found) > len(found) / 2


def test_every_layer_is_in_one_segment_in_order():
    made, slim, kept, units = refiner_of(net(), images())
    names = [name for one in made(slim, kept, units) for name in one.layers]
    assert names == [site.layer.spec.name for site in made._segments._sites]


@settings(max_examples=12)
@given(st.integers(1, 12))
def test_segments_hold_enough_layers_whatever_is_asked_for(layers):
    made, slim, kept, units = refiner_of(net(), images(4))
    segments = made._segments
    found = segments.between(segments.points(slim, kept, units, images(1)), layers)
    assert [name for one in found for name in one.layers] == [
        site.layer.spec.name for site in made._segments._sites
    ]
    assert len(found) == 1 or all(len(one.layers) >= layers for one in found)
    assert [one.start for one in found[1:]] == [one.stop for one in found[:-1]]


@pytest.mark.parametrize("name", SINGLE)
def test_the_same_function_is_recognised_as_the_same(name):
    """What is compared has its channels in the same order: nothing to refine is found."""
    case = CASES[name]
    torch.manual_seed(3)
    example = case.inputs()[0]
    if example.is_floating_point():
        inputs = torch.randn(12, *example.shape[1:])
    else:
        inputs = torch.randint(0, int(example.max()) + 1, (12, *example.shape[1:]))
    model = randomise(case.make()).float().eval()
    pruner = Pruner(automl.trace(model, inputs[:1]))
    plan, policy = pruner.plan, policy_from_ratios(pruner, 0.5, rounding=1)
    kept, units = policy.kept(plan.targets), pruner.units_of(policy)
    slim = pruner.materialise.module_form(units)
    network = pruner.materialise.finish(slim, kept)
    if not plan.targets:
        pytest.skip("nothing can be pruned")
    whole = laid_back(network, model, plan, units)
    refinement = Refinement(layers=1, steps=2, batch_size=4)
    made = Refiner(whole, plan, inputs, refinement, pruner.fitted_together)
    found = made(slim, kept, units)
    assert all(one.after <= one.before for one in found)
    if computes_the_same(network, whole, inputs):
        assert found == []
    # And against the network that it was pruned from, all of it runs.
    made = Refiner(model, plan, inputs, refinement, pruner.fitted_together)
    assert all(one.after <= one.before for one in made(slim, kept, units))


def test_pruned_streams_are_compared_too():
    made, slim, kept, units = refiner_of(net(), images())
    points = made._segments.points(slim, kept, units, images(1))
    assert [point.channels is None for point in points] == [False] * 5 + [True]
    assert {len(point.channels) for point in points[:-1]} == {4}


def test_nothing_is_refined_before_the_first_damage():
    model, inputs = net(), images()
    pruner = Pruner(automl.trace(model, inputs[:2]), calibration=inputs)
    kept = pruner.plan.dense.copy()
    last = pruner.plan.target_index("blocks.3.conv1")
    kept[last] //= 2
    policy = pruner.policy(kept)
    slim = pruner.materialise.module_form(pruner.units_of(policy))
    made = Refiner(model, pruner.plan, inputs, FEW, pruner.fitted_together)
    found = made(slim, kept, pruner.units_of(policy))
    assert found and "blocks.3.conv1" in found[0].layers
    for name, tensor in slim.named_parameters():
        if name.startswith(("stem", "blocks.0", "blocks.1")):
            assert torch.equal(tensor, model.get_parameter(name)), name


def test_an_unpruned_network_stays_as_it_is():
    model = net()
    same = pruned(model, images(), FEW, ratio=0.0)
    assert all(
        torch.equal(a, b) for a, b in zip(same.parameters(), model.parameters(), strict=True)
    )


def test_only_weights_of_the_slim_network_change():
    model, inputs = net(), images()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    network = pruned(model, inputs, FEW)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(one.grad is None and one.requires_grad for one in network.parameters())
    assert not any(module.training for module in network.modules())


def test_frozen_weights_are_refined_and_stay_frozen():
    model = net()
    model.requires_grad_(False)
    network = pruned(model, images(), FEW)
    assert not any(one.requires_grad for one in network.parameters())


def test_the_same_again_is_the_same_to_the_bit():
    model, inputs = net(), images()
    one, other = (pruned(model, inputs, FEW).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("grain", ["unstructured", "nm:4"])
def test_masked_weights_stay_zero(grain):
    model, inputs = net(), images()
    plain, refined = (
        automl.prune(model, inputs[:2], 0.6, granularity=grain, calibration=inputs, refine=how)
        for how in (None, FEW)
    )
    masks = masks_of(refined)
    assert masks
    for name, mask in masks.items():
        assert torch.equal(mask, masks_of(plain)[name])
        assert not refined.get_parameter(name)[~mask].any()
    assert error(model, refined) < 1.1 * error(model, plain)  # fitted on so few images


class OwnNorm(nn.BatchNorm2d):
    """A batch norm with a forward of its own, as timm's are."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1,
            self.eps,
        )  # fmt: skip


@pytest.mark.parametrize("refinement", [None, FEW])
def test_norms_with_a_forward_of_their_own_are_repaired_as_plain_ones(refinement):
    plain, own = net(), net(norm=OwnNorm)
    own.load_state_dict(plain.state_dict())
    before = copy.deepcopy(own.state_dict())
    one, other = (pruned(model, images(), refinement).state_dict() for model in (plain, own))
    assert all(torch.equal(tensor, before[name]) for name, tensor in own.state_dict().items())
    for name in one:
        torch.testing.assert_close(other[name], one[name], rtol=1e-5, atol=1e-6)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x + y)))


def test_networks_of_several_inputs_are_left_as_they_are():
    torch.manual_seed(0)
    model, inputs = TwoInputs().eval(), (torch.randn(2, 6), torch.randn(2, 6))
    pruner = Pruner(automl.trace(model, inputs))
    policy = policy_from_ratios(pruner, 0.5, rounding=1)
    kept, units = policy.kept(pruner.plan.targets), pruner.units_of(policy)
    slim = pruner.materialise.module_form(units)
    made = Refiner(model, pruner.plan, torch.randn(16, 6), FEW, pruner.fitted_together)
    assert made(slim, kept, units) == []


def test_where_memory_is_short_fewer_inputs_are_used_and_it_says_so(monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(refine, "available_memory", lambda: 2 * 5 * 40 * 8 * 8 * 8 * 4)
    made, slim, kept, units = refiner_of(net(), images(), report=lines.append)
    found = made(slim, kept, units)
    assert lines[0] == "on 40 inputs of 96: more do not fit into memory"
    assert len(lines) == 1 + len(found) and found


def test_every_segment_is_reported():
    lines: list[str] = []
    made, slim, kept, units = refiner_of(net(), images(), report=lines.append)
    found = made(slim, kept, units)
    assert [line.split(",")[0] for line in lines] == [
        f"{number}/{len(found)}" for number in range(1, len(found) + 1)
    ]


def test_bfloat16_refines_about_as_well():
    model, inputs = net(), images()
    low = Refinement(layers=2, steps=60, batch_size=16, precision="bfloat16")
    plain, refined = (pruned(model, inputs, how) for how in (None, low))
    assert error(model, refined) < error(model, plain)
    assert {one.dtype for one in refined.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("setting", "value"),
    [("layers", 0), ("steps", 0), ("batch_size", 0), ("lr", 0.0), ("lr", 1.0), ("lr", np.nan),
     ("precision", "float16")],
)  # fmt: skip
def test_settings_out_of_range_are_refused_by_name(setting, value):
    with pytest.raises(ValueError, match=f"Refinement.{setting} must be"):
        Refinement(**{setting: value})
