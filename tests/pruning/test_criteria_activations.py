"""Criteria of activations against hooks and unfolded patches in float64."""

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
from automl.pruning.criteria import Context
from automl.pruning.criteria.activation import APoZ, MeanActivation
from automl.pruning.criteria.activations import (
    as_matrices,
    from_matrices,
    input_grams,
    input_powers,
    layer_uses,
    observe,
    powers,
    rows,
)
from automl.pruning.criteria.bn_scale import BatchNormScale
from automl.pruning.criteria.wanda import Wanda
from automl.types import InputError


def read_by(context, layer):
    """What a layer reads on all inputs, by a hook."""
    seen = []
    module = context.model.get_submodule(layer)
    hook = module.register_forward_pre_hook(lambda _m, args: seen.append(args[0].detach()))
    with torch.no_grad():
        context.model(context.inputs)
    hook.remove()
    return seen[0]


# ---- rows of inputs


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("settings_", [{}, {"stride": 2, "padding": 1}, {"dilation": 2}])
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
def test_rows_times_weight_are_the_layers_outputs(dims, groups, settings_, padding_mode):
    kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
    torch.manual_seed(dims)
    layer = kind(
        4, 6, 3, groups=groups, bias=False, padding_mode=padding_mode, **settings_
    ).double()
    x = torch.randn(2, 4, *[7, 6, 5][:dims], dtype=torch.float64)
    model = nn.Sequential(layer).eval()
    context, seen = Context(model, automl.trace(model, x).plan, x), []
    (use,) = layer_uses(model, context.plan)
    observe(context, 2, [use], lambda _use, data: seen.append(data))
    found = rows(seen[0], use, 10**6, torch.Generator())  # all positions
    outputs = as_matrices(layer.weight.detach(), use) @ found.transpose(1, 2)
    expected = layer(x).detach().movedim(1, -1).reshape(-1, groups, 6 // groups).permute(1, 2, 0)
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(powers(seen[0], use), found.square().sum(1))
    torch.testing.assert_close(
        from_matrices(as_matrices(layer.weight, use), layer.weight, use), layer.weight
    )


def test_some_positions_are_drawn_from_every_example():
    x = torch.arange(3.0)[:, None, None, None].expand(3, 1, 8, 8)
    model = nn.Sequential(nn.Conv2d(1, 2, 1)).eval()
    (use,) = layer_uses(model, automl.trace(model, x).plan)
    found = rows(x, use, 5, torch.Generator().manual_seed(0))
    assert found.flatten().tolist() == [0.0] * 5 + [1.0] * 5 + [2.0] * 5


def test_products_with_a_bare_parameter_are_seen():
    model = small.encoder()
    names = {use.weight for use in layer_uses(model, small.plan_of(small.Encoder))}
    assert "layer.self_attn.in_proj_weight" in names


@pytest.mark.parametrize("centred", [False, True])
def test_grams_are_mean_outer_products(centred):
    context = small.context_of(small.small())
    uses = [u for u in layer_uses(context.model, context.plan) if u.weight == "inner.weight"]
    ((name, gram),) = input_grams(context, 12, 10**6, uses, centred)
    patches = F.unfold(read_by(context, "inner"), 3, padding=1).movedim(1, 2).reshape(-1, 54)
    expected = np.cov(patches.numpy().T, bias=True) if centred else patches.T @ patches / 432
    assert name == "inner.weight"
    np.testing.assert_allclose(gram[0], expected, rtol=1e-9, atol=1e-12)


def test_grams_that_do_not_fit_together_come_in_several_passes(monkeypatch):
    context = small.context_of(small.small())
    uses = layer_uses(context.model, context.plan)
    whole = dict(input_grams(context, 12, 4, uses))
    monkeypatch.setattr("automl.pruning.criteria.activations._GRAM_BYTES", 1)
    for name, gram in input_grams(context, 12, 4, uses):
        torch.testing.assert_close(gram, whole.pop(name), rtol=1e-12, atol=1e-15)
    assert not whole


# ---- Wanda


def test_wanda_of_a_linear_layer_is_weight_times_norm():
    context = small.context_of(small.plain())
    norm = read_by(context, "hidden").square().mean(0).sqrt()
    expected = context.model.hidden.weight.detach().abs() * norm
    found = Wanda(12).saliency(context, ["hidden.weight"])["hidden.weight"]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("layer", "padding", "stride", "groups"),
    [("inner", 1, 1, 1), ("depthwise", 1, 2, 6), ("grouped", 0, 1, 2)],
)
def test_wanda_of_a_convolution_sees_patches(layer, padding, stride, groups):
    context = small.context_of(small.small())
    weight = context.model.get_submodule(layer).weight.detach()
    x, size = read_by(context, layer), weight.shape[-1]
    patches = F.unfold(x, size, padding=padding, stride=stride)  # (images, features, positions)
    norm = patches.square().mean((0, 2)).sqrt().view(groups, -1)
    expected = weight.reshape(groups, len(weight) // groups, -1).abs() * norm[:, None]
    found = Wanda(12).saliency(context, [f"{layer}.weight"])[f"{layer}.weight"]
    torch.testing.assert_close(found, expected.reshape(weight.shape), rtol=1e-9, atol=0)


def test_powers_do_not_depend_on_the_size_of_batches(monkeypatch):
    whole = input_powers(small.context_of(small.small()), 12)
    monkeypatch.setattr("automl.pruning.criteria.activations.BATCH", 5)
    for name, power in input_powers(small.context_of(small.small()), 12).items():
        torch.testing.assert_close(power, whole[name], rtol=1e-12, atol=0)


def test_weights_whose_inputs_are_not_seen_are_named():
    model = small.lively(nn.Sequential(nn.ConvTranspose2d(3, 4, 2), nn.ReLU(), nn.Conv2d(4, 2, 1)))
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    context = Context(model, automl.trace(model, x).plan, x)
    with pytest.raises(InputError, match=r"criterion wanda .* not of 0\.weight; exclude"):
        Wanda(4)(context)


# ---- statistics of units


def test_mean_activation_and_apoz_are_those_of_what_is_read():
    context = small.context_of(small.small())
    index = context.plan.target_index("inner")
    read = read_by(context, "back")
    np.testing.assert_allclose(
        MeanActivation(12)(context)[index], read.abs().mean((0, 2, 3)), rtol=1e-9
    )
    np.testing.assert_allclose(
        APoZ(12)(context)[index], (read > 0).double().mean((0, 2, 3)), rtol=1e-9
    )


def test_several_readers_of_coupled_channels_are_averaged():
    context = small.context_of(small.small())
    means = [
        read_by(context, name).abs().mean((0, 2, 3)) for name in ("inner", "depthwise", "grouped")
    ]
    # A unit of the stream is a pair of channels: the grouped convolution has two groups.
    expected = torch.stack(means).mean(0).view(2, 3).mean(0)
    scores = MeanActivation(12)(context)[context.plan.target_index("stem")]
    np.testing.assert_allclose(scores, expected.numpy(), rtol=1e-9)


def test_a_flattened_channel_is_the_mean_of_its_positions():
    context = small.context_of(small.plain())
    expected = read_by(context, "hidden").abs().mean(0).view(5, 9).mean(1)
    scores = MeanActivation(12)(context)[context.plan.target_index("conv")]
    np.testing.assert_allclose(scores, expected.numpy(), rtol=1e-9)


def test_a_network_without_zeros_is_refused_by_apoz():
    model = small.lively(nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 2)))
    x = torch.randn(8, 4, dtype=torch.float64)
    with pytest.raises(InputError, match="apoz counts zeros behind a ReLU, and 0 never has any"):
        APoZ(8)(Context(model, automl.trace(model, x).plan, x))


