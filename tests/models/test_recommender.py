"""The recommender: what it learned, and that a table is worth what its field tells."""

import numpy as np
import pytest

import automl
from automl.data import load_data
from automl.models import load_model
from automl.models.recommender import recommender_tiny
from automl.scoring import ClassifierScorer


@pytest.fixture(scope="module")
def data():
    return load_data("clicks")


@pytest.fixture(scope="module")
def trained():
    return load_model(
        "automl.models.recommender.recommender_tiny",
        checkpoint="package:weights/recommender_tiny.safetensors",
        input_shape=[4],
    )


def top1(model, part):
    return ClassifierScorer(part.images, part.labels)(model)[0]


def test_the_shipped_weights_know_the_tastes(trained, data):
    most = np.bincount(data.test.labels.numpy()).max() / len(data.test)
    assert top1(trained.model, data.test) > most + 0.2


def test_every_table_has_a_width_of_its_own(trained):
    ratios = {"tables.0": 0.25, "tables.3": 0.875, "layers.0": 0.5}
    slim = automl.prune(trained.model, trained.example_inputs, ratios)
    assert type(slim) is type(trained.model)
    assert [table.weight.shape[1] for table in slim.tables] == [12, 16, 16, 2]
    assert slim.layers[0].weight.shape == (32, 46)
    assert slim(*trained.example_inputs).shape == (2, 2)


def test_the_table_of_noise_is_the_one_that_can_go(trained, data):
    """Three of the four tell something; the last was drawn without looking at the click."""
    examples = data.calibration(1024).images
    left = {}
    for name in ("tables.0", "tables.1", "tables.3"):
        slim = automl.prune(
            trained.model, trained.example_inputs, {name: 0.93}, calibration=examples
        )
        left[name] = top1(slim, data.validation)
    assert left["tables.3"] > max(left["tables.0"], left["tables.1"]) + 0.05
    assert left["tables.3"] > top1(trained.model, data.validation) - 0.03


def test_there_must_be_a_field():
    with pytest.raises(ValueError, match="fields must be at least 1, got 0"):
        recommender_tiny(fields=0)
