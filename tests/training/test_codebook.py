"""Shared weights: exact gradients, zeros that stay, and a network that learns."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from automl.executors import formats
from automl.pruning import masks
from automl.training.codebook import sharing
from automl.training.config import FinetuneConfig
from automl.training.finetune import finetune
from automl.types import InputError


def network(density=0.4, seed=0):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)]
    made = nn.Sequential(*layers)
    names = ["0.weight", "4.weight"]
    parameters = dict(made.named_parameters())
    masks.attach(made, {n: torch.rand(parameters[n].shape) < density for n in names})
    return made


def data(seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(96, 1, 8, 8, generator=generator)
    labels = images.flatten(1)[:, :20].reshape(96, 5, 4).sum(2).argmax(1)
    return [(images[i : i + 32], labels[i : i + 32]) for i in range(0, 96, 32)]


def test_weights_become_few_values_and_zeros_stay():
    made = network()
    before = {name: p.detach().clone() for name, p in made.named_parameters()}
    with sharing(made) as names:
        assert names == ("0", "4")
        assert {n: p.shape for n, p in made.named_parameters()}[
            "4.parametrizations.weight.original"
        ] == (15,)
    after = dict(made.named_parameters())
    assert {n: p.shape for n, p in after.items()} == {n: p.shape for n, p in before.items()}
    for name in ("0.weight", "4.weight"):
        assert len(after[name].unique()) <= 16
        assert torch.equal(after[name] == 0, before[name] == 0)
        assert (after[name] - before[name]).abs().max() < 0.2 * before[name].abs().max()
    assert torch.equal(after["4.bias"], before["4.bias"])


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 40),
    density=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_the_gradient_of_a_value_is_the_sum_over_its_weights(rows, columns, density, seed):
    rng = np.random.default_rng(seed)
    layer = nn.Linear(columns, rows)
    weight = rng.standard_normal((rows, columns)) * (rng.random((rows, columns)) < density)
    layer.weight.data = torch.from_numpy(weight.astype(np.float32))
    x = torch.from_numpy(rng.standard_normal((3, columns)).astype(np.float32))
    with sharing(layer):
        values, codes = layer.parametrizations.weight.original, layer.parametrizations.weight[0]
        shared = layer.weight.detach()
        layer(x).square().sum().backward()
        y = x.double() @ shared.double().T + layer.bias.double()
        dense = (2 * y.T @ x.double()).detach()
        for code in range(1, 16):
            exact = float(dense[codes.codes == code].sum())
            assert float(values.grad[code - 1]) == pytest.approx(exact, rel=1e-4, abs=1e-3)


def test_training_lowers_the_loss_and_keeps_the_values_shared():
    made, batches = network(), data()
    found = copy.deepcopy(made)
    with sharing(found):
        pass
    config = FinetuneConfig(epochs=30, optimizer="adamw", lr=0.02, weight_decay=0.0)
    with sharing(made):
        finetune(made, batches, config)
    assert loss_of(made, batches) < 0.95 * loss_of(found, batches)
    for name, weight in made.named_parameters():
        if weight.dim() > 1:
            assert len(weight.unique()) <= 16
            mask = masks.masks_of(made)[name]
            assert (weight[~mask] == 0).all() and torch.equal(weight != 0, mask)
    assert not torch.equal(made[4].weight, found[4].weight)


def loss_of(made, batches):
    """Mean cross-entropy, batch norm in training mode as while it was trained."""
    with torch.no_grad():
        return sum(float(nn.functional.cross_entropy(made(x), y)) for x, y in batches)


def test_what_comes_out_is_stored_exactly():
    made = network()
    with sharing(made):
        finetune(made, data(), FinetuneConfig(epochs=1, lr=1e-3))
    weight = made[4].weight.detach().numpy()
    for name in ("pell_codebook", "eie"):
        assert np.array_equal(formats.load(name).pack(weight).to_dense(), weight)


def test_training_ends_with_an_error_and_the_network_is_whole_again():
    made = network()
    with pytest.raises(RuntimeError, match="stop"), sharing(made):
        raise RuntimeError("stop")
    assert [n for n, _ in made.named_parameters()] == [n for n, _ in network().named_parameters()]
    assert made(torch.zeros(2, 1, 8, 8)).shape == (2, 5)


def test_embeddings_and_tied_weights_are_left_alone():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.inner, self.head = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9)
            self.head.weight = self.embed.weight

    made = Tied()
    before = made.head.weight.detach().clone()
    with sharing(made) as names:
        assert names == ("inner",)
    assert made.head.weight is made.embed.weight and torch.equal(made.head.weight, before)


def test_a_layer_of_zeros():
    layer = nn.Linear(6, 3)
    layer.weight.data.zero_()
    with sharing(layer):
        layer(torch.ones(2, 6)).sum().backward()
    assert not layer.weight.any() and layer.weight.grad is None


def test_bad_networks_are_refused():
    with (
        pytest.raises(InputError, match="no layer whose weights could be shared"),
        sharing(nn.BatchNorm1d(3)),
    ):
        pass
    layer = nn.Sequential(nn.Linear(2, 2))
    layer[0].weight.data[0, 0] = torch.nan
    with pytest.raises(InputError, match=r"0\.weight holds NaN"), sharing(layer):
        pass
    assert type(layer[0]) is nn.Linear
