import contextlib
import json
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import toy

from automl.problem import SearchStopped
from automl.strategies import load
from automl.strategies.amc import AMC
from automl.strategies.amc_agent import AGENT_FILE, explore
from automl.strategies.amc_credit import Credit, transform
from automl.strategies.neighbours import neighbour
from automl.types import InputError
from envs.features import FEATURES

UNITS = (16, 16, 32, 32, 64, 64)
SMALL = {"hidden": 16, "batch_size": 16}


def problem(budget=0.5, **settings):
    return toy.problem(UNITS, {"macs": budget}, **settings)


def scores(result):
    return [trial.score for trial in result.trials]


# ---- the search


@pytest.mark.parametrize("algorithm", ["ddpg", "td3", "sac"])
@pytest.mark.parametrize("paper", [True, False])
def test_one_seed_gives_one_policy_and_seeds_differ(algorithm, paper):
    book = {"candidates": 0, "credit": False, "guides": False, "analysis": 0.0}
    settings = book if paper else {}

    def search(seed):
        strategy = AMC(algorithm=algorithm, **settings, **SMALL)
        result = strategy.search(problem(), 24, seed)
        return result.policy, scores(result)

    np.random.seed(5)
    first = search(1)
    np.random.seed(6)
    assert search(1) == first
    assert search(2)[1] != first[1]


def test_it_beats_random_search_at_equal_trials():
    def best(strategy, seed):
        rng = np.random.default_rng(seed)
        scorer = toy.Scorer(rng.lognormal(sigma=1.5, size=len(UNITS)) / 10)
        found = strategy.search(problem(scorer=scorer, rounding=4), 40, seed)
        return max(scores(found))

    seeds = range(2)
    ours = np.array([best(AMC(**SMALL), seed) for seed in seeds])
    random = np.array([best(load("random"), seed) for seed in seeds])
    assert np.all(ours >= random) and ours.mean() > random.mean()


def test_it_starts_from_what_dynamic_programming_makes_of_single_targets():
    scorer = toy.Scorer(np.array([4.0, 1.0, 1.0, 0.1, 1.0, 0.1]) / 10)
    result = AMC(**SMALL).search(problem(scorer=scorer), 40, 0)
    uniform = load("uniform").search(problem(scorer=scorer), 1, 0).trials[0]
    assert result.trials[0].policy.key == uniform.policy.key  # first, so that there is a result
    pruned = [(t.policy.kept(problem().targets) < UNITS).sum() for t in result.trials[1:12]]
    assert pruned == [0, *[1] * 10]  # a quarter of the trials, after the dense network
    first = result.trials[12]
    assert problem().within(first.policy.kept(problem().targets)) and first.score > uniform.score
    assert len(result.trials) == 40 and max(scores(result)[12:]) >= first.score


def test_no_policy_is_scored_twice():
    result = AMC(**SMALL).search(problem(), 25, 0)
    assert len({trial.policy.key for trial in result.trials}) == 25


def test_a_problem_with_few_policies_ends_early():
    result = AMC(**SMALL).search(toy.problem((16,), scorer=toy.Scorer(np.ones(1))), 50, 0)
    assert len(result.trials) == 1 and result.exhausted


def test_failed_trials_teach_nothing_and_three_in_a_row_stop():
    scorer = toy.Scorer(np.ones(6) / 10, every=lambda n: float("nan") if n % 3 == 1 else None)
    result = AMC(**SMALL).search(problem(scorer=scorer), 20, 0)
    assert sum(trial.status == "failed" for trial in result.trials) == 7
    scorer = toy.Scorer(np.ones(6) / 10, every=lambda n: RuntimeError("no") if n > 8 else None)
    with pytest.raises(SearchStopped):
        AMC(**SMALL).search(problem(scorer=scorer), 20, 0)


