"""Penalties against sums in float64, their proximal steps, and the fine-tuning that uses them."""

from __future__ import annotations

import numpy as np
import pytest
import scored_networks as small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import automl
from automl.training.config import FinetuneConfig
from automl.training.finetune import finetune
from automl.training.regularizers.elements import L1, L2, BatchNormL1
from automl.training.regularizers.groups import GroupLasso, Growing
from automl.types import InputError

ALL = [
    L1(0.1),
    L2(0.1),
    BatchNormL1(0.1),
    GroupLasso(0.1, "rows"),
    GroupLasso(0.1, "columns"),
    GroupLasso(0.1, "channels"),
    GroupLasso(0.1, "coupled"),
    Growing(0.1, 1),
]


def bound(regularizer, model):
    return regularizer.bind(model, small.plan_of(type(model)))


def norms(weight, dim):
    """Norm of every slice along a dimension."""
    return np.sqrt((np.moveaxis(weight, dim, 0).reshape(weight.shape[dim], -1) ** 2).sum(1))


def weights_of(model):
    return {n: p.detach().numpy() for n, p in model.named_parameters() if p.dim() > 1}


# ---- values


def test_sums_of_powers():
    model = small.small()
    flat = np.concatenate([w.ravel() for w in weights_of(model).values()])
    assert bound(L1(0.1), model).penalty(model, 0).item() == pytest.approx(0.1 * abs(flat).sum())
    assert bound(L2(0.1), model).penalty(model, 0).item() == pytest.approx(0.05 * (flat**2).sum())


def test_batch_norm_scales():
    model = small.small()
    expected = sum(
        m.weight.abs().sum().item() for m in model.modules() if isinstance(m, nn.BatchNorm2d)
    )
    found = bound(BatchNormL1(0.5), model).penalty(model, 0).item()
    assert found == pytest.approx(0.5 * expected)


@pytest.mark.parametrize(("by", "dim"), [("rows", 0), ("columns", 1)])
def test_group_lasso_over_slices(by, dim):
    model = small.small()
    expected = sum(
        np.sqrt(w.size / w.shape[dim]) * norms(w, dim).sum() for w in weights_of(model).values()
    )
    found = bound(GroupLasso(0.2, by), model).penalty(model, 0).item()
    assert found == pytest.approx(0.2 * expected)


@pytest.mark.parametrize(("by", "dim"), [("rows", 1), ("columns", 0)])
def test_inputs_come_first_in_transposed_convolutions(by, dim):
    model = nn.Sequential(nn.ConvTranspose2d(3, 5, 2))
    (weight,) = weights_of(model).values()
    expected = np.sqrt(weight.size / weight.shape[dim]) * norms(weight, dim).sum()
    trace = automl.trace(model.eval(), torch.zeros(2, 3, 4, 4))
    found = GroupLasso(0.2, by).bind(model, trace.plan).penalty(model, 0).item()
    assert found == pytest.approx(0.2 * expected)


def coupled_norms(model):
    """Sizes and norms of the units of ``inner``, the stream and ``grouped``, by hand."""
    weights = {n.removesuffix(".weight"): w for n, w in weights_of(model).items()}
    groups = []
    for layers, units in ((["stem", "back", "depthwise"], 3), (["inner"], 4), (["grouped"], 2)):
        squares = sum(
            (weights[layer] ** 2).reshape(len(weights[layer]), -1).sum(1).reshape(-1, units).sum(0)
            for layer in layers
        )
        size = sum(weights[layer].size for layer in layers) / units
        groups.append((size, np.sqrt(squares)))
    return groups


def test_group_lasso_over_coupled_channels():
    model = small.small()
    expected = sum(np.sqrt(size) * norm.sum() for size, norm in coupled_norms(model))
    found = bound(GroupLasso(0.2), model).penalty(model, 0).item()
    assert found == pytest.approx(0.2 * expected)


