"""Cells of a sweep have one network: it is traced once."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from automl.commands import network

CONFIG = {"exclude": [], "trace_deadline_s": 60, "model": {"kwargs": {}}}


class Net(nn.Module):
    def __init__(self, known: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.known = nn.Linear(4, 16), nn.Linear(16, 3), known

    def forward(self, x):
        x = torch.relu(self.first(x))
        return self.last(x if self.known else x.cummax(1).values)


@pytest.fixture
def traced(monkeypatch):
    """Counts networks that are traced, with nothing remembered at first."""
    monkeypatch.setattr(network, "_remembered", type(network._remembered)())
    original, seen = network.trace, []

    def counted(model, *args, **kwargs):
        seen.append(model)
        return original(model, *args, **kwargs)

    monkeypatch.setattr(network, "trace", counted)
    return seen


def structure(net: nn.Module, /, **settings: object):
    return network.structure(net, (torch.zeros(2, 4),), {**CONFIG, **settings})


def test_the_same_network_is_traced_once_and_each_trace_holds_its_own(traced):
    models = [Net().train(), Net().train()]
    first, second = map(structure, models)
    assert traced == models[:1]
    assert first.plan is second.plan
    assert [first.model, second.model] == models
    assert not second.model.training
    assert second.example_inputs[0].shape == (2, 4)


def test_what_is_excluded_counts(traced):
    found = [structure(Net(), exclude=names) for names in ([], ["first"], [])]
    assert len(traced) == 2
    assert [len(trace.targets) for trace in found] == [1, 0, 1]


@pytest.mark.parametrize(
    "settings", [{"model": {"kwargs": {"skip": True}}}, {"trace_deadline_s": 30}]
)
def test_other_settings_of_the_network_or_the_tracing_count(traced, settings):
    """A factory may have set what no attribute of the network tells."""
    structure(Net())
    structure(Net(), **settings)
    assert len(traced) == 2


def test_warnings_are_given_again(traced):
    for _ in range(2):
        with pytest.warns(UserWarning, match="not known"):
            structure(Net(known=False))
    assert len(traced) == 1


def test_nothing_is_remembered_of_a_network_that_fails(traced):
    class Failing(Net):
        def forward(self, x):
            raise RuntimeError("no")

    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            structure(Failing())
    assert len(traced) == 2


def test_old_ones_are_forgotten(traced):
    with warnings.catch_warnings():
        for _ in range(2):
            for units in range(network._MOST_REMEMBERED + 1):
                net = Net()
                net.units = units
                structure(net)
    assert len(network._remembered) == network._MOST_REMEMBERED
    assert len(traced) == 2 * (network._MOST_REMEMBERED + 1)
