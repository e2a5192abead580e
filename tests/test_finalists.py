from dataclasses import replace

import numpy as np
import pytest
import toy

from automl.finalists import choose, chosen, finalists, searched
from automl.problem import best_within
from automl.strategies import load
from automl.types import InputError, SearchResult


class Noisy(toy.Scorer):
    """A search's score: the true one, and noise that puts others on top."""

    def __call__(self, model):
        score, metrics = super().__call__(model)
        noise = np.random.default_rng(int(model.key[:8], 16)).normal(0, 0.3)
        return score + noise, metrics


WEIGHTS = np.linspace(1, 2, 4) / 10


def searched_at_random(trials=40):
    problem = toy.problem(scorer=Noisy(WEIGHTS, fingerprint="noisy"))
    return problem, load("random").search(problem, trials, 0)


def test_the_strategys_choice_comes_first_and_the_others_by_score():
    problem, result = searched_at_random()
    policies = finalists(result, problem, 6)
    assert policies[0] == result.policy
    scores = [problem.evaluate(policy).score for policy in policies]
    assert len(set(policies)) == 6 and scores[1:] == sorted(scores[1:], reverse=True)
    assert min(scores) >= sorted((t.score for t in result.trials), reverse=True)[5]


def test_a_careful_score_corrects_a_noisy_one():
    problem, result = searched_at_random()
    careful = toy.problem(scorer=toy.Scorer(WEIGHTS))
    found = choose(finalists(result, problem, 10), careful)
    assert found.score > careful.evaluate(result.policy).score
    assert len(careful.trials) == 10


def test_failed_trials_and_policies_over_budget_stay_out():
    weights = np.ones(4) / 10
    faults = {0: float("nan")}
    problem = toy.problem(scorer=toy.Scorer(weights, faults=faults))
    result = load("random").search(problem, 10, 0)
    over = problem.evaluate(problem.policy(problem.space.units), allow_over_budget=True)
    result = type(result)(result.policy, (*result.trials, over))
    policies = finalists(result, problem, 20)
    assert over.policy not in policies and len(policies) == 9
    assert chosen(result).policy == result.policy


def test_no_finalist_is_refused():
    problem, result = searched_at_random(3)
    with pytest.raises(ValueError, match=r"finalists\.count must be >= 1, got 0"):
        finalists(result, problem, 0)


# ---- what a strategy may return


class Returns:
    """A strategy that returns what a function makes of the problem."""

    def __init__(self, make):
        self.make = make

    def search(self, problem, trials, seed):
        return self.make(problem)


def uniform_of(problem):
    return problem.policy(problem.fit(np.ones(len(problem.targets))))


def over_budget(problem):
    trial = problem.evaluate(problem.policy(problem.space.units), allow_over_budget=True)
    return SearchResult(trial.policy, (trial,))


def of_other_weights(problem):
    return SearchResult(replace(uniform_of(problem), model_hash="others"), ())


def failed(problem):
    trial = problem.evaluate(uniform_of(problem))
    return SearchResult(trial.policy, (trial,))


def the_trial_itself(problem):
    trial = problem.evaluate(uniform_of(problem))
    return SearchResult(trial, (trial,))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (over_budget, r"chose a policy over the budget \(macs 8.44\S+ of 4.22\S+\); .*best_within"),
        (of_other_weights, "chose a policy that cannot be used: policy was learned on other"),
        (failed, r"chose a policy whose trial failed \(.*nan.*\); .*best does"),
        (the_trial_itself, r"must return .*SearchResult\(policy, trials\), got .* of type Trial"),
        (lambda problem: None, r"must return .*SearchResult\(policy, trials\), got NoneType"),
    ],
)
def test_what_cannot_be_a_result_is_refused_by_the_strategys_name(make, message):
    faults = {0: float("nan")} if make is failed else {}
    problem = toy.problem(scorer=toy.Scorer(np.ones(4), faults=faults))
    with pytest.raises(InputError, match=f"^strategy Returns {message}") as told:
        searched(Returns(make), problem, 3, 0)
    assert "\n" not in str(told.value)


def test_a_policy_that_the_strategy_did_not_try_is_tried_as_the_last():
    problem = toy.problem()
    least = problem.evaluate(problem.policy(problem.space.low))
    strategy = Returns(lambda problem: SearchResult(uniform_of(problem), (least,), True))
    result = searched(strategy, problem, 3, 0)
    assert [trial.policy for trial in result.trials] == [least.policy, uniform_of(problem)]
    assert chosen(result).score == problem.evaluate(uniform_of(problem)).score
    assert result.exhausted and len(problem.trials) == 2


def test_a_strategy_that_keeps_its_trials_to_itself_has_a_result_all_the_same():
    problem = toy.problem()
    problem.evaluate(uniform_of(problem))
    result = searched(Returns(lambda p: SearchResult(uniform_of(p), ())), problem, 3, 0)
    assert chosen(result).policy == result.policy == uniform_of(problem)
    assert len(problem.trials) == 1


def test_what_the_strategies_find_stays_as_it_is():
    problem = toy.problem()
    found = searched(load("random"), problem, 6, 0)
    assert found == load("random").search(toy.problem(), 6, 0)
    assert chosen(found) == best_within(problem, found.trials)
