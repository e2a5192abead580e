import numpy as np
import pytest
import toy

from automl.strategies.cmaes import CmaEs
from automl.strategies.random import Random

UNITS = (64,) * 6


def best(strategy, trials):
    found = []
    for seed in range(2):
        weights = np.random.default_rng(seed).lognormal(sigma=1.5, size=6)
        problem = toy.problem(UNITS, scorer=toy.Scorer(weights / 10), rounding=4)
        found.append(max(t.score for t in strategy.search(problem, trials, seed).trials))
    return np.mean(found)


def test_it_beats_random_search_at_equal_trials():
    assert best(CmaEs(), 120) > best(Random(), 120)


def test_all_trials_are_distinct_and_seeds_differ():
    problem = toy.problem(UNITS)
    first = CmaEs().search(problem, 30, 0)
    assert len({t.policy for t in first.trials}) == 30
    assert CmaEs().search(toy.problem(UNITS), 30, 1).trials[0].policy != first.trials[0].policy


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sigma": 0}, r"CmaEs.sigma must be in \(0, 1\], got 0"),
        ({"population": 3}, "CmaEs.population must be >= 4, got 3"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        CmaEs(**settings)
    with pytest.raises(ValueError, match="trials must be >= 1, got 0"):
        CmaEs().search(toy.problem(), 0, 0)


class Batches:
    """How many policies were asked to be scored at a time."""

    def __init__(self, problem):
        self.sizes, self.evaluate_many = [], problem.evaluate_many
        problem.evaluate_many = self

    def __call__(self, policies, **settings):
        self.sizes.append(len(policies))
        return self.evaluate_many(policies, **settings)


def test_generations_are_scored_together_and_change_nothing(monkeypatch):
    from automl.strategies import cmaes

    class Endless(cmaes._Generations):
        def widen(self):
            """No start anew, which one known point is no ground for and a generation of them is."""

    class OneByOne(Endless):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.batch = 1

    together, alone = toy.problem(UNITS), toy.problem(UNITS)
    batches = Batches(together)
    monkeypatch.setattr(cmaes, "_Generations", Endless)
    first = CmaEs(population=8).search(together, 30, 0)
    assert batches.sizes[0] == 8 and len(batches.sizes) < 10

    monkeypatch.setattr(cmaes, "_Generations", OneByOne)
    second = CmaEs(population=8).search(alone, 30, 0)
    assert [t.policy for t in first.trials] == [t.policy for t in second.trials]
    assert len(first.trials) == 30