def test_channels_are_coupled_groups_layer_by_layer():
    model = small.small()
    expected = 0.0
    for layer, units in (("stem", 3), ("back", 3), ("depthwise", 3), ("inner", 4), ("grouped", 2)):
        weight = model.get_submodule(layer).weight.detach().numpy()
        squares = (weight**2).reshape(len(weight), -1).sum(1).reshape(-1, units).sum(0)
        expected += np.sqrt(weight.size / units) * np.sqrt(squares).sum()
    found = bound(GroupLasso(0.2, "channels"), model).penalty(model, 0).item()
    assert found == pytest.approx(0.2 * expected)


def test_heads_and_their_places_are_groups_of_attention():
    model = small.encoder()
    assert bound(GroupLasso(0.1), model).penalty(model, 0).item() > 0


def test_growing_grows_to_its_ceiling():
    model = small.small()
    penalty = bound(Growing(growth=0.1, every=5, ceiling=0.25), model)
    squares = sum((norm**2).sum() for _, norm in coupled_norms(model))
    assert penalty.penalty(model, 4) is None
    for step, weight in ((5, 0.1), (9, 0.1), (10, 0.2), (15, 0.25), (1000, 0.25)):
        assert penalty.penalty(model, step).item() == pytest.approx(weight / 2 * squares)


def test_growing_with_a_ratio_pushes_the_units_with_the_least_norm():
    model = small.small()
    penalty = bound(Growing(1.0, 1, 1.0, ratio=0.5), model)
    penalty.penalty(model, 1).backward()
    gradient = model.inner.weight.grad.flatten(1).norm(dim=1)
    least = model.inner.weight.detach().abs().flatten(1).sum(1).argsort()[:2]
    assert set(gradient.nonzero().flatten().tolist()) == set(least.tolist())
    torch.testing.assert_close(model.inner.weight.grad[least], model.inner.weight.detach()[least])


@pytest.mark.parametrize("regularizer", ALL, ids=lambda r: r.name)
def test_gradients_are_finite_where_everything_is_zero(regularizer):
    model = small.small()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    value = bound(regularizer, model).penalty(model, 10)
    value.backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())


# ---- proximal steps


def as_parameters(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("strength", [0.1, 2.0])
def test_proximal_l1_thresholds_softly(strength):
    model = small.small()
    before = as_parameters(model)
    penalty = bound(L1(strength, proximal=True), model)
    assert penalty.penalty(model, 0) is None
    penalty.after_step(model, 0, lr=0.5)
    for name, found in model.named_parameters():
        w = before[name]
        expected = w.sign() * (w.abs() - 0.5 * strength).clamp_min(0) if w.dim() > 1 else w
        torch.testing.assert_close(found.detach(), expected)


def test_proximal_l2_divides():
    model = small.small()
    before = model.inner.weight.detach().clone()
    bound(L2(0.4, proximal=True), model).after_step(model, 0, lr=0.5)
    torch.testing.assert_close(model.inner.weight.detach(), before / 1.2)


@settings(max_examples=20, deadline=None)
@given(
    strength=st.floats(1e-3, 10),
    by=st.sampled_from(["rows", "columns", "channels", "coupled"]),
    seed=st.integers(0, 50),
)
def test_a_proximal_step_minimises_penalty_and_distance(strength, by, seed):
    """Of ``|v - w|^2 / 2 + lr * penalty(v)`` no nearby v is less."""
    lr, model = 0.1, small.small(seed)
    before = as_parameters(model)
    penalty = bound(GroupLasso(strength, by), model)
    bound(GroupLasso(strength, by, proximal=True), model).after_step(model, 0, lr)

    def objective():
        moved = sum((p.detach() - before[n]).square().sum() for n, p in model.named_parameters())
        return (moved / 2 + lr * penalty.penalty(model, 0)).item()

    least, generator = objective(), torch.Generator().manual_seed(seed)
    after = as_parameters(model)
    for _ in range(5):
        with torch.no_grad():
            for name, p in model.named_parameters():
                noise = torch.randn(p.shape, generator=generator, dtype=p.dtype)
                p.copy_(after[name] + 1e-3 * noise)
        assert objective() >= least - 1e-12


def test_a_strong_proximal_step_makes_whole_units_exactly_zero():
    model = small.small()
    index = int(model.inner.weight.flatten(1).norm(dim=1).argmin())
    size = np.sqrt(model.inner.weight[0].numel())
    ordered = model.inner.weight.detach().flatten(1).norm(dim=1).sort().values
    between = float(ordered[0] + ordered[1]) / 2 / size
    bound(GroupLasso(between, proximal=True), model).after_step(model, 0, lr=1.0)
    zero = (model.inner.weight == 0).flatten(1).all(1)
    assert zero.nonzero().flatten().tolist() == [index]


# ---- refusals


def test_networks_with_nothing_to_regularise_are_refused():
    with pytest.raises(InputError, match="needs batch norms with scales"):
        bound(BatchNormL1(), small.plain())


@pytest.mark.parametrize(
    "make",
    [
        lambda: L1(0),
        lambda: L2(float("nan")),
        lambda: BatchNormL1(True),
        lambda: GroupLasso(by="layers"),
        lambda: Growing(every=0),
        lambda: Growing(ratio=1.0),
        lambda: Growing(ceiling=-1),
    ],
)
def test_settings_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match="must be"):
        make()


