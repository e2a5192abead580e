"""The network on point clouds: what it learned, and that searches can prune it."""

import pytest
import torch

import automl
from automl.data import load_data
from automl.models import load_model
from automl.models.shapes import shapes_tiny
from automl.scoring import ClassifierScorer


@pytest.fixture(scope="module")
def data():
    return load_data("shapes")


@pytest.fixture(scope="module")
def trained():
    return load_model(
        "automl.models.shapes.shapes_tiny",
        checkpoint="package:weights/shapes_tiny.safetensors",
        input_shape=[128],
    )


def top1(model, part):
    return ClassifierScorer(part.images, part.labels)(model)[0]


def test_the_shipped_weights_tell_the_shapes_apart(trained, data):
    assert top1(trained.model, data.test) > 0.95


def test_points_in_any_order_and_repeated_are_one_cloud(trained, data):
    ids = data.test.images[:20]
    again = torch.cat([ids.flip(1), ids], 1)
    with torch.inference_mode():
        torch.testing.assert_close(trained.model(again), trained.model(ids))


def test_channels_of_every_resolution_go_together(trained, data):
    trace = automl.trace(trained.model, trained.example_inputs)
    assert {g.name: g.units for g in trace.groups} == {"stem": 16, "downs.0": 32, "downs.1": 48}
    slim = automl.prune(trained.model, trained.example_inputs, {"downs.1": 0.25, "stem": 0.25})
    assert type(slim) is type(trained.model)
    assert slim.blocks[2].conv.weight.shape[:2] == (36, 36)
    assert top1(slim, data.test) > 0.4  # before any training; a guess has .2


def test_there_must_be_a_resolution():
    with pytest.raises(ValueError, match="widths must name at least one resolution"):
        shapes_tiny(widths=())
