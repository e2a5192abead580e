"""Criteria of gradients against explicit float64 sums of ``backward``, and finite differences."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scored_networks as small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import automl
from automl.pruning import criteria
from automl.pruning.criteria import Context, cross_entropy
from automl.pruning.criteria.obd import Fisher, Hutchinson
from automl.pruning.criteria.snip import Snip, SnipMomentum, snip_momentum
from automl.pruning.criteria.taylor import Taylor, TaylorGroup
from automl.types import InputError

NETWORKS = pytest.mark.parametrize("make", [small.small, small.plain], ids=["small", "plain"])
WEIGHT = {small.Small: "inner.weight", small.Plain: "conv.weight"}


def gradients(context, size):
    """Gradient of the chosen weight's mean loss on every batch, by ``backward``."""
    weight = context.model.get_parameter(WEIGHT[type(context.model)])
    found = []
    for x, y in zip(context.inputs.split(size), context.labels.split(size), strict=True):
        context.model.zero_grad()
        F.cross_entropy(context.model(x), y).backward()
        found.append(weight.grad.clone())
    context.model.zero_grad()
    return weight.detach(), torch.stack(found)


def saliency(criterion, context):
    name = WEIGHT[type(context.model)]
    return criterion.saliency(context, [name])[name]


@NETWORKS
def test_taylor_is_the_mean_square_of_gradient_times_weight(make):
    context = small.context_of(make())
    weight, grads = gradients(context, 4)
    expected = (grads * weight).square().mean(0)
    torch.testing.assert_close(saliency(Taylor(12, 4), context), expected, rtol=1e-9, atol=0)


