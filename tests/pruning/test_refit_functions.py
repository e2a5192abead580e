"""Layers whose weights a function reads, as attention's in-projection, are repaired like others."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import automl
from automl.pruning import sites
from automl.pruning.grains import Grains
from automl.pruning.masked_plan import MaskedPlan
from automl.pruning.masks import masks_of
from automl.pruning.pruner import Pruner, policy_from_ratios
from automl.pruning.reconstruct import Reconstruction
from automl.pruning.refine import Refinement
from automl.pruning.sampling import sample
from automl.pruning.sites import find_sites, not_refitted
from automl.pruning.sparse_pruner import SparsePruner, counts_from_ratios

F = nn.functional


class Encoder(nn.Module):
    """A stream of eight numbers' embeddings through attention; ``bias`` is the in-projection's."""

    def __init__(self, batch_first: bool = True, bias: bool = True) -> None:
        super().__init__()
        self.into, self.norm = nn.Linear(8, 32), nn.LayerNorm(32)
        self.attend = nn.MultiheadAttention(32, 4, bias=bias, batch_first=batch_first)
        self.out, self.batch_first = nn.Linear(32, 10), batch_first

    def forward(self, x):
        x = self.into(x)
        if not self.batch_first:
            x = x.transpose(0, 1)
        y = self.norm(x)
        x = x + self.attend(y, y, y, need_weights=False)[0]
        return self.out(x.mean(1 if self.batch_first else 0))


class Reader(nn.Module):
    """Parameters of its own, read by functions: with a bias, without, and one that is scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.twice = nn.Linear(6, 24), nn.Linear(24, 24)
        self.own, self.own_bias = nn.Parameter(torch.randn(24, 24)), nn.Parameter(torch.randn(24))
        self.bare, self.scaled = (nn.Parameter(torch.randn(n, 24)) for n in (7, 24))

    def forward(self, x):
        x = torch.relu(self.twice(torch.relu(self.twice(torch.relu(self.into(x))))))
        x = torch.relu(F.linear(x, self.scaled / 5))
        x = torch.relu(F.linear(x, self.own, self.own_bias))
        return F.linear(x, self.bare)


class Tied(nn.Module):
    """A weight that a layer reads, and a function once more."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.between, self.out = nn.Linear(6, 24), nn.Linear(24, 24), nn.Linear(24, 5)

    def forward(self, x):
        x = torch.relu(self.into(x))
        x = torch.relu(self.between(x))
        return self.out(torch.relu(F.linear(x, self.between.weight)))


def _pruned(net, inputs, settings, ratio=0.25, trace=None):
    trace = trace or automl.trace(net, inputs[:2])
    pruner = Pruner(trace, calibration=inputs, reconstruct=settings)
    return pruner.prune(policy_from_ratios(pruner, ratio, rounding=1))


def _damage(net, slim, like):
    """Error on fresh inputs, over the dense outputs' variance."""
    fresh = torch.randn(256, *like.shape[1:], generator=torch.Generator().manual_seed(99))
    with torch.no_grad():
        dense = net(fresh)
        return float(((slim(fresh) - dense) ** 2).mean() / dense.var())


NETWORKS = {
    "attention": (Encoder, (5, 8)),
    "attention, tokens first": (lambda: Encoder(batch_first=False), (5, 8)),
    "attention, no bias": (lambda: Encoder(bias=False), (5, 8)),
    "own parameters": (Reader, (6,)),
}


