import numpy as np
import pytest
import toy
from hypothesis import given
from hypothesis import strategies as st

from automl.problem import SearchStopped
from automl.strategies.uniform import Uniform


def test_all_targets_keep_the_same_fraction_but_for_what_is_left_of_the_budget():
    problem = toy.problem((64, 64, 128, 256), {"macs": 0.5})
    result = Uniform().search(problem, trials=10, seed=0)
    kept = result.policy.kept(problem.targets)
    assert len(result.trials) == 1
    # A chain whose inner layers dominate: half the MACs is sqrt(1/2) of the channels.
    assert np.all(np.abs(kept - 0.7 * problem.space.units) <= 2 * problem.space.step)


@given(st.floats(0.05, 1), st.sampled_from([1, 8]))
def test_the_largest_uniform_network_within_the_budget_is_found(fraction, rounding):
    problem = toy.problem((32, 48, 64), {"params": fraction}, rounding=rounding)
    kept = Uniform().search(problem, 1, 0).policy.kept(problem.targets)
    keep = np.linspace(0, 1, 2001)[:, None].repeat(3, axis=1)
    fitting = problem.space.nearest(keep)
    fitting = fitting[problem.within(fitting)]
    assert np.all(kept >= fitting[-1])


def test_a_policy_that_cannot_be_scored_stops_the_search():
    scorer = toy.Scorer(np.ones(4), every=lambda _: RuntimeError("broken"))
    with pytest.raises(SearchStopped, match="no trial succeeded: RuntimeError: broken"):
        Uniform().search(toy.problem(scorer=scorer), 1, 0)