class Projecting(nn.Module):
    """Multiplies by a buffer, whose columns can be pruned like a layer's outputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.register_buffer("projection", torch.randn(6, 8, dtype=torch.float64))
        self.inner, self.out = nn.Linear(8, 8).double(), nn.Linear(8, 3).double()

    def forward(self, x):
        return self.out(torch.relu(self.inner(x @ self.projection)))


@pytest.mark.parametrize("name", ["l2", "taylor", "taylor_group", "obd_fisher", "obd_hutchinson",
                                  "snip", "snip_momentum", "random"])  # fmt: skip
def test_columns_of_a_buffer_are_ranked_as_those_of_the_same_parameter(name):
    x, y = torch.randn(12, 6, dtype=torch.float64), torch.arange(12) % 3
    buffered, other = Projecting(), Projecting()
    other.projection = nn.Parameter(other._buffers.pop("projection"))
    scores = []
    for net in (buffered, other):
        trace = automl.trace(net, x[:2])
        assert [target.name for target in trace.targets] == ["projection", "inner"]
        scores.append(criteria.load(name)(Context(net, trace.plan, x, y)))
    for ours, theirs in zip(*scores, strict=True):
        if name == "obd_hutchinson":  # probes are drawn in the order of the weights
            assert np.isfinite(ours).all() and len(ours) == len(theirs)
            continue
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


@NETWORKS
def test_fisher_is_the_mean_square_of_single_examples(make):
    context = small.context_of(make())
    weight, grads = gradients(context, 1)
    expected = weight.square() / 2 * grads.square().mean(0)
    torch.testing.assert_close(saliency(Fisher(12), context), expected, rtol=1e-9, atol=0)


@NETWORKS
@pytest.mark.parametrize("batch_size", [4, 5, 12])
def test_snip_is_the_mean_gradient_times_weight_whatever_the_batches(make, batch_size):
    context = small.context_of(make())
    weight, grads = gradients(context, 12)
    expected = (grads[0] * weight).abs()
    found = saliency(Snip(12, batch_size), context)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-15)


@NETWORKS
def test_snip_with_momentum_follows_its_recurrence(make):
    context = small.context_of(make())
    weight, grads = gradients(context, 4)
    expected = torch.zeros_like(weight)
    for grad in grads:
        expected = 1.0 * expected + 0.9 * (weight * grad).abs()
    torch.testing.assert_close(saliency(SnipMomentum(12, 4), context), expected, rtol=1e-9, atol=0)


def test_a_schedule_can_go_on_with_the_momentum_while_weights_change():
    weights = torch.tensor([[1.0, -2.0], [3.0, 4.0]], dtype=torch.float64)
    gradients_ = torch.tensor([[0.5, 0.5], [-1.0, 0.0]], dtype=torch.float64)
    score = None
    for weight, gradient in zip(weights, gradients_, strict=True):
        score = snip_momentum(score, weight, gradient)
    torch.testing.assert_close(score, torch.tensor([0.45 + 2.7, 0.9], dtype=torch.float64))


# ---- whole units


def gate_gradients(context, module, size):
    """dL/da of gates a = 1 on the channels that a module puts out, per batch."""
    found = []
    for x, y in zip(context.inputs.split(size), context.labels.split(size), strict=True):
        gate = torch.ones(6 if module is context.model.stem_norm else 4).double().requires_grad_()
        hook = module.register_forward_hook(lambda _m, _i, out, g=gate: out * g[:, None, None])
        F.cross_entropy(context.model(x), y).backward()
        hook.remove()
        found.append(gate.grad)
    context.model.zero_grad()
    return torch.stack(found)


def test_taylor_of_a_unit_is_the_gradient_of_a_gate_behind_its_batch_norm():
    context = small.context_of(small.small())
    expected = gate_gradients(context, context.model.inner_norm, 4).square().mean(0)
    scores = TaylorGroup(12, 4)(context)[context.plan.target_index("inner")]
    np.testing.assert_allclose(scores, expected.numpy(), rtol=1e-9)


def test_taylor_of_a_unit_without_batch_norm_is_the_gradient_of_a_gate_behind_its_layer():
    context = small.context_of(small.plain())
    found = []
    for x, y in zip(context.inputs.split(4), context.labels.split(4), strict=True):
        gate = torch.ones(5).double().requires_grad_()
        hook = context.model.conv.register_forward_hook(
            lambda _m, _i, out, g=gate: out * g[:, None, None]
        )
        F.cross_entropy(context.model(x), y).backward()
        hook.remove()
        found.append(gate.grad)
    expected = torch.stack(found).square().mean(0).numpy()
    scores = TaylorGroup(12, 4)(context)[context.plan.target_index("conv")]
    np.testing.assert_allclose(scores, expected, rtol=1e-9)


def test_coupled_layers_are_one_unit():
    context = small.context_of(small.small())
    norms = [context.model.stem_norm, context.model.back_norm, context.model.depthwise_norm]
    total = 0
    for norm in norms:
        gates = []
        for x, y in zip(context.inputs.split(4), context.labels.split(4), strict=True):
            gate = torch.ones(6).double().requires_grad_()
            hook = norm.register_forward_hook(lambda _m, _i, out, g=gate: out * g[:, None, None])
            F.cross_entropy(context.model(x), y).backward()
            hook.remove()
            gates.append(gate.grad)
        total = total + torch.stack(gates)
    # A unit of the stream is a pair: the grouped convolution behind has two groups.
    expected = total.view(3, 2, 3).sum(1).square().mean(0).numpy()
    scores = TaylorGroup(12, 4)(context)[context.plan.target_index("stem")]
    np.testing.assert_allclose(scores, expected, rtol=1e-9)


# ---- Hessians


def test_hutchinson_is_exact_where_the_hessian_is_diagonal():
    model = small.lively(nn.Sequential(nn.Linear(4, 3, bias=False)))
    x = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64))
    plan = automl.trace(model, x).plan

    def loss(outputs, labels):  # a sum of squares, each of one weight alone
        return outputs.square().sum(1).mean()

    context = Context(model, plan, x, torch.zeros(4, dtype=torch.long), loss)
    found = Hutchinson(4, 4, "data", 1).saliency(context, ["0.weight"])["0.weight"]
    second = 2 * x.square().sum(0) / 4
    expected = model[0].weight.detach().square() / 2 * second
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def full_hessian(model, x, y):
    """Hessian of the mean loss by all parameters, in their order."""
    parameters = dict(model.named_parameters())
    sizes = [p.numel() for p in parameters.values()]

    def loss(flat):
        parts = zip(parameters.items(), flat.split(sizes), strict=True)
        state = {name: part.view(p.shape) for (name, p), part in parts}
        return F.cross_entropy(torch.func.functional_call(model, state, (x,)), y)

    flat = torch.cat([p.detach().flatten() for p in parameters.values()])
    return torch.autograd.functional.hessian(loss, flat)


def test_hutchinson_lies_within_its_standard_error_of_the_exact_diagonal():
    context, probes = small.context_of(small.plain()), 300
    hessian = full_hessian(context.model, context.inputs, context.labels)
    exact = hessian.diagonal()
    # Variance of z * Hz for random signs z: the squares beside the diagonal.
    error = ((hessian.square().sum(1) - exact.square()) / probes).sqrt()
    names = [name for name, _ in context.model.named_parameters()]
    found = Hutchinson(12, 12, "data", probes).saliency(context, names)
    weights = torch.cat([p.detach().flatten() for p in context.model.parameters()])
    estimate = torch.cat([found[name].flatten() for name in names]) / (weights.square() / 2)
    assert bool(((estimate - exact).abs() <= 5 * error + 1e-9).all())
    assert float((estimate - exact).norm() / exact.norm()) < 0.7


def test_hutchinson_of_attention_has_second_derivatives():
    model, generator = small.encoder(), torch.Generator().manual_seed(0)
    x = torch.randn(6, 4, 5, dtype=torch.float64, generator=generator)
    context = Context(model, small.plan_of(small.Encoder), x, torch.arange(6) % 3)
    scores = Hutchinson(6, 3)(context)
    assert all(np.abs(s).max() > 0 for s in scores)


# ---- labels and losses


def test_labels_of_the_model_give_the_fisher_information():
    """Mean over classes drawn, against the sum over all classes weighted with their chance."""
    context = small.context_of(small.plain(), count=3)
    many = dataclasses.replace(
        context, inputs=context.inputs.repeat(500, 1, 1, 1), labels=None, loss=None, cache={}
    )
    weight = context.model.conv.weight
    expected = torch.zeros_like(weight)
    for x in context.inputs:
        log_chances = context.model(x[None]).log_softmax(1)[0]
        for log_chance in log_chances:
            (grad,) = torch.autograd.grad(log_chance, weight, retain_graph=True)
            expected += log_chance.exp().detach() * grad.square() / 3
    expected *= weight.detach().square() / 2
    found = Fisher(1500, "model").saliency(many, ["conv.weight"])["conv.weight"]
    assert float((found - expected).norm() / expected.norm()) < 0.1


@pytest.mark.parametrize("name", ["taylor", "taylor_group", "snip", "obd_fisher", "obd_hutchinson"])
def test_a_gradient_criterion_without_a_loss_is_refused(name):
    context = small.context_of(small.small(), loss=None)
    with pytest.raises(InputError, match=rf"criterion {name} needs a loss: give loss\(outputs"):
        criteria.load(name)(context)


def test_a_loss_of_ones_own_is_used():
    context = small.context_of(small.plain(), loss=small.square_loss)
    weight = context.model.conv.weight
    small.square_loss(context.model(context.inputs), context.labels).backward()
    expected = (weight.grad * weight.detach()).abs()
    found = Snip(12).saliency(context, ["conv.weight"])["conv.weight"]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(
    "loss", [lambda o, y: o.sum(1), lambda o, y: 1.0, lambda o, y: o.detach().sum()]
)
def test_losses_that_are_no_differentiable_scalars_are_refused(loss):
    with pytest.raises(InputError, match="must return a scalar"):
        Snip(12)(small.context_of(small.plain(), loss=loss))


def test_outputs_that_are_no_logits_ask_for_a_loss():
    with pytest.raises(InputError, match=r"give loss\(outputs, labels\)"):
        cross_entropy({"logits": torch.zeros(2, 3)}, torch.zeros(2, dtype=torch.long))
    with pytest.raises(InputError, match="no cross entropy"):
        cross_entropy(torch.zeros(2, 3), torch.zeros(5, dtype=torch.long))


def test_cross_entropy_of_tokens_is_the_mean_over_all():
    outputs, labels = torch.randn(2, 4, 3), torch.randint(0, 3, (2, 4))
    expected = F.cross_entropy(outputs.reshape(8, 3), labels.reshape(8))
    torch.testing.assert_close(cross_entropy(outputs, labels), expected)


def test_tied_weights_have_one_gradient_under_both_names():
    model = small.lively(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)))
    model[2].weight = model[0].weight
    x = torch.randn(5, 4, dtype=torch.float64)
    context = Context(model, automl.trace(model, x).plan, x, torch.arange(5) % 4)
    found = Snip(5).saliency(context, ["0.weight", "2.weight"])
    F.cross_entropy(model(x), context.labels).backward()
    expected = (model[0].weight.grad * model[0].weight.detach()).abs()
    for name in found:
        torch.testing.assert_close(found[name], expected, rtol=1e-9, atol=1e-15)


def test_one_pass_serves_all_weights(monkeypatch):
    context, calls = small.context_of(small.small()), []
    original = small.Small.forward
    monkeypatch.setattr(
        small.Small, "forward", lambda self, x: (calls.append(len(x)), original(self, x))[1]
    )
    criterion = Taylor(12, 4)
    criterion.saliency(context, ["inner.weight"])
    criterion.saliency(context, ["stem.weight", "head.weight"])
    criterion(context)
    assert calls == [4, 4, 4]


@settings(max_examples=15, deadline=None)
@given(scale=st.floats(0.1, 10), seed=st.integers(0, 100))
def test_taylor_does_not_see_how_a_scale_is_split_between_layers(scale, seed):
    """ReLU networks compute the same if one layer is scaled up and the next one down."""
    model = small.plain(seed)
    before = Taylor(12, 4)(small.context_of(model))
    with torch.no_grad():
        model.conv.weight.mul_(scale)
        model.conv.bias.mul_(scale)
        model.hidden.weight.div_(scale)
    for a, b in zip(before, Taylor(12, 4)(small.context_of(model)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: Taylor(images=0), r"Taylor\.images must be a whole number >= 1"),
        (lambda: Taylor(batch_size=True), r"Taylor\.batch_size must be"),
        (lambda: Snip(labels="true"), r"Snip\.labels must be 'data' or 'model'"),
        (lambda: Hutchinson(probes=0), r"Hutchinson\.probes must be"),
        (lambda: Fisher(images=2.5), r"Fisher\.images must be"),
    ],
)
def test_settings_out_of_range_are_refused(make, rule):
    with pytest.raises(ValueError, match=rule):
        make()
