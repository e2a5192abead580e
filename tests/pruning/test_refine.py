"""Refinement: less error than least squares leaves, wherever networks can be compared."""

from __future__ import annotations

import copy
import pickle
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
from automl.pruning.masks import masks_of
from automl.pruning.pruner import Pruner, policy_from_ratios
from automl.pruning.refine import Refinement, Refiner
from automl.scoring import ClassifierScorer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "graph"))

from oracle import randomise

FEW = Refinement(layers=2, steps=30, batch_size=16)


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
    pruner = Pruner(automl.trace(model, inputs[:2].clone()), calibration=inputs)
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


class OneNorm(nn.Module):
    """Two layers that put out alike; least squares leaves next to nothing of the error."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.third, self.head = nn.Conv2d(16, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.second(torch.relu(self.norm(self.first(x))))))
        return self.head(torch.relu(self.third(x)).mean((2, 3)))


def test_a_pass_that_moves_the_networks_end_away_is_undone():
    torch.manual_seed(0)
    model, inputs = OneNorm().eval(), images(400)
    pruner = Pruner(automl.trace(model, inputs[:2]), calibration=inputs)
    policy = policy_from_ratios(pruner, 0.25, rounding=1)
    kept, units = policy.kept(pruner.plan.targets), pruner.units_of(policy)
    errors, said = {}, []
    for steps in (0, 20, 300):
        slim = pruner.prune(policy)
        before = copy.deepcopy(slim.state_dict())
        if steps:
            how = Refinement(steps=steps)
            found = Refiner(model, pruner.plan, inputs, how, report=said.append)(slim, kept, units)
        if steps == 20:
            assert "undone" in said[-1]
            assert found and all(one.after == one.before for one in found)
            assert all(torch.equal(slim.state_dict()[name], before[name]) for name in before)
        errors[steps] = error(model, slim)
    assert errors[300] < errors[20] == errors[0]


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


class Tied(nn.Module):
    """The embedding is the classifier too."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        parts = [(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)) for _ in range(4)]
        self.blocks = nn.ModuleList(nn.Sequential(*layers) for layers in parts)

    def forward(self, x: Tensor) -> Tensor:
        found = self.embedding(x)
        for block in self.blocks:
            found = found + block(found)
        return nn.functional.linear(found.mean(1), self.embedding.weight)


def test_tensors_that_are_not_fitted_get_no_gradients():
    torch.manual_seed(0)
    model, tokens = Tied().eval(), torch.randint(0, 20, (64, 7))
    ratios = {"blocks.0.0": 0.5, "blocks.3.0": 0.5}
    network = automl.prune(model, (tokens[:2],), ratios, calibration=tokens, refine=FEW)
    assert all(one.grad is None and one.requires_grad for one in network.parameters())


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
    value = 8 * 8 * 8 * 4  # of the dense network, at the end of a block, in bytes
    most = 2  # points of a segment
    monkeypatch.setattr(refine, "available_memory", lambda: 40 * 2 * 2 * (2 + most) * value)
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


class SequenceFirst(nn.Module):
    """Tokens come before examples inside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, 16), nn.Linear(16, 3)
        self.up = nn.ModuleList(nn.Linear(16, 24) for _ in range(3))
        self.down = nn.ModuleList(nn.Linear(24, 16) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).permute(1, 0, 2)
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(torch.relu(up(x)))
        return self.head(x.mean(0))


class Folded(SequenceFirst):
    """Tokens are folded into examples inside of it."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.shape[1]
        x = self.embed(x).reshape(-1, 16)
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(torch.relu(up(x)))
        return self.head(x.reshape(-1, tokens, 16).amax(1))


@pytest.mark.parametrize("make", [SequenceFirst, Folded])
@pytest.mark.parametrize("tokens", [1, 8])
def test_only_values_that_lie_by_example_are_compared(make, tokens):
    torch.manual_seed(0)
    model, inputs = make().eval(), torch.randn(300, tokens, 6)
    refined = automl.prune(model, inputs[:2], 0.5, calibration=inputs, refine=FEW)
    assert refined(inputs[:5]).shape == (5, 3)
    made, slim, kept, units = refiner_of(model, inputs)
    found = made(slim, kept, units)
    assert all(one.after <= one.before for one in found)
    assert found[-1].layers[-1] == "head"


