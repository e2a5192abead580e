"""Magnitude criteria against an independent float64 sum, and under permutation of channels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import automl
from automl.pruning import criteria
from automl.pruning.criteria.magnitude import Magnitude


def scores_of(name, trace):
    return criteria.load(name)(criteria.Context(trace.model, trace.plan))


class Coupled(nn.Module):
    """Two convolutions on one residual stream and a depthwise one behind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.inner = nn.Conv2d(6, 4, 1, bias=False)
        self.back = nn.Conv2d(4, 6, 1, bias=False)
        self.depthwise = nn.Conv2d(6, 6, 3, groups=6, bias=False)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.back(torch.relu(self.inner(x)))
        return self.head(self.depthwise(x).mean((2, 3)))


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_magnitude_sums_over_coupled_layers(norm):
    net = Coupled()
    trace = automl.trace(net, torch.randn(1, 3, 6, 6))
    scores = dict(zip([t.name for t in trace.targets], scores_of(norm, trace), strict=True))
    power = 1 if norm == "l1" else 2

    def per_filter(layer):
        weight = layer.weight.detach().double().numpy()
        return (np.abs(weight) ** power).sum(axis=(1, 2, 3))

    together = per_filter(net.stem) + per_filter(net.back) + per_filter(net.depthwise)
    np.testing.assert_allclose(scores["stem"], together, rtol=1e-6)
    np.testing.assert_allclose(scores["inner"], per_filter(net.inner), rtol=1e-6)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_permuting_channels_permutes_scores(norm):
    net, order = Coupled(), torch.randperm(4)
    trace = automl.trace(net, torch.randn(1, 3, 6, 6))
    index = trace.plan.target_index("inner")
    before = scores_of(norm, trace)[index]
    with torch.no_grad():
        net.inner.weight.copy_(net.inner.weight[order].clone())
        net.back.weight.copy_(net.back.weight[:, order].clone())
    after = scores_of(norm, trace)[index]
    np.testing.assert_allclose(after, before[order.numpy()], rtol=1e-12)


def test_attention_heads_are_scored_by_all_their_weights():
    net = nn.Sequential(nn.Linear(5, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    trace = automl.trace(net, torch.randn(2, 3, 5))
    heads = next(t for t in trace.targets if t.kind == "head")
    scores = scores_of("l1", trace)[heads.index]
    weight = net[1].self_attn.in_proj_weight.detach().double().abs()
    expected = weight.view(3, 2, 4, 8).sum((0, 2, 3)).numpy()
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


@pytest.mark.parametrize("p", [0, -1, float("inf"), float("nan"), "1", True])
def test_powers_that_are_no_norm_are_refused(p):
    with pytest.raises(ValueError, match=r"Magnitude\.p must be"):
        Magnitude(p)
