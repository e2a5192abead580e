"""The ridge regression behind the repair, against float64 normal equations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from automl.pruning.regression import solve


def oracle(inputs, wanted, weight, ridge, centred):
    """Ridge regression as an augmented least-squares problem in float64 (NumPy)."""
    x, y, w = (np.asarray(t, np.float64) for t in (inputs, wanted, weight))
    x_mean = x.mean(0) if centred else np.zeros(x.shape[1])
    y_mean = y.mean(0) if centred else np.zeros(y.shape[1])
    x, y = x - x_mean, y - y_mean
    strength = np.sqrt(ridge * (x**2).sum() / x.shape[1])
    rows = np.concatenate([x, strength * np.eye(x.shape[1])])
    goal = np.concatenate([y - x @ w, np.zeros((x.shape[1], y.shape[1]))])
    new = w + np.linalg.lstsq(rows, goal, rcond=None)[0]
    return new, y_mean - x_mean @ new


@settings(max_examples=30, deadline=None)
@given(
    groups=st.integers(1, 3),
    samples=st.integers(20, 60),
    features=st.integers(1, 8),
    outputs=st.integers(1, 5),
    ridge=st.sampled_from([1e-4, 1e-2, 1.0]),
    centred=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_solve_equals_float64_ridge_regression(
    groups, samples, features, outputs, ridge, centred, seed
):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, samples, features, generator=generator) + 0.5
    y = torch.randn(groups, samples, outputs, generator=generator) - 1
    w = torch.randn(groups, features, outputs, generator=generator)
    fit = solve(x, y, w, ridge, centred)
    for group in range(groups):
        weight, intercept = oracle(x[group], y[group], w[group], ridge, centred)
        np.testing.assert_allclose(fit.weight[group], weight, rtol=2e-3, atol=2e-4)
        np.testing.assert_allclose(fit.intercept[group], intercept, rtol=2e-3, atol=2e-4)


def test_solve_finds_an_exact_map_and_its_intercept():
    x = torch.randn(1, 200, 6)
    true = torch.randn(1, 6, 3)
    fit = solve(x, x @ true + 2.0, torch.zeros(1, 6, 3), 1e-8, centred=True)
    torch.testing.assert_close(fit.weight, true, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(fit.intercept, torch.full((1, 3), 2.0), rtol=1e-3, atol=1e-3)


def test_chunks_do_not_change_the_fit(monkeypatch):
    x, y, w = torch.randn(1, 300, 4), torch.randn(1, 300, 2), torch.randn(1, 4, 2)
    whole = solve(x, y, w, 1e-4, centred=True)
    monkeypatch.setattr("automl.pruning.regression._CHUNK", 7)
    torch.testing.assert_close(solve(x, y, w, 1e-4, centred=True).weight, whole.weight)


@pytest.mark.parametrize("inputs", [torch.zeros(1, 50, 4), torch.ones(1, 50, 4)])
def test_constant_inputs_keep_the_old_weights(inputs):
    w = torch.randn(1, 4, 2)
    fit = solve(inputs, torch.randn(1, 50, 2), w, 1e-4, centred=True)
    torch.testing.assert_close(fit.weight, w)
    assert torch.isfinite(fit.intercept).all()


def test_rank_deficient_inputs_still_give_a_finite_fit():
    base = torch.randn(1, 50, 2)
    x = torch.cat([base, base, base], dim=2)
    fit = solve(x, base @ torch.ones(1, 2, 1), torch.zeros(1, 6, 1), 1e-6, centred=False)
    torch.testing.assert_close(x @ fit.weight, base.sum(2, keepdim=True), rtol=1e-2, atol=1e-2)
