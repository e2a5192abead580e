"""Ids of tokens and categories: generated data sets, batches and scores that leave them alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from automl.data import TensorSet, load_data
from automl.data.chains import Chain
from automl.scoring import ClassifierScorer
from automl.types import InputError

GENERATED = ["languages", "next_token", "clicks", "shapes"]


class Count(torch.nn.Module):
    """Logits: how often each id occurs."""

    def forward(self, ids):
        return torch.nn.functional.one_hot(ids, 5).sum(1).double()


@pytest.mark.parametrize("name", GENERATED)
def test_generated_parts_are_the_same_every_time(name):
    first, again = load_data(name), load_data(name, seed=3)
    assert first.fingerprint == again.fingerprint
    assert [len(part) for part in (first.train, first.validation, first.test)] == [2048, 512, 512]
    assert first.train.images.dtype == torch.int64
    assert torch.equal(first.test.images, again.test.images)
    assert set(first.train.labels.tolist()) == set(range(first.num_classes))
    assert first.mean == first.std == ()


@pytest.mark.parametrize("name", GENERATED)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 24}, "data.size must be null"),
        ({"split": "test_halves"}, "test_halves is not for"),
        ({"validation_size": 513}, "at most 512"),
    ],
)
def test_what_generated_data_do_not_have_is_refused(name, settings, message):
    with pytest.raises(InputError, match=message):
        load_data(name, **settings)


def test_limits_hold_for_generated_data():
    data = load_data("languages", limit=20, validation_size=100)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [20, 20, 20]


def test_batches_of_ids_are_copies_of_them():
    ids = torch.arange(12).view(6, 2)
    part = TensorSet(ids, torch.arange(6))
    batches = [x for x, _ in part.batches(4, mean=(), std=())]
    assert torch.equal(torch.cat(batches), ids)
    batches[0].zero_()
    assert int(ids.sum()) == 66


def test_ids_cannot_be_normalised():
    part = TensorSet(torch.zeros(3, 2, dtype=torch.int64), torch.arange(3))
    with pytest.raises(ValueError, match="must be empty for ids"):
        part.batches(2, mean=(0.5,), std=(1.0,))
    with pytest.raises(ValueError, match="must be None for ids"):
        ClassifierScorer(part.images, part.labels, mean=(0.5,))
    with pytest.raises(ValueError, match=r"int64 of shape \(n, length\)"):
        TensorSet(torch.zeros(3, 2, 2, dtype=torch.int64), torch.arange(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_are_taken_on_ids_as_they_are(dtype):
    ids = torch.tensor([[0, 0, 1], [4, 4, 4], [2, 3, 3]])
    scorer = ClassifierScorer(ids, torch.tensor([0, 4, 2]), dtype=dtype, mean=(), std=())
    assert scorer(Count())[1]["top1"] == pytest.approx(2 / 3)
    assert scorer.fingerprint != ClassifierScorer(ids + 0, torch.tensor([0, 4, 3])).fingerprint


@given(st.integers(2, 12), st.floats(0, 4), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_chains_are_probabilities_and_samples_stay_in_the_vocabulary(tokens, sharpness, seed):
    random = np.random.default_rng(seed)
    chain = Chain.draw(tokens, sharpness, random)
    np.testing.assert_allclose(chain.transitions.sum(1), 1)
    drawn = chain.sample(7, 9, random)
    assert drawn.shape == (7, 9)
    assert drawn.min() >= 0
    assert drawn.max() < tokens


def test_tokens_follow_each_other_as_often_as_the_chain_says():
    chain = Chain.draw(4, 1.0, np.random.default_rng(0))
    drawn = chain.sample(400, 100, np.random.default_rng(1))
    pairs = np.zeros((4, 4))
    np.add.at(pairs, (drawn[:, :-1].ravel(), drawn[:, 1:].ravel()), 1)
    np.testing.assert_allclose(pairs / pairs.sum(1, keepdims=True), chain.transitions, atol=0.02)
