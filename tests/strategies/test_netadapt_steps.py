"""Which counts meet a step: against brute force, on costs that rise and fall."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
import toy
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from automl.problem import Problem
from automl.strategies.netadapt_steps import Iteration, Options, excess, geometric, repaid


@dataclass(frozen=True)
class Staircase:
    """A measured table: one cost per target and count, which need not rise with the count."""

    resource: str
    tables: tuple[tuple[float, ...], ...]

    def __call__(self, kept):
        columns = [np.asarray(t)[kept[..., i] - 1] for i, t in enumerate(self.tables)]
        return np.sum(columns, axis=0)


def staircase(tables, budget, resource="latency_ms", **others) -> Problem:
    """A problem with one table per target; the budget in absolute values."""
    targets = toy.targets(*map(len, tables))
    costs = {resource: Staircase(resource, tables), **others}
    return Problem(
        toy.Plan(targets),
        toy.Pruner(targets),
        toy.Scorer(np.ones(len(tables))),
        {name: {"absolute": value} for name, value in budget.items()},
        costs,
        rounding=1,
    )


@st.composite
def problems(draw):
    """A staircase problem, its tables, and a network that breaks its budget."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    numbers = st.integers(1, 30).map(float)
    tables = tuple(tuple(draw(numbers) for _ in range(size)) for size in sizes)
    kept = np.array([draw(st.integers(1, size)) for size in sizes])
    least = sum(table[0] for table in tables)
    cost = sum(table[k - 1] for table, k in zip(tables, kept, strict=True))
    assume(cost > least)
    limit = least + draw(st.floats(0.0, 0.95)) * (cost - least)
    return staircase(tables, {"latency_ms": limit}), tables, kept


@settings(max_examples=300, deadline=None)
@given(problems(), st.floats(0.0, 1.0))
def test_counts_are_the_largest_that_meet_the_step(found, step):
    problem, tables, kept = found
    limit, dense = problem.limits["latency_ms"], problem.dense_costs["latency_ms"]
    now = sum(table[k - 1] for table, k in zip(tables, kept, strict=True))
    goal = max(limit, now - step * dense)
    expected = {}
    for i, table in enumerate(tables):
        rest = now - table[kept[i] - 1]
        for count in range(1, len(table) + 1):
            cost = rest + table[count - 1]
            if count != kept[i] and cost <= goal + 1e-12 and cost < now:
                expected[i] = count
    iteration = Iteration.of(problem, kept)
    assert iteration.cost == now and iteration.counts(step, limit) == expected


@settings(max_examples=150, deadline=None)
@given(problems())
def test_what_is_repaid_fits_and_no_more_does(found):
    problem, tables, _ = found
    rows = [range(1, len(table) + 1) for table in tables]
    allowed = [np.array(k) for k in product(*rows) if problem.within(np.array(k))]
    for kept in allowed[:: max(1, len(allowed) // 5)]:
        more = repaid(problem, kept)
        assert problem.within(more) and np.all(more >= kept)
        for i, table in enumerate(tables):
            for count in range(more[i] + 1, len(table) + 1):
                larger = more.copy()
                larger[i] = count
                assert not problem.within(larger)


def test_options_are_all_networks_that_differ_in_one_target():
    problem = toy.problem((4, 2, 8), rounding=1)
    kept = np.array([4, 1, 3])
    options = Options.of(problem, kept)
    pairs = list(zip(options.target.tolist(), options.count.tolist(), strict=True))
    assert pairs == [(0, 1), (0, 2), (0, 3), (1, 2)] + [(2, n) for n in (1, 2, 4, 5, 6, 7, 8)]
    for (target, count), cost in zip(pairs, options.costs["macs"], strict=True):
        row = kept.copy()
        row[target] = count
        assert cost == problem.costs(row)["macs"]


def test_many_options_are_asked_for_in_pieces(monkeypatch):
    problem = toy.problem((64, 64), rounding=1)
    kept = problem.space.high
    expected = Options.of(problem, kept).costs["macs"]
    monkeypatch.setattr("automl.strategies.netadapt_steps._ROWS", 7)
    np.testing.assert_array_equal(Options.of(problem, kept).costs["macs"], expected)


def test_a_larger_count_that_costs_less_is_a_reduction():
    # 3 units take 9, 4 take 5: the step up is the way down.
    problem = staircase(((1.0, 2.0, 9.0, 5.0),), {"latency_ms": 6.0})
    assert Iteration.of(problem, np.array([3])).counts(0.0, 6.0) == {0: 4}


def test_the_most_violated_resource_is_reduced_and_no_other_goes_beyond_its_limit():
    targets = toy.targets(4, 4)
    costs = {
        "macs": Staircase("macs", ((1.0, 2.0, 3.0, 4.0), (1.0, 2.0, 3.0, 4.0))),
        "latency_ms": Staircase("latency_ms", ((3.0, 3.0, 2.0, 1.0), (1.0, 2.0, 3.0, 8.0))),
    }
    problem = Problem(
        toy.Plan(targets), toy.Pruner(targets), toy.Scorer(np.ones(2)),
        {"macs": {"absolute": 5.0}, "latency_ms": {"absolute": 4.5}}, costs, rounding=1,
    )  # fmt: skip
    first = Iteration.of(problem, np.array([4, 4]))  # macs 8 of 5, latency 9 of 4.5
    assert first.resource == "latency_ms" and first.cost == 9.0
    assert first.counts(0.5, 4.5) == {1: 3}
    later = Iteration.of(problem, np.array([4, 3]))  # macs 7 of 5, latency 4 of 4.5
    assert later.resource == "macs"
    assert later.counts(1.0, 5.0) == {1: 1}  # less of the first target takes 5 of 4.5 ms


def test_steps_decay_and_add_up():
    steps = geometric(0.5, 10, 0.9) * 0.9 ** np.arange(10)
    assert steps.sum() == pytest.approx(0.5) and steps[0] > steps[-1]
    assert geometric(0.5, 4, 1.0) == pytest.approx(0.125)


def test_excess_is_a_fraction_of_dense():
    problem = toy.problem(budget={"macs": 0.5, "params": 1.0})
    assert excess(problem, problem.space.high) == pytest.approx({"macs": 0.5, "params": 0.0})


@pytest.mark.parametrize("trials", [1, 4, 11, 40, 400])
def test_the_smallest_step_is_one_the_trials_can_afford(trials):
    problem = toy.problem((32, 32, 32), {"macs": 0.5}, rounding=1)
    iteration = Iteration.of(problem, problem.space.high)
    limit = problem.limits["macs"]
    step = iteration.smallest_step(0.5, 1.0, limit, trials)
    if step is None:
        assert trials < 2 * len(iteration.counts(0.25, limit))
        return
    iterations = round(0.5 / step)
    candidates = len(iteration.counts(step, limit))
    assert candidates * iterations <= trials
    finer = geometric(0.5, iterations + 1, 1.0)
    assert len(iteration.counts(finer, limit)) * (iterations + 1) > trials
