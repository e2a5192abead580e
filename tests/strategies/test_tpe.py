import numpy as np
import pytest
import toy

from automl.strategies.random import Random
from automl.strategies.tpe import Tpe

UNITS = (64,) * 6


def best(strategy, trials):
    found = []
    for seed in range(2):
        weights = np.random.default_rng(seed).lognormal(sigma=1.5, size=6)
        problem = toy.problem(UNITS, scorer=toy.Scorer(weights / 10), rounding=4)
        found.append(max(t.score for t in strategy.search(problem, trials, seed).trials))
    return np.mean(found)


def test_it_beats_random_search_at_equal_trials():
    assert best(Tpe(), 40) > best(Random(), 40)


def test_all_trials_are_distinct_and_seeds_differ():
    problem = toy.problem(UNITS)
    first = Tpe().search(problem, 30, 0)
    assert len({t.policy for t in first.trials}) == len(first.trials) >= 25
    assert Tpe().search(toy.problem(UNITS), 30, 1).trials[0].policy != first.trials[0].policy


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match=r"Tpe.startup must be >= 1, got 0"):
        Tpe(startup=0)


def test_batches_are_proposed_together():
    problem = toy.problem(UNITS)
    found = Tpe(batch=4).search(problem, 21, 0)
    assert len({t.policy for t in found.trials}) == len(found.trials) == 21
    assert best(Tpe(batch=4), 40) > best(Random(), 40)
    with pytest.raises(ValueError, match=r"Tpe.batch must be >= 1, got 0"):
        Tpe(batch=0)
