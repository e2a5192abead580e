import tracemalloc

import numpy as np
import pytest

from automl.strategies.sensitivity_model import Interaction


def policies(count: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    keep = rng.choice([0.25, 0.5, 0.75, 1.0], size=(count, 5))
    return keep, (1 - keep) ** 2 * np.arange(1, 6) + 0.01


def truth(keep, alone):
    """Damage with an interaction: the first two targets together hurt more."""
    return alone.sum(axis=1) * np.exp(0.1 + 0.5 * (1 - keep[:, 0]) * (1 - keep[:, 1]))


def test_it_learns_what_the_sum_does_not_know():
    (keep, alone), (new, other) = policies(80), policies(60, seed=1)
    model = Interaction.fitted(alone, keep, truth(keep, alone))
    mean, _ = model.predicted(other, new)
    wrong = np.log(truth(new, other)) - mean
    by_sum = np.log(truth(new, other) / other.sum(axis=1))
    assert wrong.std() < 0.5 * by_sum.std()


def test_it_agrees_with_what_was_tried_and_is_sure_of_it():
    keep, alone = policies(30)
    damage = truth(keep, alone)
    model = Interaction.fitted(alone, keep, damage)
    mean, deviation = model.predicted(alone, keep)
    np.testing.assert_allclose(mean, np.log(damage), atol=0.05)
    assert deviation.max() < 0.05


def test_deviations_say_how_wrong_it_is():
    (keep, alone), (new, other) = policies(40), policies(60, seed=1)
    model = Interaction.fitted(alone, keep, truth(keep, alone))
    mean, deviation = model.predicted(other, new)
    score = (np.log(truth(new, other)) - mean) / deviation
    assert (np.abs(score) < 3).mean() > 0.95


def test_the_improvement_is_what_sampling_gives():
    (keep, alone), (new, other) = policies(20), policies(10, seed=1)
    damage = truth(keep, alone)
    model = Interaction.fitted(alone, keep, damage)
    mean, deviation = model.predicted(other, new)
    draws = mean + deviation * np.random.default_rng(0).standard_normal((200_000, len(new)))
    sampled = np.maximum(np.log(damage.min()) - draws, 0).mean(axis=0)
    np.testing.assert_allclose(model.improvement(other, new), sampled, atol=2e-3)


@pytest.mark.parametrize("count", [1, 2])
def test_one_policy_is_enough(count):
    keep, alone = policies(count)
    model = Interaction.fitted(alone, keep, truth(keep, alone))
    assert np.isfinite(model.improvement(alone, keep)).all()
    assert model.improvement(alone, keep).min() >= 0


def test_memory_does_not_grow_with_policies_times_policies_times_targets():
    rng = np.random.default_rng(0)
    keep = rng.choice([0.25, 0.5, 0.75, 1.0], size=(300, 200))
    alone = (1 - keep) ** 2 + 0.01
    tracemalloc.start()
    try:
        model = Interaction.fitted(alone, keep, alone.sum(axis=1))
        model.improvement(alone, keep)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 30e6  # the distances by target would be 144 MB
