"""Taking a program up where another network has left it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import random_units
from torch import Tensor, nn

from automl.graph.prefix import Cut, Prefixes, affordable
from automl.graph.trace import Trace, trace


def counts(units) -> np.ndarray:
    return np.array([len(some) for some in units])


def layers(*modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(*modules)


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def prefixes_of(model: nn.Module, **settings) -> tuple[Trace, Prefixes]:
    found = trace(model.eval(), torch.randn(2, 3, 8, 8))
    return found, Prefixes(found.model, found.plan, **settings)


def test_a_chain_is_cut_before_each_layer_but_the_first():
    found, prefixes = prefixes_of(
        layers(conv(3, 8), nn.ReLU(), conv(8, 8), nn.ReLU(), conv(8, 8), nn.ReLU(), conv(8, 4))
    )
    calls = [at for at, step in enumerate(found.plan.program) if step.op == "call_module"]
    assert [cut.position for cut in prefixes.cuts] == calls[1:3]  # the first has its effect at 0
    assert all(len(cut.live) == 1 for cut in prefixes.cuts)
    macs = found.plan.layer_macs(found.plan.dense)
    assert [cut.work for cut in prefixes.cuts] == [macs[0], macs[0] + macs[1]]


class WrittenTo(nn.Module):
    """What the second layer reads is changed in place after it."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = conv(3, 8), conv(8, 8), conv(8, 4), conv(8, 4)
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.a(x))
        view = x.view(x.shape)
        y = self.b(x)
        x = view.relu_() if self.in_place else view.relu()
        return self.c(y) + self.d(x)


@pytest.mark.parametrize("in_place", [False, True])
def test_there_is_no_cut_where_a_kept_value_changes_later(in_place):
    found, prefixes = prefixes_of(WrittenTo(in_place))
    at = next(i for i, step in enumerate(found.plan.program) if step.target == "b")
    assert (at in {cut.position for cut in prefixes.cuts}) == (not in_place)


def test_a_layer_that_is_called_twice_is_not_torn_apart():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = conv(3, 8), conv(8, 8), conv(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.b(torch.relu(self.a(x)))
            return self.b(torch.relu(self.c(torch.relu(x))))

    found, prefixes = prefixes_of(Twice())
    program = found.plan.program
    first, last = (i for i, step in enumerate(program) if step.target == "b")
    assert not any(first < cut.position <= last for cut in prefixes.cuts)


def test_steps_that_belong_together_stay_together():
    model = layers(conv(3, 8), nn.ReLU(), conv(8, 8), nn.ReLU(), conv(8, 4))
    found, free = prefixes_of(model)
    names = [step.name for step in found.plan.program]
    first, last = names.index(free.cuts[0].live[0]), len(names) - 2
    _, bound = prefixes_of(model, together=[(names[first], names[last])])
    assert free.cuts and not [c for c in bound.cuts if first < c.position <= last]


def test_networks_of_the_same_units_differ_nowhere():
    found, prefixes = prefixes_of(layers(conv(3, 8), nn.ReLU(), conv(8, 4)))
    units = random_units(found.plan, 0)
    assert prefixes.first_difference(units, [list(some) for some in units]) == len(
        found.plan.program
    )


cuts = st.lists(st.integers(1, 99), min_size=0, max_size=12, unique=True).map(
    lambda places: tuple(
        Cut(at, (f"v{at}", "shared"), 1 + at % 3, 10 * at) for at in sorted(places)
    )
)


@given(cuts, st.floats(0, 2000))
def test_cuts_that_are_kept_fit_and_serve_all_targets_behind_them(some, most):
    sizes = {f"v{at}": 10.0 * (1 + at % 7) for at in range(100)} | {"shared": 25.0}
    kept = affordable(some, sizes, most)
    assert sum(sizes[n] for n in {n for cut in kept for n in cut.live}) <= most
    assert [cut.position for cut in kept] == sorted(cut.position for cut in kept)
    assert {(c.position, c.live, c.work) for c in kept} <= {
        (c.position, c.live, c.work) for c in some
    }
    if kept:
        behind = sum(cut.targets for cut in some if cut.position >= kept[0].position)
        assert sum(cut.targets for cut in kept) == behind
    everything = sum(sizes[n] for n in {n for cut in some for n in cut.live})
    if most >= everything:
        assert kept == some


def test_the_cut_that_saves_least_for_its_size_goes_first():
    some = (Cut(1, ("a",), 1, 100), Cut(2, ("b",), 1, 110), Cut(3, ("c",), 1, 300))
    kept = affordable(some, {"a": 10, "b": 10, "c": 10}, 20)
    assert [cut.position for cut in kept] == [1, 3]
    assert kept[0].targets == 2  # those of the one that went start here
