"""Slim networks are networks of their own, in the user's classes or as graph modules."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import warnings
import weakref

import numpy as np
import pytest
import torch
from networks import CASES, Fused, Residual, Split, TiedEmbedding, UNet, WrittenSize, conv_bn
from oracle import compare, random_units, randomise, relative_error
from torch import Tensor, nn
from torch.nn import functional as F

from automl.graph.materialise import Materialiser
from automl.graph.trace import Trace, trace
from automl.plan import IndexPlan
from automl.pruning.masks import attach
from automl.types import InputError


@pytest.fixture(scope="module", params=["modules", "graph"])
def slim_and_dense(request) -> tuple[nn.Module, Trace]:
    """A slim network in either form."""
    name = "Residual" if request.param == "modules" else "Split"
    found = trace(randomise(CASES[name].make()), CASES[name].inputs())
    slim = found.materialise(random_units(found.plan, 0))
    assert isinstance(slim, torch.fx.GraphModule) == (request.param == "graph")
    return slim, found


def run(model: nn.Module, found: Trace) -> Tensor:
    with torch.no_grad():
        return model(*found.example_inputs)


# ---- what it shares with the dense network: nothing that can change


def test_no_tensor_shares_memory_with_the_dense_network(slim_and_dense):
    slim, found = slim_and_dense
    dense = {t.untyped_storage().data_ptr() for t in found.model.state_dict().values()}
    assert not dense & {t.untyped_storage().data_ptr() for t in slim.state_dict().values()}


def test_training_it_leaves_the_dense_network_as_it_was(slim_and_dense):
    slim, found = copy.deepcopy(slim_and_dense[0]).train(), slim_and_dense[1]
    before = {name: tensor.clone() for name, tensor in found.model.state_dict().items()}
    optimiser = torch.optim.SGD(slim.parameters(), lr=0.1)
    slim(*found.example_inputs).square().sum().backward()
    assert all(p.grad is not None for p in slim.parameters())
    optimiser.step()
    assert all(torch.equal(t, before[n]) for n, t in found.model.state_dict().items())
    assert all(p.grad is None for p in found.model.parameters())


def test_two_slim_networks_share_nothing_either():
    found = trace(Residual().eval(), torch.randn(2, 3, 8, 8))
    units = random_units(found.plan, 0)
    one, other = found.materialise(units), found.materialise(units)
    one.stem[0].register_forward_hook(lambda *_: None)
    one.stem[0].weight.data.zero_()
    assert not other.stem[0]._forward_hooks
    assert not found.model.stem[0]._forward_hooks
    assert other.stem[0].weight.abs().sum() > 0
    assert one.stem._modules is not other.stem._modules


def test_the_dense_network_computes_the_same_after_many(slim_and_dense):
    _, found = slim_and_dense
    before = run(found.model, found)
    for seed in range(3):
        found.materialise(random_units(found.plan, seed))
    assert torch.equal(run(found.model, found), before)


def test_it_is_freed_as_soon_as_nobody_needs_it():
    found = trace(RefersToItself().eval(), torch.randn(2, 3, 8, 8))
    gc.collect()
    gc.disable()
    try:
        slim = found.materialise(random_units(found.plan, 0))
        weight = weakref.ref(slim.a[0].weight)
        slim.call = slim.blocks = slim.named = None  # its own cycle, as in the dense network
        del slim
        assert weight() is None
    finally:
        gc.enable()


# ---- what it keeps


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("network", [Residual, Split])
def test_the_mode_is_the_dense_networks_at_the_time(network, training):
    model = network().eval()
    found = trace(model, torch.randn(2, 3, 8, 8))
    materialise = Materialiser(model, found.plan)
    model.train(training)
    slim = materialise(random_units(found.plan, 0))
    assert all(module.training == training for module in slim.modules())


@pytest.mark.parametrize("network", [Residual, Split])
def test_frozen_parameters_stay_frozen(network):
    model = network().eval()
    model.stem[0].weight.requires_grad_(False)
    found = trace(model, torch.randn(2, 3, 8, 8))
    slim = found.materialise(random_units(found.plan, 0))
    assert {n: p.requires_grad for n, p in slim.named_parameters()} == {
        n: p.requires_grad for n, p in model.named_parameters()
    }


def test_it_keeps_the_users_classes_and_their_sizes():
    found = trace(Residual().eval(), torch.randn(2, 3, 8, 8))
    units = random_units(found.plan, 0)
    slim = found.materialise(units)
    assert [type(m) for m in slim.modules()] == [type(m) for m in found.model.modules()]
    for name, module in slim.named_modules():
        if isinstance(module, nn.Conv2d):
            out, into = module.weight.shape[:2]
            assert (module.out_channels, module.in_channels) == (out, into), name
        if isinstance(module, nn.BatchNorm2d):
            assert module.num_features == len(module.running_mean), name
    assert "Conv2d(3, " + str(len(units[0])) in str(slim)


def test_weights_changed_in_place_and_buffers_replaced_are_taken_as_they_are():
    model = Residual().eval()
    found = trace(model, torch.randn(2, 3, 8, 8))
    units = random_units(found.plan, 0)
    found.materialise(units)
    model.double()  # replaces every buffer
    with torch.no_grad():
        model.stem[0].weight.fill_(2.0)
    slim = found.materialise(units)
    assert all(
        t.dtype == torch.float64 for t in slim.state_dict().values() if t.is_floating_point()
    )
    assert (slim.stem[0].weight == 2).all()


def test_shared_weights_stay_shared():
    found = trace(TiedEmbedding().eval(), torch.randint(11, (2, 6)))
    slim = found.materialise(random_units(found.plan, 0))
    assert slim.head.weight is slim.embed.weight
    assert slim.state_dict().keys() == found.model.state_dict().keys()
    graph = found.materialise.graph_form(random_units(found.plan, 0))
    assert graph.head.weight is graph.embed.weight


def test_hooks_come_along():
    model = Residual().eval()
    calls = []
    model.stem[0].register_forward_hook(lambda module, *_: calls.append(module))
    found = trace(model, torch.randn(2, 3, 8, 8))
    calls.clear()
    slim = found.materialise(random_units(found.plan, 0))
    slim(torch.randn(1, 3, 8, 8))
    assert calls == [slim.stem[0]]


class RefersToItself(nn.Module):
    """Lists of modules, a bound method and a parent, all outside of ``_modules``."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv_bn(3, 6), conv_bn(6, 6), nn.Linear(6, 5)
        self.blocks = [self.a, self.b]
        self.named = {"head": (self.head, 1)}
        self.call = self._call
        self.cache = torch.ones(1)

    def _call(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.named["head"][0](x.mean((2, 3))) * self.cache

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


def test_references_outside_the_module_tree_are_followed():
    model = randomise(RefersToItself())
    found = trace(model, torch.randn(2, 3, 8, 8).double())
    assert found.plan.module_form
    assert not found.plan.graph_targets
    slim = found.materialise(random_units(found.plan, 0))
    assert slim.blocks == [slim.a, slim.b]
    assert slim.named["head"][0] is slim.head
    assert slim.call.__self__ is slim
    assert slim.cache is not model.cache
    assert model.blocks == [model.a, model.b]


def test_modules_that_keep_their_own_list_of_weights_get_a_new_one():
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.after = nn.Linear(6, 8), nn.Linear(8, 10)
            self.lstm, self.head = nn.LSTM(8, 8, batch_first=True), nn.Linear(10, 5)

        def forward(self, x: Tensor) -> Tensor:
            x, _ = self.lstm(F.relu(self.before(x)))
            return self.head(F.relu(self.after(x)))

    with pytest.warns(UserWarning, match=r"lstm: operator aten.lstm.input is not known"):
        found = trace(Recurrent().eval(), torch.randn(2, 4, 6))
    assert [t.name for t in found.groups] == ["after"]
    slim = found.materialise([[0, 3, 4]])
    assert type(slim) is Recurrent
    assert all(w is p for w, p in zip(slim.lstm._flat_weights, slim.lstm.parameters(), strict=True))
    slim(torch.randn(2, 4, 6)).sum().backward()
    assert slim.lstm.weight_ih_l0.grad is not None
    assert found.model.lstm.weight_ih_l0.grad is None


# ---- what can be done with it


def test_it_can_be_copied_pickled_and_saved(slim_and_dense):
    slim, found = slim_and_dense
    buffer = io.BytesIO()
    torch.save(slim, buffer)
    buffer.seek(0)
    copies = [
        copy.deepcopy(slim),
        pickle.loads(pickle.dumps(slim)),
        torch.load(buffer, weights_only=False),
    ]
    for other in copies:
        assert torch.equal(run(other, found), run(slim, found))
        assert other.state_dict().keys() == slim.state_dict().keys()
        shared = {p.data_ptr() for p in other.parameters()} & {
            p.data_ptr() for p in slim.parameters()
        }
        assert not shared


def test_copies_of_a_graph_form_keep_masks_hooks_and_which_buffers_are_not_saved():
    class Held(Split):
        """With a buffer that is not saved and a layer that only training uses."""

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("factor", torch.ones(1), persistent=False)
            self.register_buffer("unused", torch.ones(1), persistent=False)
            self.auxiliary = nn.Linear(8, 2)

        def body(self, x: Tensor) -> Tensor:
            return super().body(x * self.factor)

    found = trace(randomise(Held()), torch.randn(2, 3, 8, 8, dtype=torch.float64))
    slim = found.materialise.graph_form([[0]] * len(found.groups))
    weight = slim.get_parameter("stem.0.weight")
    attach(slim, {"stem.0.weight": torch.zeros_like(weight, dtype=torch.bool)})
    for other in (copy.deepcopy(slim), pickle.loads(pickle.dumps(copy.deepcopy(slim)))):
        assert other.state_dict().keys() == slim.state_dict().keys()
        assert dict(other.named_buffers()).keys() == dict(slim.named_buffers()).keys()
        assert type(other).__name__ == "Held"
        other.train()(*found.example_inputs).sum().backward()
        assert not other.get_parameter("stem.0.weight").grad.any()


def test_its_state_loads_into_the_same_network_again(slim_and_dense):
    slim, found = slim_and_dense
    again = found.materialise(random_units(found.plan, 0))
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    again.load_state_dict(slim.state_dict())
    assert torch.equal(run(again, found), run(slim, found))


def test_both_forms_have_the_state_of_the_dense_network():
    class Buffers(UNet):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("kept", torch.ones(8, 1, 1))
            self.register_buffer("scale", torch.full((8, 1, 1), 0.5), persistent=False)
            self.unused = nn.Linear(4, 3)

        def body(self, x: Tensor) -> Tensor:
            return super().body(x * self.scale + self.kept)

    model = randomise(Buffers())
    found = trace(model, torch.randn(2, 3, 8, 8).double())
    units = random_units(found.plan, 0)
    modules, graph = found.materialise(units), found.materialise.graph_form(units)
    assert modules.state_dict().keys() == model.state_dict().keys() == graph.state_dict().keys()
    for slim in (modules, graph):
        assert slim.scale.shape == slim.kept.shape == (len(units[0]), 1, 1)
        assert "scale" not in slim.state_dict()
    assert relative_error(run(graph, found), run(modules, found)) < 1e-12
    kept = np.array([len(u) for u in units])
    assert sum(p.numel() for p in graph.parameters()) == found.plan.params(kept)


def test_a_graph_form_trains_like_the_original():
    """Batch norm uses and updates batch statistics, dropout drops."""

    class Dropped(Split):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def body(self, x: Tensor) -> Tensor:
            return self.drop(super().body(x))

    found = trace(Dropped().eval(), torch.randn(4, 3, 8, 8))
    units = random_units(found.plan, 0)
    graph = found.materialise(units)
    assert isinstance(graph, torch.fx.GraphModule)
    x = torch.randn(4, 3, 8, 8)
    graph.train()
    before = graph.stem.get_submodule("1").running_mean.clone()
    assert not torch.equal(graph(x), graph(x))
    assert not torch.equal(graph.stem.get_submodule("1").running_mean, before)
    graph.eval()
    assert torch.equal(graph(x), graph(x))


def test_own_normalisation_classes_are_called_without_their_extras_in_graph_form():
    class NormAct(nn.BatchNorm2d):
        """Normalises and applies ReLU, as timm's do."""

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(super().forward(x))

    class Net(WrittenSize):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), NormAct(6))

    model = randomise(Net())
    found = trace(model, torch.randn(2, 3, 8, 8).double())
    graph = found.materialise.graph_form([range(t.units) for t in found.groups])
    assert relative_error(run(graph, found), run(model, found)) < 1e-12
    graph.train()(*found.example_inputs)
    assert graph.a.get_submodule("1").num_batches_tracked == 1


