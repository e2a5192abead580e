import numpy as np
import pytest
import toy

from automl.strategies.asking import ask_and_tell


class Recorder:
    """Asks for random points and notes what it is told."""

    def __init__(self, batch):
        self.batch, self.told = batch, []
        self._rng = np.random.default_rng(0)

    def ask(self):
        return self._rng.random(4)

    def tell(self, score):
        self.told.append(score)


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
