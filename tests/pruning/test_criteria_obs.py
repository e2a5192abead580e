"""OBS and the greedy choice of channels against plain least squares in float64."""

from __future__ import annotations

import numpy as np
import pytest
import scored_networks as small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from automl.pruning.criteria.obs import (
    KeepFraction,
    KeepNM,
    Obs,
    channels_innermost,
    damped,
    obs_prune,
    obs_refit,
)
from automl.pruning.criteria.regression import Regression


def problem(rows=5, columns=12, samples=60, seed=0):
    """A matrix and correlated inputs of it, shape (samples, columns)."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return normal(rows, columns), normal(samples, columns) @ (normal(columns, columns) + 1)


def hessian(inputs):
    return inputs.T @ inputs / len(inputs)


def error(weight, other, inputs):
    """Mean squared change of the outputs, summed over rows."""
    return float((inputs @ (other - weight).T).square().sum() / len(inputs))


def least(weight, gram, free, fixed=None):
    """Minimum of (v - w) H (v - w) over ``free`` entries of v, others ``fixed`` (or 0)."""
    v = np.zeros_like(weight) if fixed is None else fixed.copy()
    free = np.flatnonzero(free)
    rest = np.setdiff1d(np.arange(len(weight)), free)
    right = gram[np.ix_(free, rest)] @ (weight[rest] - v[rest])
    v[free] = weight[free] + np.linalg.solve(gram[np.ix_(free, free)], right)
    return v


# ---- one weight


def test_saliency_is_the_error_of_removing_the_weight_and_refitting_its_row():
    context = small.context_of(small.plain())
    found = Obs(12, damping=1e-3).saliency(context, ["head.weight"])["head.weight"].numpy()
    seen = []
    hook = context.model.head.register_forward_pre_hook(lambda _m, a: seen.append(a[0].detach()))
    context.model(context.inputs)
    hook.remove()
    gram = damped(hessian(seen[0])[None], 1e-3)[0].numpy()
    weight = context.model.head.weight.detach().numpy()
    for row, column in np.ndindex(weight.shape):
        free = np.arange(weight.shape[1]) != column
        change = least(weight[row], gram, free) - weight[row]
        assert found[row, column] == pytest.approx(change @ gram @ change, rel=1e-8)


def test_saliency_of_convolutions_sees_patches_group_by_group():
    context = small.context_of(small.small())
    found = Obs(12, points=10**6).saliency(context, ["grouped.weight", "inner.weight"])
    for layer, groups, padding in (("grouped", 2, 0), ("inner", 1, 1)):
        module, seen = context.model.get_submodule(layer), []
        hook = module.register_forward_pre_hook(lambda _m, a, s=seen: s.append(a[0].detach()))
        context.model(context.inputs)
        hook.remove()
        weight = module.weight.detach()
        patches = F.unfold(seen[0], weight.shape[-1], padding=padding).movedim(1, 2).flatten(0, 1)
        for group in range(groups):
            features = patches.chunk(groups, 1)[group]
            inverse = torch.linalg.inv(damped(hessian(features)[None], 1e-2)[0])
            rows = weight.flatten(1).chunk(groups)[group]
            expected = rows.square() / inverse.diagonal()
            mine = found[f"{layer}.weight"].flatten(1).chunk(groups)[group]
            torch.testing.assert_close(mine, expected, rtol=1e-8, atol=0)


# ---- many weights


def naive(weight, gram, rule):
    """Column by column; what is right of a zeroed weight is refitted by solving for it."""
    w, columns = weight.copy(), weight.shape[1]
    for start in range(0, columns, rule.columns):
        stop = min(start + rule.columns, columns)
        saliency = np.empty((len(w), stop - start))
        for column in range(start, stop):
            # With everything to the left fixed, only the rest of H counts.
            rest = np.linalg.inv(gram[column:, column:])
            saliency[:, column - start] = w[:, column] ** 2 / rest[0, 0]
        keep = rule(torch.from_numpy(saliency)).numpy()
        for column in range(start, stop):
            for row in np.flatnonzero(~keep[:, column - start]):
                fixed = w[row].copy()
                fixed[column] = 0
                w[row] = least(w[row], gram, np.arange(columns) > column, fixed)
    return w


@pytest.mark.parametrize("rule", [KeepNM(2, 4), KeepNM(1, 4), KeepFraction(0.4, 5)], ids=str)
@pytest.mark.parametrize("columns", [12, 10])
def test_columns_are_pruned_as_by_solving_for_the_rest_each_time(rule, columns):
    weight, inputs = problem(columns=columns)
    gram = damped(hessian(inputs)[None], 1e-2)[0].numpy()
    found = obs_prune(weight, hessian(inputs), rule)
    np.testing.assert_allclose(found, naive(weight.numpy(), gram, rule), rtol=1e-6, atol=1e-9)


def test_refitting_solves_every_rows_least_squares():
    weight, inputs = problem()
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    found = obs_refit(weight, hessian(inputs), mask, damping=1e-12).numpy()
    for row in range(len(weight)):
        free = mask[row].numpy()
        wanted = (inputs @ weight[row]).numpy()
        expected, *_ = np.linalg.lstsq(inputs.numpy()[:, free], wanted, rcond=None)
        np.testing.assert_allclose(found[row, free], expected, rtol=1e-6)
        assert (found[row, ~free] == 0).all()


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 6),
    columns=st.integers(2, 17),
    n=st.integers(0, 4),
    seed=st.integers(0, 10**6),
)
def test_patterns_are_exact_and_updates_never_lose_to_masking_alone(rows, columns, n, seed):
    weight, inputs = problem(rows, columns, 4 * columns, seed)
    gram = hessian(inputs)
    pruned = obs_prune(weight, gram, KeepNM(n, 4))
    for start in range(0, columns, 4):
        group = pruned[:, start : start + 4]
        assert ((group != 0).sum(1) == min(n, group.shape[1])).all()
    mask = pruned != 0
    refitted = obs_refit(weight, gram, mask, damping=1e-9)
    assert bool((refitted[~mask] == 0).all())
    tolerance = 1e-9 * error(weight, torch.zeros_like(weight), inputs)
    assert error(weight, refitted, inputs) <= error(weight, pruned, inputs) + tolerance
    assert error(weight, refitted, inputs) <= error(weight, weight * mask, inputs) + tolerance


def test_nothing_pruned_changes_nothing():
    weight, inputs = problem()
    torch.testing.assert_close(obs_prune(weight, hessian(inputs), KeepNM(4, 4)), weight)
    everything = torch.ones_like(weight, dtype=torch.bool)
    torch.testing.assert_close(obs_refit(weight, hessian(inputs), everything), weight)


def test_everything_pruned_is_zero():
    weight, inputs = problem()
    assert not obs_prune(weight, hessian(inputs), KeepFraction(0.0)).any()


def test_fractions_are_exact_where_all_saliencies_are_equal():
    assert int(KeepFraction(0.5)(torch.ones(3, 8)).sum()) == 12
    assert KeepNM(2, 4)(torch.ones(3, 4)).sum(1).tolist() == [2, 2, 2]


def test_an_order_of_columns_moves_the_pattern():
    weight, inputs = problem(columns=8)
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
    pruned = obs_prune(weight, hessian(inputs), KeepNM(2, 4), order=order)
    assert ((pruned[:, ::2] != 0).sum(1) == 2).all()
    assert ((pruned[:, 1::2] != 0).sum(1) == 2).all()
    by_hand = obs_prune(weight[:, order], hessian(inputs[:, order]), KeepNM(2, 4))
    torch.testing.assert_close(pruned[:, order], by_hand, rtol=1e-9, atol=1e-12)


def test_neighbours_of_convolutions_are_input_channels():
    weight = torch.arange(24).view(1, 4, 2, 3)
    ordered = weight.reshape(1, -1)[0, channels_innermost(weight)]
    assert ordered.view(6, 4).tolist() == weight[0].flatten(1).T.tolist()


def test_dead_inputs_and_float32_are_no_trouble():
    weight, inputs = problem()
    inputs[:, 3:7] = 0
    pruned = obs_prune(weight.float(), hessian(inputs).float(), KeepNM(2, 4))
    assert pruned.dtype == torch.float32 and bool(pruned.isfinite().all())
    silent = obs_prune(weight, torch.zeros(12, 12, dtype=torch.float64), KeepNM(2, 4))
    kept = silent != 0
    torch.testing.assert_close(silent[kept], weight[kept])  # nothing to make up for


@pytest.mark.parametrize(
    ("weight", "gram", "says"),
    [
        (torch.ones(2, 3), torch.ones(2, 2), r"must be \(columns, columns\)"),
        (torch.ones(2, 3, 1), torch.ones(3, 3), "of a matrix"),
        (torch.full((2, 3), torch.nan), torch.eye(3), r"obs\.weight must be finite"),
        (torch.ones(2, 3), torch.eye(3) * torch.inf, r"obs\.hessian must be finite"),
    ],
)
def test_what_does_not_fit_is_refused(weight, gram, says):
    with pytest.raises(ValueError, match=says):
        obs_prune(weight, gram, KeepNM(1, 3))


@pytest.mark.parametrize(
    "make",
    [lambda: KeepNM(5, 4), lambda: KeepNM(1, 0), lambda: KeepFraction(1.5), lambda: Obs(damping=0)],
)
def test_rules_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match="must be"):
        make()


# ---- channels


def brute_force(weights, grams, owners, units):
    """Greedy elimination where every candidate is tried by solving for all that is left."""
    gone, scores, error_so_far = [], np.zeros(units), 0.0
    power = sum(np.einsum("of,fg,og", w, g, w) for w, g in zip(weights, grams, strict=True))
    for _ in range(units):
        errors = {}
        for unit in set(range(units)) - set(gone):
            errors[unit] = 0.0
            for w, gram, owner in zip(weights, grams, owners, strict=True):
                free = ~np.isin(owner, [*gone, unit])
                for row in w:
                    change = (least(row, gram, free) if free.any() else 0 * row) - row
                    errors[unit] += change @ gram @ change
        unit = min(errors, key=errors.get)
        error_so_far = errors[unit]
        scores[unit] = error_so_far / power
        gone.append(unit)
    return scores


def read_patches(context, layer, padding):
    module, seen = context.model.get_submodule(layer), []
    hook = module.register_forward_pre_hook(lambda _m, a: seen.append(a[0].detach()))
    context.model(context.inputs)
    hook.remove()
    return F.unfold(seen[0], module.kernel_size, padding=padding).movedim(1, 2).flatten(0, 1)


def covariance(patches):
    return damped(torch.cov(patches.T, correction=0)[None], 1e-2)[0].numpy()


def test_regression_is_greedy_elimination_with_refitting():
    context = small.context_of(small.small())
    weight = context.model.back.weight.detach().flatten(1).numpy()
    gram = covariance(read_patches(context, "back", 0))
    expected = brute_force([weight], [gram], [np.arange(4)], 4)
    scores = Regression(12, points=10**6)(context)[context.plan.target_index("inner")]
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_regression_adds_up_all_layers_that_read_a_unit():
    context = small.context_of(small.small())
    inner = context.model.inner.weight.detach().flatten(1).numpy()
    weights, owners = [inner], [np.repeat(np.arange(6) % 3, 9)]
    grams = [covariance(read_patches(context, "inner", 1))]
    grouped = read_patches(context, "grouped", 0)
    for group in range(2):
        weights.append(context.model.grouped.weight.detach().flatten(1).numpy()[2 * group :][:2])
        grams.append(covariance(grouped[:, 3 * group :][:, :3]))
        owners.append(np.arange(3))
    expected = brute_force(weights, grams, owners, 3)
    scores = Regression(12, points=10**6)(context)[context.plan.target_index("stem")]
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_regression_removes_a_unit_that_others_can_replace_first():
    model = small.small()
    with torch.no_grad():  # channel 2 of ``inner`` becomes twice channel 0
        model.inner.weight[2] = 2 * model.inner.weight[0]
        for tensor in model.inner_norm.state_dict().values():
            if tensor.dim():
                tensor[2] = tensor[0]
        model.inner_norm.running_mean[2] *= 2
        model.inner_norm.running_var[2] = 4 * (model.inner_norm.running_var[0] + 1e-5) - 1e-5
    context = small.context_of(model)
    scores = Regression(12, points=10**6, damping=1e-6)(context)
    scores = scores[context.plan.target_index("inner")]
    assert set(np.argsort(scores)[:1]) <= {0, 2}
    assert scores.min() < 1e-4 * np.sort(scores)[1]


def test_scores_of_regression_end_near_the_whole_power():
    for scores in Regression(12)(small.context_of(small.small())):
        assert scores.max() == pytest.approx(1.0, rel=1e-6)
        assert scores.min() >= 0