def test_without_a_wall_the_result_is_still_within_the_budget():
    strategy = AMC(reward="params", wall=False, candidates=0, credit=False, **SMALL)
    few = problem(0.9)
    result = strategy.search(few, 20, 0)
    assert few.within(result.policy.kept(few.targets))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"reward": "eror"}, "no reward is called 'eror'; did you mean 'error'?"),
        ({"algorithm": "ppo"}, "no algorithm is called 'ppo'"),
        ({"tau": 0.0}, "AMC.tau must be in (0, 1], got 0.0"),
        ({"warmup": 2.0}, "AMC.warmup must be in [0, 1], got 2.0"),
        ({"candidates": -1}, "AMC.candidates must be >= 0, got -1"),
    ],
)
def test_bad_settings_are_refused(setting, message):
    with pytest.raises(ValueError) as error:
        AMC(**setting)
    assert message in str(error.value)


# ---- files


def test_a_saved_agent_proposes_for_another_budget_and_network(tmp_path):
    strategy = AMC(**SMALL)
    strategy.search(problem(), 20, 0)
    file = strategy.save(tmp_path)
    assert file.name == AGENT_FILE
    (tmp_path / "other").touch()
    assert file.stat().st_mode == (tmp_path / "other").stat().st_mode  # as the umask has it
    session = strategy._session
    for other in (problem(0.3), toy.problem((32, 64, 8), {"params": 0.4})):
        started = AMC(agent=str(tmp_path), **SMALL)
        result = started.search(other, 5, 0)
        assert other.within(result.policy.kept(other.targets))
        own = started._session.env.episodes.play(session.agent.act, 1)[0]
        assert own.tolist() in [t.policy.kept(other.targets).tolist() for t in result.trials]


def test_saving_needs_a_search(tmp_path):
    with pytest.raises(RuntimeError, match="search first"):
        AMC().save(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observation": 0}, "observations of version 0, this release has version 1"),
        ({"features": list(FEATURES)[1:]}, "train it anew"),
        ({"algorithm": "sac"}, "has algorithm sac, this strategy ddpg"),
        ({"net_arch": [8, 8]}, r"has hidden layers [8, 8], this strategy [16, 16]"),
        ({"schema": "other"}, "is not an agent"),
    ],
)
def test_other_agents_are_refused(tmp_path, change, message):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    strategy = AMC(**SMALL)
    strategy.search(problem(), 3, 0)
    file = strategy.save(tmp_path)
    with safe_open(str(file), "pt") as stored:
        about = json.loads(stored.metadata()["agent"])
    save_file(load_file(file), str(file), metadata={"agent": json.dumps(about | change)})
    with pytest.raises(InputError) as error:
        AMC(agent=str(file), **SMALL).search(problem(), 3, 0)
    assert message in str(error.value)


@pytest.mark.parametrize("content", [None, b"", b"not safetensors"])
def test_unreadable_agents_are_refused(tmp_path, content):
    file = tmp_path / "a.safetensors"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match="cannot read agent"):
        AMC(agent=str(file), **SMALL).search(problem(), 3, 0)


# ---- its parts


def test_exploration_is_a_truncated_normal():
    rng = np.random.default_rng(0)
    drawn = explore(np.full(20_000, 0.8), 0.3, rng)
    assert drawn.min() >= 0 and drawn.max() <= 1
    # Mean of N(.8, .3) cut to [0, 1]: .8 + .3 (phi(a) - phi(b)) / (Phi(b) - Phi(a)).
    assert drawn.mean() == pytest.approx(0.6736, abs=0.01)
    assert np.mean(drawn > 0.999) < 0.01  # not heaped on the edge, as clipping would
    assert explore(np.array([0.3]), 0.0, rng).tolist() == [0.3]


def test_credit_finds_out_which_target_matters():
    rng = np.random.default_rng(0)
    units = np.full(8, 64)
    kept = 8 * rng.integers(1, 9, (60, 8))
    damage = np.exp(3 * (1 - kept[:, 2] / 64) + 0.01 * rng.standard_normal(60)) / 100
    credit = Credit(kept, -damage, units)
    shares = credit.shares(kept)
    assert shares.shape == (60, 8)
    assert np.abs(shares[:, 2]).mean() > 10 * np.abs(np.delete(shares, 2, axis=1)).mean()
    value = transform(-damage)
    standard = (value - value.mean()) / value.std()
    assert np.corrcoef(shares.sum(axis=1), standard)[0, 1] > 0.99


