"""Handwritten networks, one for every way channels are coupled: pruned equals zero-masked.

Every network is pruned at random; the result must equal the dense network in which everything that
writes a removed unit is zero (``tests/oracle.py``, which asks neither the tracer's program nor its
graph form), and the counted parameters and MACs must be those of the network that came out.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracle import (
    RemainingStatistics,
    counted_macs,
    doubled,
    masked_dense,
    random_units,
    randomise,
    relative_error,
)
from torch import nn
from torch.nn import functional as F

import automl
from automl.graph.materialise import Materialiser
from automl.plan import IndexPlan


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.a, self.b = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.bn(self.stem(x)))
        return self.head((x + self.b(torch.relu(self.a(x)))).mean((2, 3)))


class Concatenated(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)
        self.c, self.head = nn.Conv2d(10, 7, 1), nn.Linear(7 * 4, 5)

    def forward(self, x):
        x = torch.relu(self.a(x))
        x = torch.relu(self.c(torch.cat([x, torch.relu(self.b(x))], 1)))
        return self.head(F.adaptive_avg_pool2d(x, 2).flatten(1))


class Separable(nn.Module):
    """Depthwise, channel multiplier, grouped, squeeze-excite."""

    def __init__(self):
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8)
        self.twice, self.grouped = nn.Conv2d(8, 16, 3, groups=8), nn.Conv2d(16, 12, 1, groups=4)
        self.squeeze, self.excite = nn.Conv2d(12, 6, 1), nn.Conv2d(6, 12, 1)
        self.head = nn.Conv2d(12, 5, 1)

    def forward(self, x):
        x = torch.relu(self.grouped(self.twice(torch.relu(self.depthwise(self.stem(x))))))
        gate = self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))).sigmoid()
        return self.head(x * gate).mean((2, 3))


class Shuffled(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.a = nn.Conv2d(3, 12, 1), nn.Conv2d(6, 6, 1)
        self.head = nn.Conv2d(12, 5, 1)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        kept, worked = x.chunk(2, 1)
        x = torch.cat([kept, torch.relu(self.a(worked))], 1)
        batch, _, height, width = x.shape
        x = x.view(batch, 2, 6, height, width).transpose(1, 2).reshape(batch, 12, height, width)
        return self.head(x).mean((2, 3))


class Transposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.up = nn.Conv2d(3, 8, 3, padding=1), nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.slope, self.big = nn.PReLU(6), nn.Conv2d(6, 16, 1)
        self.shuffle, self.norm = nn.PixelShuffle(2), nn.GroupNorm(2, 4)
        self.head = nn.Conv2d(4, 5, 1)

    def forward(self, x):
        x = self.slope(self.up(torch.relu(self.a(x))))
        return self.head(self.norm(self.shuffle(self.big(x)))).mean((2, 3))


class FusedAttention(nn.Module):
    """Fused QKV, handwritten softmax, position embedding, class token, GLU."""

    def __init__(self, fused_kernel=False):
        super().__init__()
        self.embed, self.fused_kernel = nn.Linear(6, 16), fused_kernel
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.position = nn.Parameter(torch.randn(1, 5, 16))
        self.norm, self.qkv, self.out = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.gate, self.back = nn.Linear(16, 24), nn.Linear(12, 16)
        self.last, self.head = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x):
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), self.embed(x)], 1) + self.position
        batch, tokens, _ = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, tokens, 3, 4, 4).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        if self.fused_kernel:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = (q * 0.5 @ k.transpose(-2, -1)).softmax(-1) @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, 16))
        a, b = self.gate(x).chunk(2, -1)
        x = x + self.back(a * F.silu(b))
        return self.head(self.last(x)[:, 0])


class SplitAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 16)
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.out, self.head = nn.Linear(16, 16), nn.Linear(16, 11, bias=False)

    def forward(self, x):
        x = self.embed(x)

        def heads(y):
            return y.view(y.shape[0], y.shape[1], 2, 8).transpose(1, 2)

        mixed = F.scaled_dot_product_attention(heads(self.q(x)), heads(self.k(x)), heads(self.v(x)))
        return self.head(x + self.out(mixed.transpose(1, 2).flatten(2)))


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(6, 8), nn.Linear(8, 5)
        # A bias here would revive channels that are zero, so that masking would not be removing.
        self.tokens, self.back = nn.Linear(4, 10, bias=False), nn.Linear(10, 4, bias=False)

    def forward(self, x):
        x = self.embed(x)
        x = x + self.back(F.gelu(self.tokens(x.transpose(1, 2)))).transpose(1, 2)
        return self.head(x.mean(1))


class Shared(nn.Module):
    """One layer used twice, and channels padded with zeros on a shortcut."""

    def __init__(self):
        super().__init__()
        self.stem, self.twice = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.wide, self.head = nn.Conv2d(6, 10, 3, padding=1), nn.Linear(10, 5)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(self.twice(torch.relu(self.twice(x))))
        y = self.wide(x) + F.pad(x, (0, 0, 0, 0, 2, 2))
        return self.head(y.mean((2, 3)))


IMAGE, TOKENS, WORDS = torch.randn(1, 3, 8, 8), torch.randn(2, 4, 6), torch.arange(8).view(2, 4)
NETWORKS = {
    "residual": (Residual, IMAGE, {"channel"}),
    "concat": (Concatenated, IMAGE, {"channel"}),
    "separable": (Separable, IMAGE, {"channel"}),
    "shuffle": (Shuffled, IMAGE, {"channel"}),
    "transposed": (Transposed, IMAGE, {"channel"}),
    "fused_attention": (FusedAttention, TOKENS, {"channel", "head", "head_dim"}),
    "sdpa": (lambda: FusedAttention(True), TOKENS, {"channel", "head", "head_dim"}),
    "split_attention": (SplitAttention, WORDS, {"channel", "head", "head_dim"}),
    "mixer": (Mixer, TOKENS, {"channel"}),
    "shared": (Shared, IMAGE, {"channel"}),
    "multihead": (
        lambda: nn.Sequential(
            nn.Linear(6, 8), nn.TransformerEncoderLayer(8, 2, 12, 0.0, batch_first=True)
        ),
        TOKENS,
        {"channel", "head", "head_dim"},
    ),
}


@pytest.fixture(scope="module", params=sorted(NETWORKS))
def traced(request):
    make, example, kinds = NETWORKS[request.param]
    net = randomise(make().eval())
    return automl.trace(net, doubled(example)), kinds


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_pruned_equals_zero_masked(traced, seed):
    trace, _ = traced
    units = random_units(trace.plan, seed)
    slim = trace.materialise(units)
    masked = masked_dense(trace.model, trace.plan, units)
    with torch.no_grad(), RemainingStatistics():
        expected = masked(*trace.example_inputs)
    with torch.no_grad():
        found = slim(*trace.example_inputs)
    assert relative_error(found, expected) < 1e-9


def test_kinds_of_targets_are_found(traced):
    trace, kinds = traced
    assert {target.kind for target in trace.targets} == kinds


def test_counts_are_those_of_the_slim_network(traced):
    trace, _ = traced
    for seed in range(3):
        units = random_units(trace.plan, seed)
        kept = np.array([len(u) for u in units])
        slim = trace.materialise(units)
        assert sum(p.numel() for p in slim.parameters()) == int(trace.plan.params(kept))
        assert counted_macs(slim, trace.example_inputs) == int(trace.plan.macs(kept))


def test_any_batch_size_runs(traced):
    trace, _ = traced
    slim = trace.materialise(random_units(trace.plan, 0))
    with torch.no_grad():
        once = slim(trace.example_inputs[0])
        more = slim(torch.cat([trace.example_inputs[0]] * 3))
    torch.testing.assert_close(more[: len(once)], once)


def test_a_plan_read_from_json_makes_the_same_network(traced):
    trace, _ = traced
    again = IndexPlan.from_json(trace.plan.to_json())
    units = random_units(trace.plan, 1)
    with torch.no_grad():
        one = trace.materialise(units)(*trace.example_inputs)
        other = Materialiser(trace.model, again)(units)(*trace.example_inputs)
    assert torch.equal(one, other)


def test_slim_networks_train_without_touching_the_dense_one(traced):
    trace, _ = traced
    before = {name: tensor.clone() for name, tensor in trace.model.state_dict().items()}
    slim = trace.materialise(random_units(trace.plan, 2)).train()
    optimiser = torch.optim.SGD(slim.parameters(), lr=0.1)
    slim(*trace.example_inputs).square().mean().backward()
    assert all(p.grad is not None for p in slim.parameters() if p.requires_grad)
    optimiser.step()
    slim.eval()
    assert all(torch.equal(t, before[n]) for n, t in trace.model.state_dict().items())


class CountsItsBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.head = nn.Linear(6, 24), nn.Linear(8, 5)

    def forward(self, x):
        q, k, v = self.qkv(x).view(len(x), 4, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.head(mixed.transpose(1, 2).flatten(2).mean(1))


def test_a_batch_size_made_constant_is_said():
    with pytest.warns(UserWarning, match="batch size a constant"):
        trace = automl.trace(CountsItsBatch().eval(), TOKENS)
    assert not trace.plan.dynamic_batch
