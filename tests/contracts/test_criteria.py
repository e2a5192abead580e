"""What every criterion in conf/criterion keeps: shapes, sums, permutation, refusals, hands off."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scored_networks as small
import torch

from automl.hashing import weights_hash
from automl.pruning import criteria
from automl.pruning.criteria import Context, ElementCriterion
from automl.types import InputError

#: Scores that depend on positions by design: the control, and an estimate by random signs.
DRAWN_BY_POSITION = {"random", "obd_hutchinson"}

#: Criteria that find nothing to look at in a transformer, and what they look for.
REFUSE_TRANSFORMERS = {"bn_scale": "batch norm", "slimming": "batch norm", "apoz": "ReLU"}

#: Fewer inputs and steps than by default.
QUICK = {"images": 12, "batch_size": 4, "points": 9, "epochs": 1}


def load(name: str):
    criterion = criteria.load(name)
    fields = {field.name for field in dataclasses.fields(criterion) if field.init}
    return criteria.load(name, **{key: n for key, n in QUICK.items() if key in fields})


@pytest.fixture(params=criteria.names())
def name(request):
    return request.param


@pytest.fixture
def criterion(name):
    return load(name)


@pytest.fixture
def context():
    return small.context_of(small.small())


def test_units_get_one_finite_score_each(criterion, context):
    scores = criterion(context)
    assert [len(s) for s in scores] == [t.units for t in context.plan.targets]
    assert all(s.dtype == np.float64 and np.isfinite(s).all() for s in scores)


def test_scores_tell_units_apart(criterion, context):
    for scores, target in zip(criterion(context), context.plan.targets, strict=True):
        assert len(set(scores.tolist())) > 1, target.name


def test_scoring_again_gives_the_same(name, context):
    fresh = dataclasses.replace(context, cache={})
    for a, b in zip(load(name)(context), load(name)(fresh), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_network_is_not_touched(criterion, context):
    before = weights_hash(context.model)
    modes = [module.training for module in context.model.modules()]
    criterion(context)
    assert weights_hash(context.model) == before
    assert [module.training for module in context.model.modules()] == modes
    assert all(p.grad is None and p.requires_grad for p in context.model.parameters())


def test_networks_whose_parameters_are_frozen_are_scored_alike(name, context):
    expected = load(name)(context)
    context.model.requires_grad_(False)
    found = load(name)(dataclasses.replace(context, cache={}))
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(a, b)


def test_permuting_channels_permutes_scores(name):
    if name in DRAWN_BY_POSITION:
        pytest.skip("scores are drawn by position")
    model, order = small.small(), torch.tensor([2, 0, 3, 1])
    before = load(name)(small.context_of(model))
    small.permute_inner(model, order)
    context = small.context_of(model)
    after = load(name)(context)
    inner = context.plan.target_index("inner")
    for index, (a, b) in enumerate(zip(before, after, strict=True)):
        expected = a[order.numpy()] if index == inner else a
        np.testing.assert_allclose(b, expected, rtol=1e-6, atol=1e-12)


def test_missing_data_are_refused_in_one_line(criterion, context):
    if not criterion.needs - {"seed"}:
        pytest.skip("needs no data")
    bare = Context(context.model, context.plan)
    for ask in (lambda: criterion(bare), lambda: criterion.saliency(bare, ["inner.weight"])):
        with pytest.raises(InputError, match=f"^criterion {name_of(criterion)}") as caught:
            ask()
        assert "\n" not in str(caught.value)


def name_of(criterion) -> str:
    return criterion.name.split("(")[0]


def test_names_tell_criteria_and_settings_apart(name):
    criterion = load(name)
    assert criterion.name not in {load(other).name for other in criteria.names() if other != name}
    for field in dataclasses.fields(criterion):
        value = getattr(criterion, field.name)
        if field.init and field.name != "batch_size" and isinstance(value, int | float):
            other = dataclasses.replace(criterion, **{field.name: value + 1})
            assert other.name != criterion.name, field.name


def test_fingerprints_depend_on_what_is_used_and_on_nothing_else(criterion, context):
    other = small.context_of(small.small())
    assert context.fingerprint(criterion) == other.fingerprint(criterion)
    changed = {
        "data": {"inputs": context.inputs + 1},
        "labels": {"labels": 2 - context.labels},
        "seed": {"seed": 5},
        "training": {"trained_on": "other noise"},
        "loss": {"loss": small.square_loss},
    }
    for need, change in changed.items():
        differs = context.fingerprint(criterion) != dataclasses.replace(
            context, **change
        ).fingerprint(criterion)
        assert differs == (need in criterion.needs), need


# ---- single weights


def test_single_weights_are_scored_or_refused_by_name(criterion, context):
    weights = ["inner.weight", "head.weight", "grouped.weight", "depthwise.weight"]
    if not isinstance(criterion, ElementCriterion):
        with pytest.raises(InputError, match="whole channels"):
            criterion.saliency(context, weights)
        return
    found = criterion.saliency(context, weights)
    assert list(found) == weights
    for weight in weights:
        parameter = context.model.get_parameter(weight)
        assert found[weight].shape == parameter.shape
        assert found[weight].dtype in (torch.float32, torch.float64)
        assert not found[weight].requires_grad


def test_units_are_sums_over_the_weights_that_write_them(criterion, context):
    if not isinstance(criterion, ElementCriterion):
        pytest.skip("scores whole units only")
    writers = {"inner": ["inner"], "stem": ["stem", "back", "depthwise"], "grouped": ["grouped"]}
    saliency = criterion.saliency(context, [f"{w}.weight" for ws in writers.values() for w in ws])
    scores = criterion(context)
    for target, layers in writers.items():
        total = sum(saliency[f"{layer}.weight"].double().flatten(1).sum(1) for layer in layers)
        index = context.plan.target_index(target)
        units = context.plan.targets[index].units
        total = total.view(-1, units).sum(0)  # grouped: the same places in every group
        np.testing.assert_allclose(scores[index], total.numpy(), rtol=1e-12, atol=1e-300)


def test_no_data_means_nothing_that_is_not_finite(criterion, context):
    if "data" not in criterion.needs:
        pytest.skip("looks at no data")
    broken = dataclasses.replace(context, inputs=context.inputs * float("nan"), cache={})
    with pytest.raises(InputError, match=r"not finite|calibration"):
        criterion(broken)


def test_a_transformer_is_scored_or_refused_by_name(criterion):
    plan = small.plan_of(small.Encoder)
    context = Context(small.encoder(), plan, *small.sequences(12), trainer=small.trainer)
    if name_of(criterion) in REFUSE_TRANSFORMERS:
        reason = REFUSE_TRANSFORMERS[name_of(criterion)]
        with pytest.raises(InputError, match=f"{reason}.*layer"):
            criterion(context)
        return
    scores = criterion(context)
    assert [len(s) for s in scores] == [t.units for t in plan.targets]
