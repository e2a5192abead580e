"""The encoder: what it learned, what can be pruned of it, and that pruning it this way is real."""

import numpy as np
import pytest
import torch

import automl
from automl.data import load_data
from automl.models import load_model
from automl.models.bert import bert_tiny
from automl.pruning.pruner import Pruner
from automl.scoring import ClassifierScorer


@pytest.fixture(scope="module")
def data():
    return load_data("languages")


@pytest.fixture(scope="module")
def trained():
    return load_model(
        "automl.models.bert.bert_tiny",
        checkpoint="package:weights/bert_tiny.safetensors",
        input_shape=[24],
    )


@pytest.fixture(scope="module")
def traced(trained):
    return automl.trace(trained.model, trained.example_inputs)


def top1(model, part):
    return ClassifierScorer(part.images, part.labels)(model)[0]


def test_example_inputs_are_ids_below_the_vocabulary(trained):
    (ids,) = trained.example_inputs
    assert ids.dtype == torch.int64
    assert ids.shape == (2, 24)
    assert 0 <= int(ids.min())
    assert int(ids.max()) < 16


def test_the_shipped_weights_know_the_languages(trained, data):
    assert top1(trained.model, data.test) > 0.78
    assert top1(bert_tiny().eval(), data.test) < 0.3


def test_heads_their_widths_mlps_and_the_hidden_size_are_targets(traced):
    found = {group.name: (group.kind, group.units) for group in traced.groups}
    assert found["embeddings.tokens"] == ("channel", 48)
    assert found["blocks.0.attention.query.head"] == ("head", 4)
    assert found["blocks.0.attention.query.head_dim"] == ("head_dim", 12)
    assert found["blocks.0.attention.value"] == ("head_dim", 12)
    assert found["blocks.1.fc1"] == ("channel", 96)
    assert found["pooler"] == ("channel", 48)
    assert [part.name for part in traced.frozen] == ["classifier"]


def test_ratios_by_name_prune_heads_mlp_and_hidden_size(trained):
    ratios = {
        "embeddings.tokens": 0.25,
        "blocks.0.attention.query.head": 0.5,
        "blocks.1.attention.value": 0.5,
        "blocks.1.fc1": 0.75,
    }
    slim = automl.prune(trained.model, trained.example_inputs, ratios)
    assert type(slim) is type(trained.model)
    assert slim.embeddings.tokens.weight.shape == (16, 36)
    assert slim.embeddings.positions.shape == (1, 24, 36)
    first, second = slim.blocks
    assert first.attention.num_heads == 2
    assert first.attention.query.weight.shape == (24, 36)
    assert second.attention.query.weight.shape == (48, 36)
    assert second.attention.value.weight.shape == (24, 36)
    assert second.fc1.weight.shape == (24, 36)
    assert slim(*trained.example_inputs).shape == (2, 10)


def test_repair_on_unlabelled_sequences_wins_back_accuracy(trained, traced, data):
    kept = np.array([max(1, round(0.6 * t.units)) for t in traced.groups], dtype=np.int64)
    bare = Pruner(traced)
    repaired = Pruner(traced, calibration=data.calibration(512).images)
    before, after = (top1(p.prune(p.policy(kept)), data.validation) for p in (bare, repaired))
    assert after > before + 0.1


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="num_heads must divide dim 48, got 5"):
        bert_tiny(num_heads=5)
