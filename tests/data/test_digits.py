"""The digits: a fixed split, because the shipped network was trained on one of its parts."""

import pytest
import torch

from automl.data import load_data
from automl.types import InputError


def test_parts_are_fixed_and_balanced():
    data, other = load_data("digits"), load_data("digits", seed=3)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [897, 400, 500]
    assert data.fingerprint == other.fingerprint
    for part in (data.train, data.validation, data.test):
        counts = torch.bincount(part.labels, minlength=10)
        assert int(counts.max() - counts.min()) <= 5
    assert data.train.images.shape[1:] == (1, 8, 8)
    assert data.train.images.dtype == torch.float32
    assert data.num_classes == 10


def test_normalised_images_have_mean_zero_and_deviation_one():
    data = load_data("digits")
    parts = (data.train, data.validation, data.test)
    batches = [next(part.batches(len(part), mean=data.mean, std=data.std))[0] for part in parts]
    x = torch.cat(batches)
    assert abs(float(x.mean())) < 1e-3
    assert abs(float(x.std()) - 1) < 1e-3


def test_a_smaller_validation_part_is_chosen_by_the_seed_and_leaves_the_others_alone():
    whole = load_data("digits")
    first, second = (load_data("digits", validation_size=100, seed=seed) for seed in (0, 1))
    assert len(first.validation) == 100
    assert not torch.equal(first.validation.images, second.validation.images)
    assert torch.equal(first.train.images, whole.train.images)
    assert torch.equal(first.test.images, whole.test.images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_size": 401}, "at most 400 .*shipped network has seen"),
        ({"split": "test_halves"}, "test_halves is not for digits"),
        ({"size": 16}, "data.size must be 8 or null for digits"),
    ],
)
def test_other_splits_and_sizes_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        load_data("digits", **options)
