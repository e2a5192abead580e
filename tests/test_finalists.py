import numpy as np
import pytest
import toy

from automl.finalists import choose, chosen, finalists
from automl.strategies import load


class Noisy(toy.Scorer):
    """A search's score: the true one, and noise that puts others on top."""

    def __call__(self, model):
        score, metrics = super().__call__(model)
        noise = np.random.default_rng(int(model.key[:8], 16)).normal(0, 0.3)
        return score + noise, metrics


WEIGHTS = np.linspace(1, 2, 4) / 10


def searched(trials=40):
    problem = toy.problem(scorer=Noisy(WEIGHTS, fingerprint="noisy"))
    return problem, load("random").search(problem, trials, 0)


def test_the_strategys_choice_comes_first_and_the_others_by_score():
    problem, result = searched()
    policies = finalists(result, problem, 6)
    assert policies[0] == result.policy
    scores = [problem.evaluate(policy).score for policy in policies]
    assert len(set(policies)) == 6 and scores[1:] == sorted(scores[1:], reverse=True)
    assert min(scores) >= sorted((t.score for t in result.trials), reverse=True)[5]


def test_a_careful_score_corrects_a_noisy_one():
    problem, result = searched()
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
    problem, result = searched(3)
    with pytest.raises(ValueError, match=r"finalists\.count must be >= 1, got 0"):
        finalists(result, problem, 0)
