import numpy as np
import pytest
import toy

from automl.strategies.random import Random

UNITS = (64,) * 12


def draws(fraction: float, n: int = 200, **settings) -> np.ndarray:
    """Keep fractions of ``n`` policies, shape (n, targets)."""
    problem = toy.problem(UNITS, {"params": fraction}, rounding=1)
    rng = np.random.default_rng(0)
    return np.stack([Random(**settings).draw(problem, rng) for _ in range(n)]) / 64


def test_policies_are_distinct_and_as_many_as_asked_for():
    problem = toy.problem((64, 64, 64, 64))
    result = Random().search(problem, trials=40, seed=0)
    assert len({trial.policy for trial in result.trials}) == 40
    assert result.policy == max(result.trials, key=lambda trial: trial.score).policy


def test_seeds_differ():
    problem = toy.problem((64, 64, 64, 64))
    policies = [Random().search(problem, 1, seed).policy for seed in range(5)]
    assert len(set(policies)) == 5


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.8])
def test_every_policy_uses_the_whole_budget_and_all_targets_fare_alike(fraction):
    keep = draws(fraction)
    problem = toy.problem(UNITS, {"params": fraction}, rounding=1)
    costs = np.array([problem.costs((64 * k).astype(int))["params"] for k in keep])
    # One channel more of one target costs at most 9 * (64 + 64) parameters.
    assert np.all(costs > problem.limits["params"] - 9 * 128) and np.all(problem.within(64 * keep))
    # No end of the network, and no end of the scale, is favoured (ends read or write one channel).
    inner = keep[:, 1:-1].mean(axis=0)
    assert np.ptp(inner) < 6 * keep.std() / np.sqrt(len(keep))


def test_hardly_and_heavily_pruned_targets_occur_at_any_budget():
    for fraction in (0.2, 0.5, 0.8):
        keep = draws(fraction)
        assert keep.min() < fraction / 3 and keep.max() > 0.95


def test_policies_reach_from_nearly_uniform_to_extreme():
    variety = draws(0.5)[:, 1:-1].std(axis=1)
    assert variety.min() < 0.03 and variety.max() > 0.25


def test_spread_is_variety():
    assert draws(0.5, spread=0.2).std() < draws(0.5).std() < draws(0.5, spread=3.0).std()


def test_a_problem_with_few_policies_ends_early():
    result = Random().search(toy.problem((16,), scorer=toy.Scorer(np.ones(1))), trials=50, seed=0)
    assert len(result.trials) == 1 and result.exhausted


def test_a_search_that_has_its_trials_is_not_exhausted():
    assert not Random().search(toy.problem((64, 64)), trials=3, seed=0).exhausted


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match=r"Random.spread must be > 0 and finite, got 0"):
        Random(spread=0)
    with pytest.raises(ValueError, match=r"Random.trials must be >= 1, got 0"):
        Random().search(toy.problem(), 0, 0)
