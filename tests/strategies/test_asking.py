import numpy as np
import pytest
import toy

from automl.strategies.asking import ask_and_tell
from automl.strategies.cmaes import CmaEs
from automl.strategies.tpe import Tpe


class Recorder:
    """Asks for random points and notes what it is told."""

    def __init__(self, batch):
        self.batch, self.told, self.widened = batch, [], 0
        self._rng = np.random.default_rng(0)

    def ask(self):
        return self._rng.random(4)

    def tell(self, score):
        self.told.append(score)

    def widen(self):
        self.widened += 1


def scorer(failing):
    fault = RuntimeError("unlucky")
    return toy.Scorer(np.ones(4), every=lambda n: fault if n in failing else -5.0 + 0.1 * n)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("failing", [{0}, {0, 1}, {2}, {4, 5}])
def test_failures_are_told_as_the_worst_score_and_never_as_a_better_one(batch, failing):
    optimiser = Recorder(batch)
    problem = toy.problem(scorer=scorer(failing), rounding=1)
    found = ask_and_tell(problem, optimiser, 9).trials
    assert len(optimiser.told) == len(found) == 9
    worst = min(t.score for t in found if t.status == "ok")
    for told, trial in zip(optimiser.told, found, strict=True):
        assert told == (worst if trial.status == "failed" else trial.score)


def test_nothing_is_told_before_there_is_a_score():
    problem = toy.problem(scorer=scorer({0, 1, 2, 3}), rounding=1, max_failures=5)

    class Watched(Recorder):
        def ask(self):
            if len(problem.trials) in range(1, 5):
                assert self.told == []
            return super().ask()

    optimiser = Watched(1)
    ask_and_tell(problem, optimiser, 8)
    assert optimiser.told[:5] == [pytest.approx(-4.6)] * 5


class Repeating(Recorder):
    """Asks for the same point again and again, a new one only after it was told to look further."""

    def ask(self):
        return np.array([0.5 + 0.15 * min(self.widened, 3), 0.5, 0.5, 0.5])


@pytest.mark.parametrize("batch", [1, 3])
def test_who_asks_for_known_policies_only_is_told_to_look_further_and_ends_in_time(batch):
    optimiser = Repeating(batch)
    problem = toy.problem(scorer=scorer(set()), rounding=1)
    result = ask_and_tell(problem, optimiser, 9)
    assert len({t.policy.key for t in result.trials}) == len(result.trials) < 9
    assert len(result.trials) > 1  # further away there was more
    assert result.exhausted
    assert optimiser.widened >= 20
    assert len(optimiser.told) < 1000  # it came to an end


@pytest.mark.parametrize("strategy", [CmaEs, Tpe])
@pytest.mark.parametrize("seed", [0, 1])
def test_trials_are_used_up_where_most_points_round_to_known_policies(strategy, seed):
    weights = np.array([3.0, 2.0, 1.0, 1.0])
    problem = toy.problem((12, 12, 12, 12), scorer=toy.Scorer(weights), rounding=1)
    found = strategy().search(problem, 80, seed)
    assert len({t.policy for t in found.trials}) == len(found.trials) == 80
    assert not found.exhausted
