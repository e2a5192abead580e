"""Batch norms that are folded into the layer before them, and those that are not its own."""

from __future__ import annotations

import pytest
import torch
from oracle import randomise, relative_error
from torch import Tensor, nn
from torch.nn import functional as F

from automl.graph.fold import batchnorm_pairs, fold_batchnorm
from automl.graph.trace import trace
from automl.pruning.sites import find_sites


class Features(nn.Module):
    """A norm behind a linear layer; on tokens it runs over them, not over the features."""

    def __init__(self, features: int, normed: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(10, features), nn.BatchNorm1d(normed)
        self.head = nn.Linear(features, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.linear(x))))


def test_a_norm_over_features_is_folded():
    model, x = randomise(Features(6, 6)).eval(), torch.randn(4, 10, dtype=torch.float64)
    plan = trace(model, x).plan
    folded = fold_batchnorm(model, batchnorm_pairs(plan))
    assert isinstance(folded.norm, nn.Identity)
    with torch.no_grad():
        assert relative_error(folded(x), model(x)) < 1e-12
    assert [site.norm for site in find_sites(model, plan)] == ["norm", None]


@pytest.mark.parametrize("features, tokens", [(6, 6), (8, 6), (6, 1)])
def test_a_norm_over_tokens_is_not(features, tokens):
    model = randomise(Features(features, tokens)).eval()
    x = torch.randn(4, tokens, 10, dtype=torch.float64)
    plan = trace(model, x).plan
    folded = fold_batchnorm(model, batchnorm_pairs(plan))
    with torch.no_grad():
        assert relative_error(folded(x), model(x)) < 1e-12
    assert [site.norm for site in find_sites(model, plan)] == [None, None]


class TiedDecoder(nn.Module):
    """Reads the weight of a layer again, in front of which is a batch norm."""

    def __init__(self, alias: bool) -> None:
        super().__init__()
        self.encode, self.norm = nn.Linear(12, 16), nn.BatchNorm1d(16)
        self.head = nn.Linear(12, 4)
        if alias:
            self.decoding = self.encode.weight

    def forward(self, x: Tensor) -> Tensor:
        code = torch.relu(self.norm(self.encode(x)))
        return self.head(torch.relu(F.linear(code, self.encode.weight.t())))


@pytest.mark.parametrize("alias", [False, True])
def test_a_norm_is_not_folded_into_a_weight_that_something_else_reads(alias):
    model, x = randomise(TiedDecoder(alias)).eval(), torch.randn(4, 12, dtype=torch.float64)
    folded = fold_batchnorm(model, batchnorm_pairs(trace(model, x).plan))
    with torch.no_grad():
        assert relative_error(folded(x), model(x)) < 1e-12