def test_neighbours_are_near_within_the_budget_and_maximal():
    rng = np.random.default_rng(0)
    budgeted = toy.problem(UNITS, {"macs": 0.5, "params": 0.6})
    space, kept = budgeted.space, budgeted.fit(np.ones(len(UNITS)))
    found = np.stack([neighbour(budgeted, kept, rng) for _ in range(200)])
    assert budgeted.within(found).all() and space.contains(found).all()
    assert len(np.unique(found, axis=0)) > 20
    moved = np.abs(space.level(found) - space.level(kept)).sum(axis=1)
    assert np.median(moved) <= 6
    for one in found[:20]:
        raised = space.kept(np.minimum(space.level(one) + np.eye(6, dtype=np.int64), 8))
        raised = np.minimum(raised, space.high)
        assert not (np.any(raised != one, axis=1) & budgeted.within(raised)).any()


def test_the_learning_curve_is_written_beside_the_agent(tmp_path):
    strategy = AMC(warmup=0.3, analysis=0.0, **SMALL)
    result = strategy.search(problem(), 20, 0)
    strategy.save(tmp_path)
    rows = pd.read_csv(tmp_path / "learning.csv")
    assert list(rows["episode"]) == list(range(1, 21))
    assert list(rows["source"]) == ["planned"] * 6 + ["agent"] * 14  # guides are warm-up too
    assert rows["best_reward"].is_monotonic_increasing
    best = max(scores(result))
    assert rows["best_reward"].iloc[-1] == pytest.approx(best - 1, abs=1e-6)
    assert rows["critic_loss"].notna().any() and rows["sigma"].iloc[-1] < rows["sigma"].max()


def test_tensorboard_gets_the_scalars(tmp_path):
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    AMC(tensorboard=str(tmp_path), **SMALL).search(problem(), 12, 0)
    (folder,) = tmp_path.iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"rollout/ep_rew_mean", "train/critic_loss", "train/actor_loss"} <= tags


def test_rounds_of_several_episodes_are_scored_together():
    made, sizes = problem(), []
    evaluate_many = made.evaluate_many

    def counted(policies, **settings):
        sizes.append(len(policies))
        return evaluate_many(policies, **settings)

    made.evaluate_many = counted
    result = AMC(episodes_per_round=4, **SMALL).search(made, 24, 0)
    assert len(result.trials) == 24 == len({trial.policy for trial in result.trials})
    assert not any(trial.cached for trial in result.trials)
    assert sizes.count(4) >= 4
    again = AMC(episodes_per_round=4, **SMALL).search(problem(), 24, 0)
    assert [t.policy for t in again.trials] == [t.policy for t in result.trials]
    with pytest.raises(ValueError, match="episodes_per_round must be >= 1"):
        AMC(episodes_per_round=0)


class Stairs:
    """A latency that falls at every other count, as measured ones may."""

    resource = "latency_ms"

    def __call__(self, kept):
        return (kept + np.where(kept % 16 == 8, 12.0, 0.0)).sum(-1)


@pytest.mark.parametrize("together", [1, 4])
def test_what_was_planned_is_what_is_played_where_costs_fall_with_more_units(together):
    targets = toy.targets(*UNITS)
    scorer = toy.Scorer(np.linspace(0.1, 0.3, 6))
    parts = (toy.Plan(targets), toy.Pruner(targets), scorer, {"latency_ms": 0.5})
    made = toy.Problem(*parts, {"latency_ms": Stairs()})
    result = AMC(episodes_per_round=together, **SMALL).search(made, 40, 0)
    assert len({trial.policy.key for trial in result.trials}) == len(scorer.seen) == 40
    allowed = [t.score for t in made.trials if made.within(t.policy.kept(targets))]
    assert made.evaluate(result.policy).score == max(allowed)


