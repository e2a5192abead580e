"""What the graph form keeps beyond evaluation at one size, and what it says it lacks."""

from __future__ import annotations

import copy
import pickle
import re
import warnings

import pytest
import torch
from networks import Stem, Tokens
from torch import Tensor, nn
from torch.nn import functional as F

import automl
from automl.graph.export import export


class Halves(Stem):
    """Its halves need the graph form; ``middle`` is done between them."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Conv2d(4, 4, 1)

    def body(self, x: Tensor) -> Tensor:
        first, second = torch.split(x, 4, 1)
        return self.middle(torch.cat([first, torch.relu(self.second(second))], 1))

    def middle(self, x: Tensor) -> Tensor:
        return x


class FunctionalDropout(Halves):
    def middle(self, x: Tensor) -> Tensor:
        return F.dropout2d(F.dropout(x, 0.5, self.training), 0.5, self.training)


class AlwaysDropping(Halves):
    def middle(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, training=True)


class StochasticDepth(Halves):
    def middle(self, x: Tensor) -> Tensor:
        return x * (torch.rand(len(x), 1, 1, 1) < 0.5) if self.training else x


class Attending(Tokens):
    """``nn.MultiheadAttention``, whose functional form has its dropout inside."""

    def __init__(self, weights: bool) -> None:
        super().__init__()
        self.weights = weights
        self.attention = nn.MultiheadAttention(12, 3, dropout=0.5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.attention(x, x, x, need_weights=self.weights)[0]
        return self.head(x.mean(1))


class Resized(Halves):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.body(self.stem(x))
        return F.interpolate(self.head(maps), size=x.shape[-2:])


class PartOfATable(Tokens):
    """Positions are added, and the halves of what comes out need the graph form."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(1, 16, 12))
        self.second = nn.Linear(6, 6)

    def body(self, x: Tensor) -> Tensor:
        first, second = torch.split(x + self.positions[:, : x.shape[1]], 6, 2)
        return torch.cat([first, torch.relu(self.second(second))], 2)


class Shuffled(Stem):
    def body(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


GENERATOR = torch.Generator().manual_seed(0)
IMAGE = torch.randn(2, 3, 8, 8, generator=GENERATOR)
TOKENS = torch.randn(4, 6, 12, generator=GENERATOR)


def slim(model: nn.Module, inputs: Tensor, says: str | None = None) -> nn.Module:
    """Half of everything in graph form, and what tracing says of the network."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        trace = automl.trace(model.eval(), inputs)
    if says is None:
        assert not found
    else:
        (warning,) = found
        assert says in str(warning.message)
    return trace.materialise.graph_form([range(g.units - g.units // 2) for g in trace.groups])


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (FunctionalDropout, IMAGE),
        (lambda: Attending(weights=False), TOKENS),
        (lambda: Attending(weights=True), TOKENS),
    ],
    ids=["functional", "attention", "attention weights"],
)
def test_dropout_by_functions_is_there_in_training_and_in_copies(make, inputs):
    torch.manual_seed(0)
    graph = slim(make(), inputs)
    expected = graph.eval()(inputs)
    copies = [copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))]
    for network in (graph, *copies):
        assert torch.equal(network.eval()(inputs), expected)
        assert not torch.equal(network.train()(inputs), network(inputs))
        assert network.state_dict().keys() == graph.state_dict().keys()


def test_a_plan_that_was_saved_says_the_same_of_dropout():
    trace = automl.trace(Attending(weights=False).eval(), TOKENS)
    read = type(trace.plan).from_json(trace.plan.to_json())
    assert read.program == trace.plan.program
    assert {"training": 0.5} in [step.kwargs.get("dropout_p") for step in read.program]


def test_dropout_that_is_always_on_stays_on():
    graph = slim(AlwaysDropping(), IMAGE)
    assert not torch.equal(graph.eval()(IMAGE), graph(IMAGE))


def test_what_happens_in_training_alone_is_named():
    slim(StochasticDepth(), IMAGE, says="in training alone")


class DroppedHeads(Attending):
    """Halves of attention's output are dropped in training, which heads have no part in."""

    def forward(self, x: Tensor) -> Tensor:
        found = super().forward(x)
        return found * (torch.rand(len(x), 1) < 0.5) if self.training else found


def test_the_layers_that_a_warning_names_can_be_excluded():
    model = DroppedHeads(weights=False).eval()
    with pytest.warns(UserWarning, match="in training alone") as found:
        automl.trace(model, TOKENS)
    names = re.search("excluding (.*) keeps", str(found[0].message))[1].split(", ")
    trace = automl.trace(model, TOKENS, exclude=names)  # which warns of nothing
    assert trace.plan.module_form and not trace.plan.graph_targets


def test_sizes_that_the_forward_makes_constant_are_named(monkeypatch):
    """Where torch finds no graph for all sizes."""
    every = []

    def closed(model, inputs, deadline, every_size=False):
        every.append(every_size)
        return export(model, inputs, deadline)

    monkeypatch.setattr("automl.graph.trace.export", closed)
    slim(Resized(), IMAGE, says="inputs of the traced sizes only; excluding stem.0")
    assert every == [False, True]


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (Halves, IMAGE),
        (Shuffled, IMAGE),
        (Resized, IMAGE),
        (PartOfATable, TOKENS),
        (lambda: Attending(weights=False), TOKENS),
        (lambda: Attending(weights=True), TOKENS),
    ],
    ids=["halves", "shuffled", "resized", "table", "attention", "attention weights"],
)
def test_the_graph_form_follows_the_sizes_of_inputs(make, inputs):
    torch.manual_seed(0)
    model = make().eval()
    trace = automl.trace(model, inputs)
    graph = trace.materialise.graph_form([range(group.units) for group in trace.groups])
    shorter = inputs.narrow(-2, 0, inputs.shape[-2] // 2)
    for given in (shorter, torch.cat([inputs, inputs], -2), shorter[:1]):
        torch.testing.assert_close(graph(given), model(given), rtol=1e-4, atol=1e-5)


class Initialised(Halves):
    """Sets its scale by the first batch that it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.is_set = nn.Parameter(torch.ones(8, 1, 1)), False

    def middle(self, x: Tensor) -> Tensor:
        if self.training and not self.is_set:
            self.scale.data.copy_(1 / x.std((0, 2, 3))[:, None, None])
            self.is_set = True
        return x * self.scale


@pytest.mark.parametrize("make", [Halves, Initialised])
def test_trying_it_in_training_leaves_the_network_as_it_was(make):
    model = make()
    before = copy.deepcopy(model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        automl.trace(model, IMAGE)
    assert not model.training and not getattr(model, "is_set", False)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_what_was_traced_must_be_what_the_network_is():
    class Pretending(Stem):
        def forward(self, x: Tensor) -> Tensor:
            found = super().forward(x)
            return found if torch.compiler.is_exporting() else 2 * found

    with pytest.raises(automl.InputError, match="something else than the network"):
        automl.trace(Pretending(), IMAGE)


def test_a_view_as_another_type_is_no_view_of_other_sizes():
    class Bits(Halves):
        def middle(self, x: Tensor) -> Tensor:
            return x.view(torch.int32).view(torch.float32)

    slim(Bits(), IMAGE)
