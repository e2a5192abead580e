import numpy as np
import pytest
import toy
from hypothesis import given, settings
from hypothesis import strategies as st

from automl.strategies.sensitivity import analyse
from automl.strategies.sensitivity_analysis import curves, isotonic, plan_probes


@pytest.fixture
def problem():
    return toy.problem((5, 16, 33, 64))


def test_every_target_comes_first_then_the_dearest_get_more(problem):
    probes = plan_probes(problem, 9)
    assert sorted(probe.members[0] for probe in probes[:4]) == [0, 1, 2, 3]
    halves = [probe.kept[probe.members[0]] / problem.space.units[probe.members[0]]
              for probe in probes[:4]]  # fmt: skip
    assert all(0.3 < half < 0.7 for half in halves)


def test_a_shorter_list_begins_a_longer_one_and_none_is_twice(problem):
    long = [tuple(probe.kept) for probe in plan_probes(problem, 10_000)]
    assert len(set(long)) == len(long) == sum(len(grid) - 1 for grid in problem.grids)
    assert [tuple(probe.kept) for probe in plan_probes(problem, 7)] == long[:7]


def test_what_is_measured_does_not_depend_on_the_budget():
    lists = [
        [tuple(probe.kept) for probe in plan_probes(toy.problem(budget=budget), 9)]
        for budget in ({"macs": 0.5}, {"params": 0.2}, {"macs": 0.9, "params": 0.3})
    ]
    assert lists[0] == lists[1] == lists[2]


def test_measured_points_are_on_the_curves(problem):
    analysis = analyse(problem, 10_000)
    found = curves(problem, analysis)
    for i, (grid, units, curve) in enumerate(
        zip(problem.grids, problem.space.units, found, strict=True)
    ):
        weight = np.linspace(1, 2, 4)[i]
        np.testing.assert_allclose(curve, weight * (1 - grid / units) ** 2, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("probes", [0, 1, 3, 4, 6, 9])
def test_curves_are_monotone_positive_and_zero_for_dense(problem, probes):
    for curve in curves(problem, analyse(problem, probes)):
        assert curve[-1] == 0
        assert (np.diff(curve) <= 0).all()
        assert (curve[:-1] > 0).all()


def test_between_points_curves_are_close_to_the_truth(problem):
    analysis = analyse(problem, 12)
    for i, curve in enumerate(curves(problem, analysis)):
        keep = problem.grids[i] / problem.space.units[i]
        truth = np.linspace(1, 2, 4)[i] * (1 - keep) ** 2
        not_nearly_dense = keep < 0.9
        np.testing.assert_allclose(
            np.log(curve[not_nearly_dense]), np.log(truth[not_nearly_dense]), atol=np.log(2)
        )


def test_noise_below_dense_becomes_small_damage():
    problem = toy.problem(scorer=toy.Scorer(np.array([1.0, -0.5, 1.0, 1.0])))
    found = curves(problem, analyse(problem, 100))
    assert (found[1][:-1] > 0).all()
    assert found[1].max() < found[0].max()


@settings(deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=20))
def test_isotonic_regression_is_the_nearest_non_decreasing_sequence(values):
    # Its closed form: the largest, over starts up to i, of the least mean up to any end from i.
    n, y = len(values), np.array(values)
    closed = [
        max(min(y[j : k + 1].mean() for k in range(i, n)) for j in range(i + 1)) for i in range(n)
    ]
    np.testing.assert_allclose(isotonic(y), closed, atol=1e-9)
