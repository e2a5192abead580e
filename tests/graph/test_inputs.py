"""Networks that take lists, tuples and dicts, and hooks that change what networks pass on."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import automl
from automl.plan import IndexPlan


class Mapped(nn.Module):
    """Reads one value of a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.out(torch.relu(self.into(batch["x"])))


class Nested(nn.Module):
    """Reads a pair that holds a list, and a dict; its halves need the graph form."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.out = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, pair, more):
        one, (other, scale) = pair
        hidden = torch.relu(self.one(one)) + scale * self.other(other)
        first, second = torch.split(hidden, 8, 1)
        return {"out": self.out(torch.cat([first, second * more["a gate"]], 1))}


def batch_of(kind: str, size: int = 4) -> tuple:
    if kind == "dict":
        return ({"unused": torch.randn(size, 3), "x": torch.randn(size, 8)},)
    one, other, gate = torch.randn(size, 8), torch.randn(size, 8), torch.rand(size, 1)
    return ((one, [other, torch.tensor(2.0)]), {"a gate": gate})


@pytest.mark.parametrize(("kind", "make"), [("dict", Mapped), ("nested", Nested)])
def test_inputs_may_be_lists_tuples_and_dicts(kind, make):
    torch.manual_seed(0)
    model = make().eval()
    trace = automl.trace(model, batch_of(kind))
    assert trace.plan.dynamic_batch and trace.plan.module_form
    assert trace.macs == sum(m.weight.numel() for m in model.children())
    assert IndexPlan.from_json(trace.plan.to_json()).program == trace.plan.program
    graph = trace.materialise.graph_form([range(group.units) for group in trace.groups])
    inputs = batch_of(kind, size=7)
    expected = model(*inputs)
    for network in (graph, copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
        torch.testing.assert_close(network(*inputs), expected)
    slim = automl.prune(model, batch_of(kind), 0.5)
    assert isinstance(slim, make) == (kind == "dict")
    slim(*inputs)


def test_inputs_of_other_classes_are_refused_in_a_line():
    class Pair:
        def __init__(self) -> None:
            self.x = torch.randn(2, 8)

    class Reads(Mapped):
        def forward(self, pair):
            return super().forward({"x": pair.x})

    with pytest.raises(automl.InputError) as caught:
        automl.trace(Reads(), (Pair(),))
    assert "\n" not in str(caught.value)


def test_a_search_takes_dicts():
    torch.manual_seed(0)
    inputs = batch_of("dict", size=16)
    searcher = automl.Searcher(
        Mapped(), inputs, lambda net: -net(*inputs).square().mean().item(), budget={"macs": 0.5},
        strategy="random",
    )  # fmt: skip
    assert searcher.search(trials=3, seed=0).apply()(*inputs).shape == (16, 4)


def convolutions() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(16, 8, 3), nn.Flatten(),
        nn.Linear(1152, 3),
    )  # fmt: skip


def doubled_in_place(module, inputs, output):
    output.mul_(2)


HOOKS = {
    "output": (lambda m: m[0].register_forward_hook(lambda _, x, y: y * 2)),
    "output in place": (lambda m: m[0].register_forward_hook(doubled_in_place)),
    "output of dropout": (lambda m: m[2].register_forward_hook(lambda _, x, y: y * 2)),
    "input": (lambda m: m[3].register_forward_pre_hook(lambda _, x: x[0] * 2)),
    "input with keywords": (
        lambda m: m[3].register_forward_pre_hook(
            lambda _, args, kwargs: ((args[0] * 2,), kwargs), with_kwargs=True
        )
    ),
    "the network's output": (lambda m: m.register_forward_hook(lambda _, x, y: y * 2)),
    "nothing": (lambda m: m[0].register_forward_hook(lambda _, x, y: y)),
}


@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_that_change_values_do_so_once(hook):
    model, images = convolutions().eval(), torch.randn(4, 3, 16, 16)
    HOOKS[hook](model)
    trace = automl.trace(model, images)
    everything = [range(group.units) for group in trace.groups]
    for slim in (trace.materialise(everything), trace.materialise.graph_form(everything)):
        torch.testing.assert_close(slim(images), model(images))
    assert isinstance(automl.prune(model, images, 0.5), nn.Sequential)


def test_hooks_that_only_look_are_called_in_both_forms():
    model, images = convolutions().eval(), torch.randn(4, 3, 16, 16)
    seen = []
    model[0].register_forward_hook(lambda _, x, y: seen.append(tuple(y.shape)))
    trace = automl.trace(model, images)
    seen.clear()
    trace.materialise.graph_form([range(2) for _ in trace.groups])(images)
    assert seen == [(4, 2, 14, 14)]


def test_what_is_noted_on_parameters_comes_along():
    model = convolutions()
    model[0].weight.no_weight_decay = True
    slim = automl.prune(model, torch.randn(4, 3, 16, 16), 0.5)
    assert slim[0].weight.no_weight_decay and not hasattr(slim[0].bias, "no_weight_decay")
