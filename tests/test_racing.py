"""Races: how often the best is given up, and what a given-up trial means."""

import dataclasses
from collections.abc import Mapping

import numpy as np
import pytest
import toy
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from automl.finalists import chosen, searched
from automl.journal import Journal
from automl.problem import Problem, best
from automl.racing import Bar, Examined, Leader, Leaders, Race, Racing, drawn_order
from automl.strategies import load
from automl.trials import Trial
from automl.types import InputError, Measurement, SearchResult

BATCH = 32


def losses(kind: str, rng: np.random.Generator, n: int) -> np.ndarray:
    """Losses >= 0 of a network, from what is mild to what no test by normal theory survives."""
    if kind == "wrong":
        return (rng.random(n) < 0.3).astype(float)
    if kind == "heavy":
        return rng.pareto(1.2, n)
    if kind == "rare":  # one example in a hundred holds the whole loss
        return np.where(rng.random(n) < 0.01, 20.0, 0.0)
    return rng.lognormal(-1.0, 1.0, n)


def discarded(bar: Bar, x: np.ndarray, key: str) -> bool:
    race, order = Race(bar), drawn_order(len(x), key)
    parts = (order[start : start + BATCH] for start in range(0, len(x), BATCH))
    return any(race.falls_behind(rows, x[rows]) and race.examples < len(x) for rows in parts)


def key(*numbers: int) -> str:
    return "".join(f"{number:08x}" for number in numbers)


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(["wrong", "heavy", "rare", "lognormal"]),
    alike=st.floats(0, 1),
    better=st.floats(0, 0.2),
    delta=st.sampled_from([0.05, 0.2, 0.5]),
    seed=st.integers(0, 2**20),
)
def test_a_network_that_is_as_good_is_given_up_with_the_stated_probability_at_most(
    kind, alike, better, delta, seed
):
    """Over the orders that examples may come in, whatever the losses are."""
    rng, n, orders = np.random.default_rng(seed), 300, 200
    y = losses(kind, rng, n)
    other = losses(kind, rng, n)
    x = np.where(rng.random(n) < alike, y, other)
    x *= (1 - better) * y.sum() / max(x.sum(), 1e-12)  # as good, or better
    count = sum(discarded(Bar(y, delta), x, key(seed, i)) for i in range(orders))
    assert count <= binom.ppf(1 - 1e-7, orders, delta)


def test_the_bound_is_no_formality():
    """Where networks differ by what nobody could tell, races do go wrong now and then."""
    rng = np.random.default_rng(0)
    y = losses("wrong", rng, 300)
    x = rng.permutation(y)
    count = sum(discarded(Bar(y, 0.5), x, key(i, i)) for i in range(300))
    assert 10 < count <= binom.ppf(1 - 1e-7, 300, 0.5)


@pytest.mark.parametrize("kind", ["wrong", "lognormal"])
def test_a_network_that_is_clearly_worse_is_given_up_early(kind):
    rng = np.random.default_rng(0)
    y = losses(kind, rng, 4000)
    x = np.maximum(y, losses(kind, rng, 4000))
    race, order = Race(Bar(y, 1e-4)), drawn_order(4000, key(1, 2))
    for start in range(0, 4000, BATCH):
        rows = order[start : start + BATCH]
        if race.falls_behind(rows, x[rows]):
            break
    assert race.examples < 1000
    assert race.estimate() == pytest.approx(x.mean(), rel=0.25)
    assert race.estimate() > y.mean()


def test_what_cannot_catch_up_is_given_up_for_certain():
    y, x = np.full(10, 0.1), np.full(10, 0.5)
    race = Race(Bar(y, 1e-300))
    assert not race.falls_behind(np.arange(2), x[:2])
    assert race.falls_behind(np.arange(2, 4), x[2:4])  # 2.0 of 1.0


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_networks_without_any_difference_are_not_given_up(value):
    y = np.full(100, value)
    assert not discarded(Bar(y, 0.5), y, key(0, 0))


def leader(index: int, score: float) -> Leader:
    trial = Trial(index, None, Measurement(score), "ok", None, 0.0)
    return Leader(str(index), trial, np.zeros(1))


@pytest.mark.parametrize("places", [1, 3])
def test_error_probabilities_of_races_that_count_add_up_to_delta_at_most(places):
    leaders, spent = Leaders(Racing(0.01, places=places)), 0.0
    leaders.add([leader(i, float(-i)) for i in range(places)])
    for index in range(1000):  # the worst case: every round changes all leaders
        spent += places * leaders.bar(np.zeros(1)).delta
        leaders.add([leader(places + index, float(index + 1))])
    assert 0.0099 < spent <= 0.01


