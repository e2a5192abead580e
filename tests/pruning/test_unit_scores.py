"""What pruners say of the importance of units when a strategy asks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scored_networks as small
import torch

import automl
from automl.pruning.criteria import load
from automl.pruning.grains import Grains
from automl.pruning.masked_plan import MaskedPlan
from automl.pruning.pruner import Pruner
from automl.pruning.sparse_pruner import SparsePruner
from automl.pruning.trained import TrainedPruner
from automl.types import InputError


@pytest.fixture(scope="module")
def trace():
    x, _ = small.images(2)
    return automl.trace(small.small(), x)


@pytest.fixture
def context(trace):
    return dataclasses.replace(small.context_of(trace.model), plan=trace.plan)


def test_without_a_name_they_are_the_pruners_own(trace, context):
    pruner = Pruner(trace, criterion="l1", context=context)
    for a, b in zip(pruner.unit_scores(), pruner.scores, strict=True):
        np.testing.assert_array_equal(a, b)


def test_another_criterion_and_its_settings_may_be_asked_for(trace, context):
    pruner = Pruner(trace, criterion="l1", context=context)
    found = pruner.unit_scores("mean_activation", images=5)
    for a, b in zip(found, load("mean_activation", images=5)(context), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("l4", {}, "no criterion is called 'l4'"),
        ("wanda", {"image": 3}, "no setting 'image'; did you mean 'images'"),
    ],
)
def test_what_is_not_known_is_refused(trace, context, name, settings, says):
    with pytest.raises(InputError, match=says):
        Pruner(trace, context=context).unit_scores(name, **settings)


def test_nested_settings_replace_single_values(context):
    criterion = load("growing", regularizer={"growth": 0.5})
    assert criterion.regularizer.growth == 0.5 and criterion.regularizer.every == 10


def test_inside_layers_they_are_sums_over_the_grains_units(trace, context):
    plan = MaskedPlan.of(trace.model, trace.plan, Grains.parse(["kernel"]))
    pruner = SparsePruner(trace, plan, criterion="l1", context=context)
    scores = pruner.unit_scores()
    assert [len(s) for s in scores] == [t.units for t in plan.targets]
    index = [weight.name for weight in plan.weights].index("inner.weight")
    expected = trace.model.inner.weight.detach().abs().sum((2, 3)).flatten()
    np.testing.assert_allclose(scores[index], expected.numpy(), rtol=1e-9)


def test_channels_come_before_what_is_inside_layers(trace, context):
    plan = MaskedPlan.of(trace.model, trace.plan, Grains.parse(["channel", "unstructured"]))
    pruner = SparsePruner(trace, plan, criterion="l1", context=context)
    scores = pruner.unit_scores("l2")
    assert [len(s) for s in scores] == [t.units for t in plan.targets]
    np.testing.assert_allclose(scores[0], load("l2")(context)[0])


def test_a_pruner_that_trains_says_what_its_own_pruner_does(trace, context):
    pruner = Pruner(trace, context=context)
    trained = TrainedPruner(pruner, training=lambda network: None)
    for a, b in zip(trained.unit_scores("l1"), pruner.unit_scores("l1"), strict=True):
        np.testing.assert_array_equal(a, b)


def test_training_happens_once_and_leaves_the_network_alone(trace, context):
    calls, before = [], trace.model.inner.weight.detach().clone()

    def trainer(model, penalty, tuning, images):
        calls.append((penalty.name, tuning.epochs, tuning.weight_decay, tuning.seed, images))
        with torch.no_grad():
            model.inner_norm.weight.copy_(torch.tensor([4.0, 1.0, 3.0, 2.0]))

    own = dataclasses.replace(context, trainer=trainer, seed=7, cache={})
    pruner = Pruner(trace, context=own)
    for _ in range(2):
        scores = pruner.unit_scores("slimming", epochs=3, train_images=None)
    assert calls == [("bn_l1(0.0003, False)", 3, 0.0, 7, None)]
    assert scores[trace.plan.target_index("inner")].tolist() == [4.0, 1.0, 3.0, 2.0]
    assert torch.equal(trace.model.inner.weight, before)


def test_what_cannot_be_scored_is_refused_before_it_is_trained():
    def trainer(*_):
        raise AssertionError("trained in vain")

    with pytest.raises(InputError, match="bn_scale needs a batch norm"):
        load("slimming")(small.context_of(small.plain(), trainer=trainer))


def test_criteria_that_train_need_a_trainer(trace):
    with pytest.raises(InputError, match=r"slimming.* needs training data: use it through"):
        Pruner(trace, criterion="slimming")
