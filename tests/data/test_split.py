"""Splits are exact, balanced, disjoint, and stay what they are."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from automl.data.split import hold_out, limited, stratified, without

LABELS = st.lists(st.integers(0, 6), min_size=1, max_size=200).map(
    lambda values: np.array(values, dtype=np.int64)
)
SEEDS = st.integers(0, 2**63)


@given(labels=LABELS, share=st.floats(0, 1), seed=SEEDS)
def test_any_split_is_exact_balanced_and_disjoint(labels, share, seed):
    size = round(share * len(labels))
    kept, held = hold_out(labels, size, seed)
    assert len(held) == size
    assert sorted([*kept, *held]) == list(range(len(labels)))
    for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
        assert abs((labels[held] == label).sum() - size * count / len(labels)) < 1


@given(labels=LABELS, seed=SEEDS)
def test_a_split_depends_on_labels_size_and_seed_alone(labels, seed):
    size = len(labels) // 2
    assert np.array_equal(stratified(labels, size, seed), stratified(labels.copy(), size, seed))


@given(labels=LABELS, limit=st.integers(1, 250), seed=SEEDS)
def test_a_limit_only_leaves_out(labels, limit, seed):
    _, held = hold_out(labels, len(labels) // 2, seed)
    some = limited(labels, held, limit, seed)
    assert len(some) == min(limit, len(held))
    assert np.isin(some, held).all()
    assert (np.diff(some) > 0).all()


FROZEN = [4, 5, 7, 14, 15, 33, 34, 36]


def test_seeds_choose_differently():
    labels = np.arange(1000) % 10
    first, second = stratified(labels, 100, 0), stratified(labels, 100, 1)
    assert len(np.intersect1d(first, second)) < 30


def test_a_seeds_choice_never_changes():
    # The shipped digits network was trained on such a choice: it must not move between versions.
    labels = np.arange(40) % 4
    assert stratified(labels, 8, 0).tolist() == FROZEN
    assert stratified(labels, 8, 2**64).tolist() == FROZEN


def test_without_leaves_the_rest():
    assert without(6, np.array([1, 4]), np.array([0])).tolist() == [2, 3, 5]


@pytest.mark.parametrize("size", [-1, 4])
def test_impossible_sizes_are_refused(size):
    with pytest.raises(ValueError, match="must be 0 to 3"):
        stratified(np.zeros(3, dtype=np.int64), size, 0)
