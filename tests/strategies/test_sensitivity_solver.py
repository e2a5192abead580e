import numpy as np
import pytest
import toy
from hypothesis import given, settings
from hypothesis import strategies as st

from automl.problem import Problem
from automl.strategies.sensitivity_solver import Solver


def random_problem(rng) -> Problem:
    """Three to five targets whose costs are coupled at random, one limit or two."""
    count = int(rng.integers(3, 6))
    units = rng.choice([4, 8, 16, 32], size=count)
    targets = toy.targets(*map(int, units))
    layers = [
        (float(rng.uniform(1, 50)), *map(int, rng.integers(-1, count, size=2))) for _ in range(8)
    ]
    layers += [(1.0, i, -1) for i in range(count)]  # every target costs something
    costs = {
        "macs": toy.Products("macs", tuple(layers)),
        "params": toy.Products("params", tuple((1.0, i, o) for _, i, o in layers[2:])),
    }
    budget = {"macs": float(rng.uniform(0.3, 0.8))}
    if rng.random() < 0.5:
        budget["params"] = float(rng.uniform(0.4, 0.9))
    return Problem(
        toy.Plan(targets), toy.Pruner(targets), toy.Scorer(np.ones(count)), budget, costs
    )


def random_damages(problem, rng):
    return [
        np.append(np.sort(rng.exponential(rng.exponential(), len(grid) - 1))[::-1], 0.0)
        for grid in problem.grids
    ]


def brute_force(solver, table) -> float:
    axes = [np.arange(size) for size in solver.sizes]
    every = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes))
    return float(solver.total(table, every[solver.within(every)]).min())


def gap(seed: int) -> float:
    rng = np.random.default_rng(seed)
    problem = random_problem(rng)
    solver = Solver(problem)
    table = solver.table(random_damages(problem, rng))
    at = solver.solve(table)
    assert solver.within(at)
    return float(solver.total(table, at)) / max(brute_force(solver, table), 1e-12) - 1


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000))
def test_nothing_is_better_than_brute_force_and_nothing_over_budget(seed):
    assert gap(seed) > -1e-9


def test_nearly_always_the_optimum_is_found():
    gaps = np.array([gap(seed) for seed in range(100)])
    assert (gaps < 1e-9).mean() >= 0.97
    assert gaps.mean() < 0.01


def test_no_step_can_be_added():
    problem = toy.problem((64, 64, 64, 64), {"macs": 0.37})
    solver = Solver(problem)
    at = solver.solve(solver.table([np.append(np.ones(len(g) - 1), 0) for g in problem.grids]))
    more = at + np.eye(4, dtype=np.int64)
    assert not solver.within(more[(more < solver.sizes).all(axis=1)]).any()


def test_latency_like_steps_are_taken_to_their_edge():
    class Stairs(toy.Products):
        def __call__(self, kept):
            return super().__call__(np.ceil(kept / 16) * 16)

    targets = toy.targets(64, 64)
    cost = {"latency_ms": Stairs("latency_ms", ((1.0, -1, 0), (1.0, 0, 1), (1.0, 1, -1)))}
    problem = Problem(
        toy.Plan(targets), toy.Pruner(targets), toy.Scorer(np.ones(2)), {"latency_ms": 0.5}, cost
    )
    solver = Solver(problem)
    table = solver.table([(1 - g / 64) ** 2 for g in problem.grids])
    at = solver.solve(table)
    assert (solver.kept(at) % 16 == 0).all()
    assert solver.total(table, at) == pytest.approx(brute_force(solver, table))


def test_a_table_of_zeros_and_a_single_choice_are_solved_too():
    problem = toy.problem((1,), {"macs": 1.0}, scorer=toy.Scorer(np.ones(1)))
    solver = Solver(problem)
    assert solver.solve(solver.table([np.zeros(1)])).tolist() == [0]


def test_neighbours_are_near_and_use_the_budget():
    problem = toy.problem((64, 64, 64, 64), {"macs": 0.37, "params": 0.5})
    solver = Solver(problem)
    parent = solver.positions(problem.fit(np.ones(4)))
    found = solver.neighbours(parent[None], 200, np.random.default_rng(0))
    assert len(found) > 20
    assert len(np.unique(found, axis=0)) == len(found)
    assert solver.within(found).all()
    more = found[:, None, :] + np.eye(4, dtype=np.int64)
    legal = (more < solver.sizes).all(axis=-1)
    assert not solver.within(more[legal]).any()
    assert np.median(np.abs(found - parent).sum(axis=1)) < 12


def test_neighbours_of_the_only_policy_are_itself():
    problem = toy.problem()
    least = problem.costs(problem.space.low)["macs"]
    solver = Solver(toy.problem(budget={"macs": {"absolute": least}}))
    only = solver.positions(problem.space.low)[None]
    assert solver.neighbours(only, 20, np.random.default_rng(0)).tolist() == only.tolist()


def test_neighbours_of_many_targets_are_costed_a_part_at_a_time(monkeypatch):
    problem = toy.problem((16,) * 60, rounding=4)
    solver = Solver(problem)
    parents = solver.positions(problem.fit(np.ones(60)))[None]

    def found():
        return solver.neighbours(parents, 64, np.random.default_rng(0))

    whole = found()
    sizes, within = [], problem.within
    monkeypatch.setattr("automl.strategies.sensitivity_solver._ENTRIES", 6000)
    problem.within = lambda kept: sizes.append(kept.size) or within(kept)
    assert np.array_equal(found(), whole)
    assert max(sizes) <= 6000
