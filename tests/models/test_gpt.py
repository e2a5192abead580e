"""The decoder: it is causal, near the entropy of its text, and pruned with its tied head."""

import numpy as np
import pytest
import torch

import automl
from automl.data import load_data
from automl.data.sources.next_token import chain
from automl.models import load_model
from automl.models.gpt import GPT, gpt_tiny
from automl.scoring import ClassifierScorer


@pytest.fixture(scope="module")
def data():
    return load_data("next_token")


@pytest.fixture(scope="module")
def trained():
    return load_model(
        "automl.models.gpt.next_token_tiny",
        checkpoint="package:weights/gpt_tiny.safetensors",
        input_shape=[24],
    )


def loss(model, part):
    return ClassifierScorer(part.images, part.labels)(model)[1]["loss"]


def bound(part):
    """Cross entropy of the true probabilities on the same examples, in nats."""
    last, following = part.images[:, -1].numpy(), part.labels.numpy()
    return float(-np.log(chain().transitions[last, following]).mean())


def test_later_tokens_do_not_change_what_is_said_after_earlier_ones():
    model = gpt_tiny().double().eval()
    ids = torch.randint(16, (3, 24), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[:, 12:] = (other[:, 12:] + 1) % 16
    with torch.no_grad():
        one, two = model(ids), model(other)
    assert one.shape == (3, 24, 16)
    torch.testing.assert_close(one[:, :12], two[:, :12])
    assert not torch.allclose(one[:, 12:], two[:, 12:])


def test_the_shipped_weights_are_near_the_entropy_of_the_text(trained, data):
    assert loss(trained.model, data.test) < bound(data.test) + 0.1
    assert bound(data.test) + 0.5 < np.log(16)


def test_the_next_token_is_the_last_of_all_logits(trained):
    (ids,) = trained.example_inputs
    with torch.no_grad():
        every, last = GPT.forward(trained.model, ids), trained.model(ids)
    torch.testing.assert_close(every[:, -1], last)


def test_width_is_pruned_in_heads_mlp_and_hidden_size_and_the_head_stays_tied(trained):
    ratios = {"tokens": 0.25, "blocks.1.attention.qkv.head": 0.75, "blocks.3.mlp.fc1": 0.5}
    slim = automl.prune(trained.model, trained.example_inputs, ratios)
    assert type(slim) is type(trained.model)
    assert slim.tokens.weight.shape == (16, 36)
    assert slim.head.weight is slim.tokens.weight
    assert slim.positions.weight.shape == (24, 36)
    assert slim.blocks[1].attention.num_heads == 1
    assert slim.blocks[1].attention.qkv.weight.shape == (36, 36)
    assert slim.blocks[3].mlp.fc1.weight.shape == (48, 36)


def test_a_quarter_of_every_group_costs_little_after_repair(trained, data):
    examples = data.calibration(512).images
    slim = automl.prune(trained.model, trained.example_inputs, 0.25, calibration=examples)
    assert loss(slim, data.validation) < loss(trained.model, data.validation) + 0.3


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="num_heads must divide dim 48, got 7"):
        gpt_tiny(num_heads=7)