def test_only_the_images_asked_for_are_used():
    context = small.context_of(small.small())
    fewer = dataclasses.replace(context, inputs=context.inputs[:5], labels=None, cache={})
    for a, b in zip(MeanActivation(5)(context), MeanActivation(99)(fewer), strict=True):
        np.testing.assert_array_equal(a, b)
    assert context.fingerprint(MeanActivation(5)) != fewer.fingerprint(MeanActivation(99))
    assert context.fingerprint(MeanActivation(5)) == fewer.fingerprint(MeanActivation(5))


@settings(max_examples=10, deadline=None)
@given(scale=st.floats(1e-3, 1e3))
def test_apoz_does_not_see_scales(scale):
    model = small.plain()
    before = APoZ(12)(small.context_of(model))
    with torch.no_grad():
        model.conv.weight.mul_(scale)
        model.conv.bias.mul_(scale)
    index = small.plan_of(small.Plain).target_index("conv")
    np.testing.assert_allclose(APoZ(12)(small.context_of(model))[index], before[index], atol=1e-3)


# ---- batch norms


def test_batch_norm_scales_add_up_over_coupled_layers():
    context = small.context_of(small.small())
    model = context.model
    norms = [model.stem_norm, model.back_norm, model.depthwise_norm]
    total = sum(norm.weight.detach().abs() for norm in norms).view(2, 3).sum(0)
    scores = BatchNormScale()(context)
    np.testing.assert_allclose(scores[context.plan.target_index("stem")], total, rtol=1e-12)
    inner = model.inner_norm.weight.detach().abs()
    np.testing.assert_allclose(scores[context.plan.target_index("inner")], inner, rtol=1e-12)


def test_layers_without_batch_norm_are_named():
    with pytest.raises(InputError, match=r"bn_scale needs a batch norm .* conv, hidden has none"):
        BatchNormScale()(small.context_of(small.plain()))


def test_a_network_with_one_batch_size_only_is_given_that():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.second(torch.relu(self.first(x)).reshape(len(x), -1))

    model = small.lively(Fixed())
    x = torch.randn(9, 4, dtype=torch.float64)
    plan = automl.trace(model, x[:2]).plan
    context = Context(model, dataclasses.replace(plan, dynamic_batch=False), x)
    assert [len(a) for a, _ in context.batches(9, 64)] == [2, 2, 2, 2]
    with pytest.raises(InputError, match="takes 2 inputs at once"):
        list(context.batches(1, 64))


def test_grams_of_half_precision_networks_do_not_overflow():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).half().eval()
    x = (100 * torch.randn(64, 6)).half()
    context = Context(model, automl.trace(model, x).plan, x)
    (_, gram), *_ = input_grams(context, 64, 1, layer_uses(model, context.plan))
    torch.testing.assert_close(gram[0], x.double().T @ x.double() / 64, rtol=1e-5, atol=1e-2)
