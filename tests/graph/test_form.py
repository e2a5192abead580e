"""Which slim networks keep the user's classes: the ones that then compute the right thing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import CASES, Stem, Tokens, conv_bn
from oracle import compare, random_units, randomise, relative_error
from torch import Tensor, nn
from torch.nn import functional as F

from automl.graph.ops import HANDLERS
from automl.graph.trace import Trace, trace

IMAGE = torch.randn(2, 3, 8, 8, dtype=torch.float64)
TOKENS = torch.randn(2, 5, 12, dtype=torch.float64)


def graph_targets(found: Trace) -> set[str]:
    return {found.groups[t].name for t in found.plan.graph_targets}


def check(found: Trace, seeds: int = 4) -> None:
    """Whatever is pruned, the slim network is the masked dense one."""
    for seed in range(seeds):
        units = random_units(found.plan, seed)
        slim = found.materialise(units)
        result = compare(slim, found.model, found.plan, units, found.example_inputs)
        assert result.error < 1e-10


class Heads(Tokens):
    """Sizes in attributes, the scale either fixed or taken from the data."""

    def __init__(self, fixed_scale: bool) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.fixed_scale = 3, 4, fixed_scale
        self.qkv, self.proj = nn.Linear(12, 36), nn.Linear(12, 12)

    def body(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, scale=0.5 if self.fixed_scale else None)
        y = y.transpose(1, 2).reshape(batch, tokens, self.num_heads * self.head_dim)
        return x + self.proj(y)


class Overwriting(nn.Module):
    """Normalises what it is given in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last, self.head = conv_bn(3, 8), conv_bn(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.sub_(0.5).mul_(2)
        return self.head(torch.relu(self.last(torch.relu(self.conv(x)))).mean((2, 3)))


def test_networks_that_write_into_their_inputs_keep_their_classes_and_the_users_inputs_stay():
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    before = images.clone()
    found = trace(randomise(Overwriting()).eval(), images)
    assert torch.equal(images, before)
    assert not graph_targets(found)


class MovingMean(Tokens):
    """Subtracts a mean that it updates whenever it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("moving", torch.zeros(12))

    def body(self, x: Tensor) -> Tensor:
        self.moving.mul_(0.9).add_(x.mean((0, 1)), alpha=0.1)
        return F.relu(x - self.moving)


def test_networks_that_write_into_their_buffers_keep_their_classes_and_their_buffers():
    model = randomise(MovingMean()).eval()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    found = trace(model, TOKENS)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert found.groups and found.plan.module_form and not graph_targets(found)


def test_attributes_follow_the_sizes_they_stand_for():
    found = trace(randomise(Heads(fixed_scale=True)), TOKENS)
    assert not found.plan.graph_targets
    slim = found.materialise([range(12), [0, 2], [1, 2, 3]])
    assert (slim.num_heads, slim.head_dim) == (2, 3)
    assert (found.model.num_heads, found.model.head_dim) == (3, 4)
    check(found)


def test_a_scale_taken_from_the_data_needs_the_graph_form_where_it_would_change():
    found = trace(randomise(Heads(fixed_scale=False)), TOKENS)
    assert graph_targets(found) == {"qkv.head_dim"}
    check(found)


def test_attributes_of_one_value_are_told_apart_by_their_order_or_not_used():
    class Square(Heads):
        """As many heads as places."""

        def __init__(self) -> None:
            super().__init__(fixed_scale=True)
            self.num_heads = self.head_dim = 4
            self.qkv, self.proj = nn.Linear(12, 48), nn.Linear(16, 12)

    found = trace(randomise(Square()), TOKENS)
    assert not found.plan.graph_targets
    check(found)

    class Swapped(Square):
        """The same with the attributes set in the other order."""

        def __init__(self) -> None:
            super().__init__()
            del self.num_heads, self.head_dim
            self.head_dim = 4
            self.num_heads = 4

    found = trace(randomise(Swapped()), TOKENS)
    assert {"qkv.head", "qkv.head_dim"} <= graph_targets(found)
    check(found)


def test_attributes_that_mean_something_else_are_left_alone():
    class Coincidence(Heads):
        """Four places a head, and a window of four."""

        def __init__(self) -> None:
            super().__init__(fixed_scale=True)
            self.window = 4

        def body(self, x: Tensor) -> Tensor:
            return super().body(x) + F.avg_pool1d(x.mT, self.window, 1).mean(2)[:, None]

    found = trace(randomise(Coincidence()), TOKENS)
    check(found)
    slim = found.materialise([range(12), [0, 2], [1, 2, 3]])
    assert getattr(slim, "window", 4) == 4


@pytest.mark.parametrize("held", [torch.ones(5, 5), np.ones((3, 3)), [1, 2], torch.ones(1)])
def test_attributes_that_are_no_numbers_are_not_compared_with_sizes(held):
    model = CASES["Shuffle"].make()
    for module in model.modules():
        module.held = held
    found = trace(randomise(model), IMAGE)
    assert {t.name for t in found.groups} == set(CASES["Shuffle"].targets)


def test_only_the_targets_that_a_written_size_depends_on_need_the_graph_form():
    found = trace(randomise(CASES["WrittenSize"].make()), IMAGE)
    assert graph_targets(found) == {"a.0"}
    only_b = found.materialise([range(6), [0, 3]])
    assert type(only_b) is type(found.model)
    both = found.materialise([[0, 1], [0, 3]])
    assert isinstance(both, torch.fx.GraphModule)


def test_halves_that_must_stay_equal_are_not_mistaken_for_ones_that_follow():
    found = trace(randomise(CASES["Chunk"].make()), IMAGE)
    assert {"stem.0", "stem.0#2"} <= graph_targets(found)
    units = [[0], [1, 2, 3], [0, 1], [0]]
    slim = found.materialise(units)
    assert compare(slim, found.model, found.plan, units, (IMAGE,)).error < 1e-12


@pytest.mark.parametrize("narrow, wide", [(16, 32), (24, 32), (64, 96), (64, 128)])
def test_code_that_compares_widths_needs_the_graph_form(narrow, wide):
    class Fitting(nn.Module):
        """Adds what fits, which only narrower layers can."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, narrow, 3), nn.Conv2d(narrow, wide, 3, padding=1)
            self.c = nn.Conv2d(wide, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.a(x))
            y = F.relu(self.b(x))
            return self.c(y + x if x.shape == y.shape else y).mean((2, 3))

    found = trace(randomise(Fitting()), IMAGE)
    units = [range(narrow // 2)] * 2
    slim = found.materialise(units)
    assert compare(slim, found.model, found.plan, units, (IMAGE,)).error < 1e-12


def test_a_head_of_zeros_hides_nothing():
    """Fresh networks often end in zeros; a wrong form would then go unnoticed."""

    class Misaligned(Stem):
        def __init__(self) -> None:
            super().__init__(width=8)
            self.half, self.back = 4, conv_bn(8, 8)

        def body(self, x: Tensor) -> Tensor:
            return self.back(torch.cat([x[:, self.half :], x[:, : self.half]], 1))

    model = Misaligned()
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    found = trace(randomise(model), IMAGE)
    check(found)
    zeroed = Misaligned().double().eval()
    nn.init.zeros_(zeroed.head.weight)
    nn.init.zeros_(zeroed.head.bias)
    again = trace(zeroed, IMAGE)
    assert graph_targets(again) == graph_targets(found)
    assert again.plan.module_form


def test_outputs_that_say_nothing_leave_the_graph_form():
    class Silent(Stem):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * float("nan")

    found = trace(randomise(Silent()), IMAGE)
    assert not found.plan.module_form
    slim = found.materialise([[0, 1]])
    assert isinstance(slim, torch.fx.GraphModule)


def test_targets_of_which_no_form_runs_are_named(monkeypatch):
    def without_sizes(step):
        return step.labels("self").reshape(step.out_shape)

    class Interleaved(Stem):
        def body(self, x: Tensor) -> Tensor:
            b, _, h, w = x.shape
            return x.view(b, 2, 4, h, w).transpose(1, 2).reshape(b, 8, h, w)

    for name in ("view", "reshape"):
        monkeypatch.setitem(HANDLERS, name, without_sizes)
    with pytest.warns(UserWarning, match="few units are left of stem.0 do not run"):
        trace(randomise(Interleaved()), IMAGE)


def test_code_that_fails_in_any_way_when_it_does_not_follow_is_survived():
    class Picky(Stem):
        """Raises what torch would not."""

        def body(self, x: Tensor) -> Tensor:
            if x.shape[1] != 8:
                raise KeyError(x.shape[1])
            return x

    found = trace(randomise(Picky()), IMAGE)
    assert graph_targets(found) == {"stem.0"} or not found.plan.module_form
    check(found)


@pytest.mark.parametrize("name", ["Chunk", "FusedQkvSdpa", "MultiheadAttention", "WrittenSize"])
def test_the_dense_network_comes_out_of_both_forms(name):
    found = trace(randomise(CASES[name].make()), CASES[name].inputs())
    everything = [range(t.units) for t in found.groups]
    with torch.no_grad():
        expected = found.model(*found.example_inputs)
        for slim in (
            found.materialise(everything),
            found.materialise.module_form(everything),
            found.materialise.graph_form(everything),
        ):
            assert relative_error(slim(*found.example_inputs), expected) < 1e-12
    assert type(found.materialise(everything)) is type(found.model)