# ---- in fine-tuning


def batches():
    x, y = small.images(24)
    return [(x[i : i + 8], y[i : i + 8]) for i in range(0, 24, 8)]


def config(epochs=2):
    return FinetuneConfig(epochs=epochs, lr=0.05, batch_size=8, weight_decay=0.0)


@pytest.mark.parametrize("regularizer", ALL, ids=lambda r: r.name)
def test_fine_tuning_lowers_what_is_penalised(regularizer):
    plain, pushed = small.small(), small.small()
    finetune(plain, batches(), config())
    finetune(pushed, batches(), config(), regularizer=bound(regularizer, pushed))
    penalty = bound(regularizer, plain)
    assert penalty.penalty(pushed, 10).item() < penalty.penalty(plain, 10).item()


def test_reported_losses_are_without_the_penalty():
    model = small.small()
    result = finetune(model, batches(), config(1), regularizer=bound(L1(1e-9), model))
    expected = finetune(small.small(), batches(), config(1))
    assert result.history[0].train_loss == pytest.approx(expected.history[0].train_loss, rel=1e-6)


def test_a_proximal_penalty_leaves_exact_zeros():
    model = small.small()
    finetune(model, batches(), config(), regularizer=bound(GroupLasso(1.0, proximal=True), model))
    assert bool((model.inner.weight == 0).flatten(1).all(1).any())


@pytest.mark.parametrize("regularizer", [Growing(0.05, 2), GroupLasso(0.1, proximal=True)])
def test_a_run_that_was_cut_resumes_to_the_same_weights(regularizer, tmp_path):
    whole = small.small()
    finetune(whole, batches(), config(4), regularizer=bound(regularizer, whole))
    path = tmp_path / "checkpoint.pt"

    class Cut(Exception):
        pass

    def cut(row):
        if row.epoch == 2:
            raise Cut

    first = small.small()
    with pytest.raises(Cut):
        finetune(
            first,
            batches(),
            config(4),
            checkpoint=path,
            regularizer=bound(regularizer, first),
            progress=cut,
        )
    again = small.small()
    finetune(again, batches(), config(4), checkpoint=path, regularizer=bound(regularizer, again))
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_checkpoint_of_another_regulariser_is_refused(tmp_path):
    path, model = tmp_path / "checkpoint.pt", small.small()
    finetune(model, batches(), config(), checkpoint=path, regularizer=bound(L1(0.1), model))
    other = small.small()
    with pytest.raises(InputError, match="regularizer"):
        finetune(other, batches(), config(), checkpoint=path, regularizer=bound(L1(0.2), other))