def test_the_bar_is_the_last_of_the_places_and_equals_rank_by_age():
    leaders = Leaders(Racing(places=2))
    leaders.add([leader(0, 1.0)])
    assert leaders.last is None
    leaders.add([leader(1, 3.0), leader(2, 1.0)])
    assert leaders.last.key == "0"
    leaders.add([leader(3, 2.0)])
    assert leaders.last.key == "3"


@pytest.mark.parametrize("settings", [{"delta": 0}, {"delta": 1}, {"round": 0}, {"places": 0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=f"Racing.{next(iter(settings))} must be"):
        Racing(**settings)


# ---- in a search


@dataclasses.dataclass
class Examples:
    """Scores like ``toy.Scorer``, as the mean over 400 examples that differ in difficulty."""

    fingerprint: str = "toy examples"
    seen: list[str] = dataclasses.field(default_factory=list)
    raced: list[str] = dataclasses.field(default_factory=list)

    def losses(self, policy) -> np.ndarray:
        removed = np.array([decision.removed for decision in policy.decisions])
        rng = np.random.default_rng(int(policy.key[:8], 16))
        difficulty = np.random.default_rng(0).lognormal(0.0, 1.0, (len(removed), 400))
        return (removed**2 @ difficulty) * rng.lognormal(0.0, 0.3, 400)

    def __call__(self, policy) -> tuple[float, Mapping[str, float]]:
        found = self.examine(policy, policy.key)
        return found.score, found.metrics

    def examine(self, policy, key: str, bar: Bar | None = None) -> Examined:
        self.seen.append(policy.key)
        x = self.losses(policy)
        if bar is not None:
            self.raced.append(policy.key)
            race, order = Race(bar), drawn_order(len(x), key)
            for start in range(0, len(x), BATCH):
                rows = order[start : start + BATCH]
                if race.falls_behind(rows, x[rows]) and race.examples < len(x):
                    metrics = {"loss": race.estimate(), "examples": float(race.examples)}
                    return Examined(-metrics["loss"], metrics, None)
        return Examined(-float(x.mean()), {"loss": float(x.mean())}, x)


def racing_problem(scorer=None, **settings) -> Problem:
    settings = {"racing": Racing(0.01), **settings}
    return toy.problem(scorer=Examples() if scorer is None else scorer, **settings)


def as_plain(result):
    return result.policy.key, [(t.index, t.policy.key, t.score, t.status) for t in result.trials]


@pytest.mark.parametrize("name", ["random", "cmaes", "tpe", "amc", "sensitivity"])
def test_strategies_let_trials_race_and_find_a_winner_that_saw_everything(name):
    plain = load(name).search(toy.problem(scorer=Examples()), 40, 0)
    assert all(trial.status == "ok" for trial in plain.trials)
    problem = racing_problem()
    result = load(name).search(problem, 40, 0)
    statuses = [trial.status for trial in result.trials]
    assert "discarded" in statuses and "failed" not in statuses
    winner = best([t for t in result.trials if problem.within(t.policy.kept(problem.targets))])
    assert result.policy == winner.policy and winner.status == "ok"
    for trial in result.trials:
        assert ("examples" in trial.measurement.metrics) == (trial.status == "discarded")
        assert trial.status == "ok" or trial.score < winner.score


def test_the_best_of_a_random_search_survive_as_often_as_stated():
    """Over searches that differ in the order of the examples, with policies all the same."""
    delta, searches, wrong, saved = 0.3, 25, 0, []
    expected = load("random").search(toy.problem(scorer=Examples()), 40, 0)
    wanted = {t.policy.key for t in sorted(expected.trials, key=lambda t: -t.score)[:3]}
    for number in range(searches):
        scorer = Examples(fingerprint=f"order {number}")
        found = load("random").search(
            racing_problem(scorer, racing=Racing(delta, round=4, places=3)), 40, 0
        )
        wrong += not wanted <= {t.policy.key for t in found.trials if t.status == "ok"}
        saved.append(sum(trial.status == "discarded" for trial in found.trials))
    assert wrong <= binom.ppf(1 - 1e-7, searches, delta)
    assert np.mean(saved) > 10


@pytest.mark.parametrize(
    ("name", "killed_after"), [("random", 3), ("random", 20), ("amc", 17), ("sensitivity", 20)]
)
def test_a_race_that_is_cut_resumes_to_the_same_result(name, tmp_path, killed_after):
    class Killed(Exception):
        pass

    expected = as_plain(load(name).search(racing_problem(), 24, 0))
    done = []

    def kill(trial):
        done.append(trial)
        if len(done) == killed_after:
            raise Killed

    with Journal(tmp_path / "trials.jsonl") as journal, pytest.raises(Killed):
        load(name).search(racing_problem(journal=journal, on_trial=kill), 24, 0)
    second = Examples()
    with Journal(tmp_path / "trials.jsonl") as journal:
        found = load(name).search(racing_problem(second, journal=journal), 24, 0)
    assert as_plain(found) == expected
    assert len(second.seen) <= 24 - killed_after + 1  # and the leader, for its losses


def test_a_discarded_policy_that_is_asked_for_in_full_is_scored_again(tmp_path):
    for again in (False, True):
        scorer = Examples()
        with Journal(tmp_path / "trials.jsonl") as journal:
            problem = racing_problem(scorer, journal=journal)
            trials = load("random").search(problem, 24, 0).trials
            loser = next(trial for trial in trials if trial.status == "discarded")
            full = problem.evaluate(loser.policy)
            assert full.status == "ok" and full.index == loser.index
            assert full.score == -scorer.losses(loser.policy).mean()
            assert problem.evaluate(loser.policy, race=True).status == "ok"
            rows = [row for row in journal if row["policy"] == loser.policy.key]
        assert [row["status"] for row in rows] == ["discarded", "ok"]
        assert not (again and scorer.seen)


def test_a_strategy_that_chooses_what_fell_behind_has_it_scored_in_full():
    class Loser:
        def search(self, problem, trials, seed):
            found = load("random").search(problem, trials, seed).trials
            loser = next(trial for trial in found if trial.status == "discarded")
            return SearchResult(loser.policy, found)

    result = searched(Loser(), racing_problem(), 24, 0)
    assert chosen(result).status == "ok"
    assert chosen(result).score == -Examples().losses(result.policy).mean()


def test_a_lost_race_says_nothing_of_a_race_against_another_bar(tmp_path):
    with Journal(tmp_path / "trials.jsonl") as journal:
        problem = racing_problem(journal=journal)
        first = load("random").search(problem, 24, 0)
    loser = next(trial for trial in first.trials if trial.status == "discarded")
    with Journal(tmp_path / "trials.jsonl") as journal:
        alone = racing_problem(journal=journal).evaluate(loser.policy, race=True)
        assert alone.status == "ok"  # there is nobody to fall behind
    again = Examples()
    with Journal(tmp_path / "trials.jsonl") as journal:
        found = load("random").search(racing_problem(again, journal=journal), 24, 0)
    assert as_plain(found) == as_plain(first)
    assert len(again.seen) <= 1  # the leader, for its losses


def test_a_lost_race_of_a_journal_that_names_no_bar_answers_all():
    rows: list = []
    first = load("random").search(racing_problem(journal=rows), 24, 0)
    old = [{name: value for name, value in row.items() if name != "bar"} for row in rows]
    found = load("random").search(racing_problem(Examples(), journal=old), 24, 0)
    assert as_plain(found) == as_plain(first)
    assert len(old) == len(rows)


def test_what_is_over_the_budget_or_in_other_journals_does_not_race():
    first = toy.problem(scorer=Examples())
    policies = [trial.policy for trial in load("random").search(first, 24, 0).trials]
    rows = [{"key": key, **row} for key, row in _rows(first)]
    scorer = Examples()
    problem = racing_problem(scorer, known=rows)
    problem.evaluate_many(policies, race=True)
    assert len(scorer.seen) == 24  # full scores of others say nothing of how a race would end
    dense = problem.policy(problem.space.units)
    scorer.raced.clear()
    assert problem.evaluate(dense, allow_over_budget=True, race=True).status == "ok"
    assert not scorer.raced


def _rows(problem: Problem):
    from automl.problem import trial_row

    return [(problem._key(trial.policy), trial_row(trial)) for trial in problem.trials]


def test_a_scorer_without_examples_cannot_race():
    with pytest.raises(InputError, match="racing needs the loss of every example"):
        toy.problem(racing=Racing())