def test_layers_called_with_other_settings_than_their_own_are_not_mistaken_for_their_call():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.head = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 5)
            self.conv = nn.Conv1d(8, 8, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            x = F.layer_norm(x, (8,), self.norm.weight, self.norm.bias, eps=0.5)
            y = F.conv1d(x.mT, self.conv.weight, self.conv.bias, padding=2, dilation=2)
            return self.head(y.mT + F.linear(x, self.head.weight.mT[:, :1].expand(8, 8)))

    model = randomise(Net())
    found = trace(model, torch.randn(2, 4, 6).double())
    graph = found.materialise.graph_form([range(t.units) for t in found.groups])
    assert relative_error(run(graph, found), run(model, found)) < 1e-12


# ---- other models


def test_a_plan_fits_a_copy_and_a_reloaded_plan_fits_the_model():
    found = trace(Fused(fused=True).eval(), torch.randn(2, 5, 12))
    plan = IndexPlan.from_json(found.plan.to_json())
    units = random_units(plan, 0)
    for model in (found.model, copy.deepcopy(found.model)):
        assert torch.equal(
            run(Materialiser(model, plan)(units), found), run(found.materialise(units), found)
        )


def test_a_plan_of_another_model_is_refused_with_the_first_mismatch():
    plan = trace(Residual().eval(), torch.randn(2, 3, 8, 8)).plan
    other = Residual()
    other.a[0] = nn.Conv2d(8, 7, 3, padding=1, bias=False)
    with pytest.raises(InputError, match=r"'a.0.weight' has shape \(7, 8, 3, 3\) here"):
        Materialiser(other, plan)
    with pytest.raises(InputError, match=r"another model: 'stem.0.weight' is not in"):
        Materialiser(nn.Linear(3, 4), plan)


def test_nothing_is_said_while_it_works():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = trace(Residual().eval(), torch.randn(2, 3, 8, 8))
        found.materialise(random_units(found.plan, 0))(torch.randn(2, 3, 8, 8))


def test_squeezing_all_dimensions_of_one_leaves_one_remaining_unit_in_graph_form():
    class Squeezed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(x).mean((2, 3), keepdim=True).squeeze())

    found = trace(randomise(Squeezed()).eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64))
    slim = found.materialise.graph_form([[5]])
    result = compare(slim, found.model, found.plan, [[5]], found.example_inputs)
    assert result.error < 1e-12