@pytest.mark.parametrize("inputs", ["pruned", "dense"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_they_are_fitted(kind, inputs, monkeypatch):
    """Better than no repair, and than one that leaves them as they are."""
    make, shape = NETWORKS[kind]
    torch.manual_seed(0)
    net, images = make().eval(), torch.randn(256, *shape)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    settings, trace = Reconstruction(inputs=inputs), automl.trace(net, images[:2])

    def damage(settings):
        return _damage(net, _pruned(net, images, settings, trace=trace), images)

    none, repaired = damage(None), damage(settings)
    monkeypatch.setattr(sites, "_functions", lambda model, plan: [])
    without = damage(settings)
    assert repaired < 0.5 * none and repaired < 0.9 * without
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_the_in_projection_is_among_what_the_repair_writes():
    torch.manual_seed(0)
    net, images = Encoder().eval(), torch.randn(128, 5, 8)
    plain, repaired = (_pruned(net, images, s).attend for s in (None, Reconstruction()))
    assert plain.in_proj_weight.shape == repaired.in_proj_weight.shape
    assert not torch.allclose(plain.in_proj_weight, repaired.in_proj_weight, atol=1e-3)
    assert not torch.allclose(plain.in_proj_bias, repaired.in_proj_bias, atol=1e-3)


def test_what_is_fitted_is_what_the_network_computes():
    torch.manual_seed(0)
    net = Encoder().eval()
    found = find_sites(net, automl.trace(net, torch.zeros(2, 5, 8)).plan)
    site = next(one for one in found if one.leaves is not None)
    layer = site.module(net)
    assert layer.weight is net.attend.in_proj_weight and layer.bias is net.attend.in_proj_bias
    assert site.weight == "attend.in_proj_weight"
    x = torch.randn(3, 32)
    torch.testing.assert_close(
        site.outputs(layer, x), F.linear(x, net.attend.in_proj_weight, net.attend.in_proj_bias)
    )


def test_weights_that_are_computed_are_left_alone():
    net = Reader().eval()
    plan = automl.trace(net, torch.zeros(2, 6)).plan
    assert [site.weight for site in find_sites(net, plan)] == [
        "into.weight", "twice.weight", "twice.weight", "own", "bare",
    ]  # fmt: skip


def test_layers_that_cannot_be_refitted_are_named():
    """The bias is another layer's, whose own fit would write to it."""

    class Lent(nn.Module):
        def __init__(self):
            super().__init__()
            self.into, self.other = nn.Linear(6, 8), nn.Linear(8, 3)
            self.weight = nn.Parameter(torch.randn(3, 8))

        def forward(self, x):
            x = torch.relu(self.into(x))
            return self.other(x) + F.linear(x, self.weight, self.other.bias)

    net = Lent().eval()
    plan = automl.trace(net, torch.zeros(2, 6)).plan
    assert [site.weight for site in find_sites(net, plan)] == ["into.weight", "other.weight"]
    assert not_refitted(net, plan) == ["weight"]


def test_a_layers_weight_is_fitted_for_the_layer_alone():
    torch.manual_seed(0)
    net, images = Tied().eval(), torch.randn(256, 6)
    calls = find_sites(net, automl.trace(net, images[:2]).plan)
    assert [site.weight for site in calls] == ["into.weight", "between.weight", "out.weight"]
    none, repaired = (
        _damage(net, _pruned(net, images, s), images) for s in (None, Reconstruction())
    )
    assert repaired < 0.5 * none


def test_what_is_no_parameter_is_left_alone():
    """Constants and plain tensors are in the program, and no attributes of modules."""

    class Constants(nn.Module):
        def __init__(self):
            super().__init__()
            self.into, self.fixed = nn.Linear(6, 8), torch.randn(3, 8)
            self.register_buffer("shift", torch.randn(8))

        def forward(self, x):
            x = torch.relu(self.into(x) + torch.arange(8.0)) + self.shift
            return F.linear(x, self.fixed)

    net, images = Constants().eval(), torch.randn(64, 6)
    assert [site.weight for site in find_sites(net, automl.trace(net, images[:2]).plan)] == [
        "into.weight"
    ]
    settings = Reconstruction(scope="downstream")
    assert _pruned(net, images, settings)(images).shape == (64, 3)


def test_tokens_before_examples_get_as_many_samples():
    generator = torch.Generator().manual_seed(0)
    tokens_first = torch.zeros(5, 200, 8)  # (tokens, images, channels)
    assert len(sample(tokens_first, -1, 10, 200, generator)) == 5 * 200  # all there are
    wide = torch.zeros(50, 200, 8)
    assert len(sample(wide, -1, 10, 200, generator)) == 10 * 200
    assert len(sample(wide, -1, 100, 200, generator)) == 50 * 200
    assert len(sample(torch.zeros(200, 50, 8), -1, 10, 200, generator)) == 10 * 200


@pytest.mark.parametrize("reconstruct", [Reconstruction(), Reconstruction(masks="obs")])
def test_masked_weights_stay_zero(reconstruct):
    torch.manual_seed(0)
    net, images = Encoder().eval(), torch.randn(128, 5, 8)
    trace = automl.trace(net, images[:2])
    plan = MaskedPlan.of(net, trace.plan, Grains.parse(["nm:4"]))
    pruner = SparsePruner(trace, plan, calibration=images, reconstruct=reconstruct)
    masked = pruner.prune(pruner.policy(counts_from_ratios(plan, 0.5, rounding=1)))
    masks = masks_of(masked)
    assert "attend.in_proj_weight" in masks
    for name, mask in masks.items():
        assert not masked.get_parameter(name)[~mask].any()
        assert masked.get_parameter(name)[mask].ne(0).float().mean() > 0.9


def test_refinement_goes_on_from_it():
    torch.manual_seed(0)
    net, images = Encoder().eval(), torch.randn(128, 5, 8)
    trace = automl.trace(net, images[:2])
    refine = Refinement(steps=30, layers=2)
    damages = []
    for more in ({}, {"refine": refine}):
        pruner = Pruner(trace, calibration=images, reconstruct=Reconstruction(), **more)
        slim = pruner.prune(policy_from_ratios(pruner, 0.25, rounding=1))
        damages.append(_damage(net, slim, images))
    assert damages[1] < 1.05 * damages[0]