@pytest.mark.parametrize("settings", [{}, {"analysis": 0.0}, {"analysis": 0.0, "candidates": 0}])
@pytest.mark.parametrize(("units", "budget"), [((64,), 0.5), ((16, 16), 1.0)])
def test_what_was_planned_together_is_played_before_the_search_ends(settings, units, budget):
    few = toy.problem(units, {"macs": budget}, scorer=toy.Scorer(np.ones(len(units)) / 10))
    result = AMC(episodes_per_round=4, warmup=0.5, **settings, **SMALL).search(few, 60, 0)
    tried = {trial.policy.key for trial in few.trials}
    assert tried == {trial.policy.key for trial in result.trials} and result.policy.key in tried


def test_rounds_of_several_episodes_may_exceed_the_budget_without_a_wall():
    strategy = AMC(wall=False, candidates=0, warmup=0.5, episodes_per_round=4, **SMALL)
    few = problem(0.3)
    result = strategy.search(few, 16, 0)
    fits = [bool(few.within(trial.policy.kept(few.targets))) for trial in result.trials]
    assert few.within(result.policy.kept(few.targets)) and not all(fits[:8]) and len(fits) == 16


@pytest.mark.parametrize("analysis", [0.9, 1.0])
@pytest.mark.parametrize("guides", [True, False])
@pytest.mark.parametrize("trials", [2, 4, 9])
def test_the_largest_analysis_leaves_a_trial_for_a_result(analysis, guides, trials):
    made = problem()
    result = AMC(analysis=analysis, guides=guides, **SMALL).search(made, trials, 0)
    assert len(result.trials) == len(made.trials) == trials
    assert made.within(result.policy.kept(made.targets))


def test_where_the_whole_network_is_allowed_it_counts_once():
    result = AMC(**SMALL).search(problem(1.0), 12, 0)
    assert len({trial.policy.key for trial in result.trials}) == len(result.trials)


def test_a_loaded_agents_policy_is_played_first_without_a_wall_too(tmp_path):
    strategy = AMC(wall=False, candidates=0, **SMALL)
    strategy.search(problem(), 8, 0)
    strategy.save(tmp_path)
    own = strategy._session.env.episodes.play(strategy._session.agent.act, 1)[0]
    started = AMC(wall=False, candidates=0, agent=str(tmp_path), **SMALL)
    with contextlib.suppress(SearchStopped):  # none of them need be within the budget
        started.search(problem(), 3, 0)
    first = started._session.found[0]
    assert first.policy.kept(problem().targets).tolist() == own.tolist()


def test_a_search_without_a_policy_within_the_budget_says_so():
    strategy = AMC(wall=False, candidates=0, **SMALL)
    with pytest.raises(SearchStopped, match="none of 3 trials met the budget; allow more trials"):
        strategy.search(problem(0.05, rounding=4), 3, 0)


def test_credit_of_many_targets_is_the_same_by_way_of_the_episodes(monkeypatch):
    rng = np.random.default_rng(0)
    units = np.full(200, 64)
    kept = 8 * rng.integers(1, 9, (30, 200))
    damage = np.exp(3 * (1 - kept[:, 2] / 64) + 0.1 * rng.standard_normal(30)) / 100
    found = Credit(kept, -damage, units)
    monkeypatch.setattr("automl.strategies.amc_credit._FEW_FEATURES", 600)
    expected = Credit(kept, -damage, units)
    np.testing.assert_allclose(found.shares(kept), expected.shares(kept), atol=1e-9)
    assert found.alpha == pytest.approx(expected.alpha)


def test_credit_of_many_targets_takes_no_table_of_their_pairs():
    rng = np.random.default_rng(0)
    kept = 8 * rng.integers(1, 9, (10, 1000))
    tracemalloc.start()
    try:
        Credit(kept, -rng.random(10), np.full(1000, 64))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20e6  # the pairs of 3,000 features would be 72 MB
