"""Networks that are traced alike, and those that only look alike."""

from __future__ import annotations

import copy
from types import MethodType

import pytest
import torch
from torch import nn

from automl.graph.identity import identity

X = (torch.zeros(2, 4),)


class Scaled(nn.Module):
    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.fc, self.out, self.factor = nn.Linear(4, 4), nn.Linear(4, 4), factor

    def forward(self, x):
        return self.out(self.fc(x)) * self.factor


def network(factor: float = 1.0) -> nn.Module:
    torch.manual_seed(0)
    return Scaled(factor)


def key(model: nn.Module, inputs=X) -> str:
    found = identity(model, inputs)
    assert found is not None
    return found.key


def other_weights(net):
    with torch.no_grad():
        net.fc.weight[0, 0] += 1


def equal_weights(net):
    net.out.load_state_dict(net.fc.state_dict())


def tied_weights(net):
    net.out.weight, net.out.bias = net.fc.weight, net.fc.bias


def hooked(net):
    net.fc.register_forward_hook(lambda module, args, output: output * 2)


def an_attribute(net):
    net.factor = 2.0


def one_of_a_weight(net):
    net.fc.weight.is_special = True


def training(net):
    net.train()


def forwarded(self, x):
    return self.out(x)


def another_forward(net):
    net.forward = MethodType(forwarded, net)


CHANGES = [
    other_weights, equal_weights, tied_weights, hooked, an_attribute, one_of_a_weight, training,
    another_forward,
]  # fmt: skip


def changed(change) -> nn.Module:
    net = network().eval()
    change(net)
    return net


def test_two_of_one_factory_are_the_same():
    assert key(network()) == key(network()) == key(copy.deepcopy(network()))


def test_whatever_differs_is_seen():
    keys = [key(network().eval()), *(key(changed(change)) for change in CHANGES)]
    assert len(set(keys)) == len(keys)


def test_views_of_one_memory_are_not_copies():
    whole = torch.ones(8)
    nets = [network(), network(), network()]
    for net, buffers in zip(
        nets, [(whole[:4], whole[4:]), (whole[:4], whole[:4]), (whole[:4], torch.ones(4))],
        strict=True,
    ):  # fmt: skip
        for name, value in zip("ab", buffers, strict=True):
            net.register_buffer(name, value)
    assert len(set(map(key, nets))) == 3


@pytest.mark.parametrize(
    "inputs",
    [(torch.zeros(3, 4),), (torch.zeros(2, 4).double(),), (torch.zeros(2, 4), 1), ({"x": X[0]},)],
)
def test_inputs_of_another_kind_count(inputs):
    assert key(network(), inputs) != key(network())


def test_values_of_inputs_do_not_count():
    assert key(network(), (torch.ones(2, 4),)) == key(network())


def test_a_class_written_anew_is_another_one(monkeypatch):
    before = key(network())
    monkeypatch.setattr(Scaled, "forward", lambda self, x: x)
    assert key(network()) != before


def test_one_forward_put_in_by_hand_is_not_another():
    nets = [network(), network(), network()]
    for net, function in zip(nets, (forwarded, forwarded, Scaled.forward), strict=True):
        net.forward = MethodType(function, net)
    first, same, other = map(key, nets)
    assert first == same != other


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile itself
def test_what_is_compiled_is_not_told():
    net = network()
    net.fc.compile()
    assert identity(net, X) is None


def test_what_cannot_be_pickled_is_not_told_apart():
    net = network()
    net.lines = (line for line in "ab")
    assert identity(net, X) is None
