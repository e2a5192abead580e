import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from automl.graph.trace import trace
from automl.pruning.grains import Grains
from automl.pruning.masked_plan import MaskedPlan
from automl.pruning.permutation import best_order, permute
from automl.pruning.sparse_pruner import SparsePruner
from automl.types import InputError


def kept(matrix, m, n):
    matrix = nn.functional.pad(matrix, (0, -matrix.shape[1] % m))
    return float(matrix.unflatten(1, (-1, m)).topk(n, dim=2).values.sum())


def magnitudes(rows, columns, seed):
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) ** 3


class Residual(nn.Module):
    """A stream that two convolutions write and three layers read, by blocks and pooled."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.inner = nn.Conv2d(16, 12, 3, padding=1)
        self.outer = nn.Conv2d(12, 16, 1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.head = nn.Linear(16 * 4, 5)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        x = x + self.outer(self.inner(x).relu())
        x = self.depthwise(x).relu()
        return self.head(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))


@pytest.fixture
def network():
    torch.manual_seed(0)
    model = Residual()
    for parameter in model.parameters():  # a few weights are much larger than others
        parameter.data = parameter.data.sign() * parameter.data.abs() ** 2 * 8
    model.norm.running_mean.normal_()
    model.norm.running_var.uniform_(0.5, 2)
    return model.eval()


INPUT = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def plan_of(model, grains=("nm:4",)):
    return MaskedPlan.of(model, trace(model, (INPUT,)).plan, Grains.parse(list(grains)))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(2, 26), st.integers(2, 6), st.data(), st.integers(0, 10**6))
def test_an_order_is_a_permutation_and_never_keeps_less(rows, columns, m, data, seed):
    n = data.draw(st.integers(1, m - 1))
    matrix = magnitudes(rows, columns, seed)
    order = best_order(matrix, m, n)
    assert sorted(order.tolist()) == list(range(columns))
    whole = columns // m * m
    assert order[whole:].tolist() == list(range(whole, columns))
    assert kept(matrix[:, order], m, n) >= kept(matrix, m, n) * (1 - 1e-5)


def test_no_single_exchange_improves_an_order():
    matrix = magnitudes(12, 16, 0)
    order = best_order(matrix, 4, 2)
    found = matrix[:, order]
    assert kept(found, 4, 2) > 1.01 * kept(matrix, 4, 2)
    for a, b in itertools.combinations(range(16), 2):
        other = found.clone()
        other[:, [a, b]] = other[:, [b, a]]
        assert kept(other, 4, 2) <= kept(found, 4, 2) * (1 + 1e-5)


def test_large_columns_side_by_side_are_spread_over_all_groups():
    matrix = torch.full((6, 16), 0.01)
    matrix[:, :8] = 1.0  # two groups of large ones: half of them would go
    found = matrix[:, best_order(matrix, 4, 2)]
    assert kept(matrix, 4, 2) < 4 * 6 + 1 < kept(found, 4, 2) == pytest.approx(8 * 6)


@pytest.mark.parametrize("columns", [1, 4, 7])
def test_less_than_two_groups_stay(columns):
    assert best_order(magnitudes(3, columns, 0), 4, 2).tolist() == list(range(columns))


def test_the_network_computes_the_same_and_patterns_lose_less(network):
    expected = network(INPUT)
    before = {name: p.clone() for name, p in network.named_parameters()}
    plan = plan_of(network)
    lost = network_loss(network, plan)
    done = permute(network, plan, (INPUT,))
    assert {one.target for one in done} == {t.name for t in plan.base.targets}
    assert all(one.after > one.before for one in done)
    torch.testing.assert_close(network(INPUT), expected, rtol=1e-4, atol=1e-5)
    assert network_loss(network, plan) < lost
    for name, p in network.named_parameters():  # reordered, not changed
        torch.testing.assert_close(p.flatten().sort().values, before[name].flatten().sort().values)


def network_loss(model, plan):
    """Magnitude that 2:4 takes from the layers of a plan."""
    lost = 0.0
    for weight in plan.weights:
        values = model.get_parameter(weight.name).detach().abs()
        mask = weight.granularity.mask(weight.canonical(values), 2)
        lost += float((weight.canonical(values) * ~mask).sum())
    return lost


def test_reordered_networks_prune_to_whole_patterns(network):
    traced = trace(network, (INPUT,))
    plan = MaskedPlan.of(network, traced.plan, Grains.parse(["nm:4"]))
    permute(network, plan, (INPUT,))
    pruner = SparsePruner(traced, plan)
    sparse = pruner.prune(pruner.policy(plan.dense // 2))
    rows = sparse.inner.weight.detach().permute(0, 2, 3, 1).reshape(-1, 4)
    assert ((rows != 0).sum(1) == 2).all()


def test_other_granularities_reorder_nothing(network):
    before = network.inner.weight.clone()
    assert permute(network, plan_of(network, ["unstructured"]), (INPUT,)) == []
    assert torch.equal(network.inner.weight, before)


class Alternating(nn.Module):
    """Weighs channels by where they are: these cannot be exchanged."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.second = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        x = self.first(x)
        return self.second(x * torch.linspace(0.1, 3.0, 8)[:, None, None]).mean((2, 3))


def test_channels_that_are_not_interchangeable_stay():
    torch.manual_seed(0)
    network = Alternating().eval()
    expected = network(INPUT)
    try:
        plan = plan_of(network)
    except InputError:
        pytest.skip("the tracer leaves such a network alone")
    permute(network, plan, (INPUT,))
    torch.testing.assert_close(network(INPUT), expected, rtol=1e-4, atol=1e-5)


def test_the_mode_of_the_network_stays(network):
    plan = plan_of(network)
    network.train()
    permute(network, plan, (INPUT,))
    assert network.training and network.norm.training
