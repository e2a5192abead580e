"""What every strategy in conf/strategy keeps: the budget, its seed, legal counts, resume."""

import numpy as np
import pytest
import toy

from automl.journal import Journal
from automl.problem import SearchStopped, Trial
from automl.strategies import load, names

TRIALS = 6

BUDGETS = [
    {"macs": 0.5},
    {"params": 0.15},
    {"macs": 0.9, "params": 0.3},
    {"macs": {"absolute": 2_000_000}, "params": {"fraction": 0.6}},
    {"macs": 1.0},
]


class Killed(Exception):
    """Stands for whatever ends a process between two trials."""


@pytest.fixture(params=names())
def strategy(request):
    return load(request.param)


def scorer(n: int = 4, **settings) -> toy.Scorer:
    return toy.Scorer(np.linspace(1, 2, n), **settings)


def as_plain(result):
    return result.policy.to_json(), [(t.index, t.policy.key, t.score) for t in result.trials]


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_the_budget_is_met_and_used(strategy, budget):
    problem = toy.problem(budget=budget)
    result = strategy.search(problem, TRIALS, 0)
    kept = result.policy.kept(problem.targets)
    assert problem.within(kept)
    for i in range(len(kept)):
        more = kept.copy()
        more[i] = min(more[i] + problem.space.step[i], problem.space.units[i])
        assert more[i] == kept[i] or not problem.within(more), f"target {i} of {kept} can be raised"


def test_the_smallest_network_is_found_where_nothing_else_fits(strategy):
    problem = toy.problem()
    least = problem.costs(problem.space.low)["macs"]
    problem = toy.problem(budget={"macs": {"absolute": least}})
    result = strategy.search(problem, TRIALS, 0)
    assert result.policy.kept(problem.targets).tolist() == problem.space.low.tolist()


def test_counts_are_legal_and_ratios_in_range(strategy):
    problem = toy.problem((5, 16, 33, 64))
    result = strategy.search(problem, TRIALS, 0)
    for trial in [*result.trials, problem.evaluate(result.policy)]:
        assert problem.space.contains(trial.policy.kept(problem.targets))
        assert all(0 <= decision.ratio < 1 for decision in trial.policy.decisions)


def test_the_same_seed_gives_the_same_policy(strategy):
    np.random.seed(1)
    first = as_plain(strategy.search(toy.problem(), TRIALS, 3))
    np.random.seed(2)
    assert as_plain(strategy.search(toy.problem(), TRIALS, 3)) == first


def test_counts_and_seeds_may_be_of_numpy(strategy):
    plain = as_plain(strategy.search(toy.problem(), TRIALS, 3))
    assert as_plain(strategy.search(toy.problem(), np.int64(TRIALS), np.int64(3))) == plain


def test_no_more_trials_are_run_than_asked_for_and_the_best_is_returned(strategy):
    score = scorer()
    problem = toy.problem(scorer=score)
    result = strategy.search(problem, TRIALS, 0)
    assert 1 <= len(score.seen) <= TRIALS and len(result.trials) <= TRIALS
    assert all(isinstance(trial, Trial) for trial in result.trials)
    allowed = [t for t in result.trials if problem.within(t.policy.kept(problem.targets))]
    assert problem.evaluate(result.policy).score == max(trial.score for trial in allowed)
    assert len(score.seen) <= TRIALS  # the policy returned had been scored


@pytest.mark.parametrize("killed_after", [1, 4])
def test_a_search_that_is_cut_resumes_to_the_same_result_without_scoring_twice(
    strategy, tmp_path, killed_after
):
    expected = as_plain(strategy.search(toy.problem(), TRIALS, 0))
    path = tmp_path / "trials.jsonl"
    done: list[Trial] = []

    def kill(trial):
        done.append(trial)
        if len(done) == killed_after:
            raise Killed

    first, second = scorer(), scorer()
    with Journal(path) as journal:
        try:
            strategy.search(toy.problem(scorer=first, journal=journal, on_trial=kill), TRIALS, 0)
        except Killed:
            pass
    with Journal(path) as journal:
        result = strategy.search(toy.problem(scorer=second, journal=journal), TRIALS, 0)
    assert as_plain(result) == expected
    keys = [policy.key for policy in [*first.seen, *second.seen]]
    assert len(keys) == len(set(keys)), "a policy was scored twice"


def test_failed_trials_do_not_end_the_search_and_are_never_the_result(strategy):
    score = scorer(faults={0: float("nan"), 2: RuntimeError("out of memory")})
    problem = toy.problem(scorer=score)
    try:
        result = strategy.search(problem, TRIALS, 0)
    except SearchStopped:
        assert all(trial.status == "failed" for trial in problem.trials)
    else:
        assert problem.evaluate(result.policy).status == "ok"


@pytest.mark.parametrize("units", [1, 2, 8, 64])
def test_a_single_target_is_a_problem_too(strategy, units):
    problem = toy.problem((units,), {"macs": 0.6 if units > 1 else 1.0}, scorer=scorer(1))
    result = strategy.search(problem, TRIALS, 0)
    assert problem.within(result.policy.kept(problem.targets))


def test_one_trial_is_enough_for_a_result(strategy):
    problem = toy.problem()
    assert problem.within(strategy.search(problem, 1, 0).policy.kept(problem.targets))