class OnePlusOne(nn.Module):
    """One output, in a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.net(x),)


def test_a_tuple_of_one_output_is_an_end_too():
    torch.manual_seed(0)
    made, slim, kept, units = refiner_of(randomise(OnePlusOne()).float().eval(), images())
    assert made(slim, kept, units)[-1].layers[-1] == "net.head"


def test_inputs_that_come_class_by_class_are_mixed():
    """Held back are some of every class, or what was fitted to the others would be thrown away."""
    generator = torch.Generator().manual_seed(0)
    centres = 4 * torch.randn(8, 3, 8, 8, generator=generator)
    labels = torch.arange(8).repeat_interleave(16)
    inputs = centres[labels] + torch.randn(128, 3, 8, 8, generator=generator)
    made, slim, kept, units = refiner_of(net(), inputs)
    found = made(slim, kept, units)
    assert all(one.after < 0.97 * one.before for one in found[:2])


class Shared(nn.Module):
    """Four blocks read the same scale."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, 16), nn.Linear(16, 3)
        self.up = nn.ModuleList(nn.Linear(16, 24) for _ in range(4))
        self.down = nn.ModuleList(nn.Linear(24, 16) for _ in range(4))
        self.gamma = nn.Parameter(torch.rand(16) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for up, down in zip(self.up, self.down, strict=True):
            x = 0.5 * x + self.gamma * down(torch.relu(up(x)))
        return self.head(x)


@pytest.mark.parametrize(("layers", "left_alone"), [(1, True), (99, False)])
def test_what_several_segments_read_is_left_to_none_of_them(layers, left_alone):
    torch.manual_seed(0)
    model, inputs = Shared().eval(), torch.randn(96, 6)
    few = Refinement(layers=layers, steps=30, batch_size=16)
    made, slim, kept, units = refiner_of(model, inputs, few)
    before = slim.gamma.clone()
    found = made(slim, kept, units)
    assert (len(found) > 1) == left_alone and all(one.after < one.before for one in found)
    assert torch.equal(slim.gamma, before) == left_alone


class WritesIntoItsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.GroupNorm(1, 3), nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
            nn.Flatten(), nn.Linear(8 * 16, 5),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.mul_(2).sub_(1))


def test_inputs_stay_as_they_were_whatever_a_network_does_with_them():
    torch.manual_seed(0)
    inputs = images()
    before = inputs.clone()
    made, slim, kept, units = refiner_of(WritesIntoItsInput().eval(), inputs)
    assert made(slim, kept, units)
    assert torch.equal(inputs, before)


def test_a_pruner_that_has_refined_can_be_sent_elsewhere():
    inputs = images()
    pruner = Pruner(automl.trace(net(), inputs[:2]), calibration=inputs, refine=FEW)
    policy = policy_from_ratios(pruner, 0.5, rounding=1)
    here = pruner.prune(policy).state_dict()
    there = pickle.loads(pickle.dumps(pruner)).prune(policy).state_dict()
    assert all(torch.equal(here[name], there[name]) for name in here)


def test_networks_in_training_mode_are_refined_in_eval_mode_and_stay_as_they_were():
    model, inputs = net(), images()
    made, slim, kept, units = refiner_of(model, inputs)
    other = copy.deepcopy(slim)
    made(slim, kept, units)
    model.train()
    other.train()
    made(other, kept, units)
    assert all(module.training for one in (model, other) for module in one.modules())
    for name, tensor in slim.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


def test_trials_of_a_refining_pruner_share_nothing():
    pruner = Pruner(automl.trace(net(), images(2)), calibration=images(), refine=FEW)
    scorer = ClassifierScorer(images(16), None, score="kl", dense=net())
    assert pruner.continuation(scorer) is None


@pytest.mark.parametrize(
    ("change", "inputs", "says"),
    [
        (lambda model: model.half(), images().half(), "float16 is too coarse for small steps"),
        (lambda model: model, images(1), "there is one calibration input"),
    ],
)
def test_what_cannot_be_refined_is_said(change, inputs, says):
    lines: list[str] = []
    model = net()
    made, slim, kept, units = refiner_of(model, images(2), report=lines.append)
    made._inputs = inputs
    assert made(change(slim), kept, units) == []
    assert lines == [f"left out: {says}"]


def test_inference_mode_is_refused():
    with torch.inference_mode(), pytest.raises(automl.InputError, match=r"torch\.no_grad"):
        pruned(net(), images(), FEW)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"refine": FEW}, "refine needs calibration="),
        ({"refine": True, "calibration": images()}, "must be automl.Refinement"),
    ],
)
def test_the_python_api_refuses_what_it_cannot_refine(arguments, says):
    with pytest.raises(automl.InputError, match=says):
        automl.prune(net(), images(2), 0.5, **arguments)
    with pytest.raises(automl.InputError, match=says):
        automl.Searcher(net(), images(2), lambda model: 0.0, budget={"macs": 0.5}, **arguments)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("layers", 0), ("steps", 0), ("batch_size", 0), ("steps", 2.5), ("steps", True), ("seed", "a"),
     ("seed", -1), ("layers", np.nan), ("lr", 0.0), ("lr", 1.0), ("lr", np.nan),
     ("precision", "float16")],
)  # fmt: skip
def test_settings_out_of_range_are_refused_by_name(setting, value):
    with pytest.raises(ValueError, match=f"Refinement.{setting} must be"):
        Refinement(**{setting: value})
