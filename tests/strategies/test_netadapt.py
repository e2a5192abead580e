"""NetAdapt: what it tries, who wins, and the family it leaves."""

from __future__ import annotations

import csv
from itertools import pairwise

import numpy as np
import pytest
import toy
from hypothesis import given, settings
from hypothesis import strategies as st

from automl.policy import Policy
from automl.strategies.netadapt import WINNERS, NetAdapt
from automl.types import InputError


def scorer(*weights: float) -> toy.Scorer:
    return toy.Scorer(np.array(weights))


def kept_of(problem, trial) -> list[int]:
    return trial.policy.kept(problem.targets).tolist()


def test_the_first_iteration_tries_every_target_at_its_largest_count_that_meets_the_step():
    problem = toy.problem((16, 16, 32), {"macs": 0.9}, rounding=1, scorer=scorer(1, 1, 1))
    found = NetAdapt(step=0.05, decay=1.0)
    found.search(problem, 400, 0)
    dense = problem.space.high
    tried = [kept_of(problem, trial) for trial in problem.trials[1:4]]
    step = found.family[1].trial.measurement.costs["macs"]
    for target, kept in enumerate(tried):
        assert [i for i in range(3) if kept[i] != dense[i]] == [target]
        goal = problem.dense_costs["macs"] * 0.95
        assert problem.costs(np.array(kept))["macs"] <= goal
        more = np.array(kept)
        more[target] += 1
        assert problem.costs(more)["macs"] > goal
    assert step <= goal


def test_a_tiny_problem_ends_where_brute_force_does():
    # The greedy way on paper: at every iteration all counts of all targets, scored by hand.
    problem = toy.problem((6, 6), {"params": 0.5}, rounding=1, scorer=scorer(3.0, 1.0))
    search = NetAdapt(winner="score", step=0.1, decay=1.0, guard=False)
    search.search(problem, 400, 0)
    dense, limit = problem.dense_costs["params"], problem.limits["params"]
    kept = np.array([6, 6])
    expected = []
    while problem.costs(kept)["params"] > limit:
        goal = max(limit, problem.costs(kept)["params"] - 0.1 * dense)
        options = []
        for target in range(2):
            for count in range(kept[target] - 1, 0, -1):
                other = kept.copy()
                other[target] = count
                if problem.costs(other)["params"] <= goal:
                    options.append(other)
                    break
        final = goal == limit
        if final:  # what is left over goes back, the hardest pruned target first
            for other in options:
                while True:
                    fits = [
                        i for i in range(2)
                        if other[i] < 6 and problem.within(other + np.eye(2, dtype=int)[i])
                    ]  # fmt: skip
                    if not fits:
                        break
                    other[min(fits, key=lambda i: other[i])] += 1
        removed = [1 - other / 6 for other in options]
        kept = options[int(np.argmax([1 - np.array([3.0, 1.0]) @ r**2 for r in removed]))]
        expected.append(kept.tolist())
    assert [kept_of(problem, member.trial) for member in search.family[1:]] == expected


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_the_family_gets_cheaper_and_ends_within_the_budget(data):
    units = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=5))
    resource = data.draw(st.sampled_from(["macs", "params"]))
    low = toy.problem(units, {resource: 1.0}, scorer=scorer(*[1.0] * len(units)))
    least, most = low.costs(low.space.low)[resource], low.dense_costs[resource]
    problem = toy.problem(
        units,
        {resource: {"absolute": data.draw(st.floats(least, most))}},
        scorer=scorer(*data.draw(st.tuples(*[st.floats(0.1, 3.0)] * len(units)))),
    )
    search = NetAdapt(
        winner=data.draw(st.sampled_from(WINNERS)),
        step=data.draw(st.none() | st.floats(0.01, 0.5)),
        decay=data.draw(st.floats(0.5, 1.0)),
    )
    trials = data.draw(st.integers(1, 120))
    result = search.search(problem, trials, 0)
    costs = [member.trial.measurement.costs[resource] for member in search.family]
    assert all(a > b for a, b in pairwise(costs))
    assert costs[-1] <= problem.limits[resource]
    assert all(cost > problem.limits[resource] for cost in costs[:-1])
    assert search.family[-1].trial.policy == result.policy
    assert len(result.trials) <= trials
    iterations = [member.iteration for member in search.family]
    assert iterations == sorted(set(iterations))


def test_trials_that_are_there_are_used_for_smaller_steps():
    counts = []
    for trials in (15, 30, 60):
        search = NetAdapt()
        result = search.search(toy.problem((64, 64, 64, 64), rounding=1), trials, 0)
        counts.append(len(search.family))
        assert 0.7 * trials < len(result.trials) <= trials
    assert counts[0] < counts[1] < counts[2]


class Weakest(toy.Scorer):
    """A network is as good as its hardest pruned target: best pruned alike."""

    def __call__(self, model):
        return -max(decision.removed for decision in model.decisions), {}


def test_no_result_is_worse_than_pruning_all_alike():
    problem = toy.problem((32,) * 8, scorer=Weakest(np.ones(1)), rounding=1)
    alike = problem.evaluate(problem.policy(problem.fit(np.ones(8)))).score
    scores = {}
    for guard in (True, False):
        problem = toy.problem((32,) * 8, scorer=Weakest(np.ones(1)), rounding=1)
        result = NetAdapt(guard=guard).search(problem, 20, 0)
        scores[guard] = problem.evaluate(result.policy).score
    assert scores[True] == alike > scores[False]


def test_a_step_that_the_trials_cannot_afford_is_enlarged():
    search = NetAdapt(step=0.001)
    result = search.search(toy.problem((64, 64, 64, 64), rounding=1), 40, 0)
    assert len(result.trials) <= 40 and 5 < len(search.family) < 20
    assert search.family[-1].target is not None  # not by the shrink that ends short searches


def test_too_few_trials_end_in_one_shrink_and_say_so(caplog):
    problem = toy.problem()
    search = NetAdapt()
    result = search.search(problem, 1, 0)
    assert len(result.trials) == 1 and "more trials would help" in caplog.text
    assert kept_of(problem, result.trials[0]) == problem.fit(np.ones(4)).tolist()


def test_targets_that_cannot_make_the_step_drop_out():
    # 30 % of the parameters are not to be had from the first layers.
    problem = toy.problem((4, 4, 64, 64), {"params": 0.5}, rounding=1)
    search = NetAdapt(step=0.3)
    search.search(problem, 100, 0)
    assert search.family[1].candidates == 2
    assert search.family[1].target in ("layer2", "layer3")


def test_several_resources_all_end_within_their_limits():
    problem = toy.problem((32, 32, 64, 64), {"macs": 0.4, "params": 0.2}, rounding=2)
    search = NetAdapt()
    result = search.search(problem, 150, 0)
    assert problem.within(result.policy.kept(problem.targets))
    worst = [
        max(m.trial.measurement.costs[name] / limit for name, limit in problem.limits.items())
        for m in search.family
    ]
    assert worst[0] > 1 >= worst[-1]


# ---- winners


def first_winner(winner: str, weights, units=(64, 64), **settings) -> str | None:
    """Target that the first of several iterations prunes."""
    problem = toy.problem(units, {"macs": 0.6}, rounding=32, scorer=scorer(*weights))
    search = NetAdapt(winner=winner, step=0.05, **settings)
    search.search(problem, 100, 0)
    return search.family[1].target


def test_the_best_score_wins():
    assert first_winner("score", (1.0, 1.01)) == "layer0"
    assert first_winner("score", (1.01, 1.0)) == "layer1"


def test_the_least_loss_per_resource_wins():
    # Half of either target: layer0 saves far more MACs, layer1 costs a little less score.
    problem = toy.problem((64, 64), {"macs": 0.6}, rounding=32, scorer=scorer(1, 1))
    half = [problem.costs(np.array(kept))["macs"] for kept in ([32, 64], [64, 32])]
    assert half[0] != half[1]
    cheap, dear = ("layer0", "layer1") if half[0] < half[1] else ("layer1", "layer0")
    weights = (1.01, 1.0) if cheap == "layer0" else (1.0, 1.01)
    assert first_winner("score", weights) == dear
    assert first_winner("ratio", weights) == cheap


@pytest.mark.parametrize("winner", ["ratio", "saving"])
def test_where_nothing_is_lost_the_largest_saving_wins(winner):
    problem = toy.problem((64, 64), {"macs": 0.6}, rounding=32, scorer=scorer(1, 1))
    half = [problem.costs(np.array(kept))["macs"] for kept in ([32, 64], [64, 32])]
    cheap = f"layer{int(np.argmin(half))}"
    assert first_winner(winner, (0.0, 0.0)) == cheap
    weights = (1.0, 1.01) if cheap == "layer1" else (1.01, 1.0)
    assert first_winner("saving", weights) != cheap  # both lose: the best score
    assert first_winner("saving", weights, tolerance=0.5) == cheap


def test_failed_candidates_do_not_win():
    faults = {1: float("nan")}
    problem = toy.problem((64, 64), {"macs": 0.5}, rounding=1, scorer=toy.Scorer(
        np.array([0.1, 1.0]), faults=faults))  # fmt: skip
    search = NetAdapt()
    result = search.search(problem, 60, 0)
    assert search.family[1].target == "layer1"  # layer0, the better one, failed there
    assert problem.within(result.policy.kept(problem.targets))


def test_a_dense_network_that_fails_is_compared_with_the_best_candidate():
    problem = toy.problem(scorer=toy.Scorer(np.linspace(1, 2, 4), faults={0: float("nan")}))
    result = NetAdapt(winner="ratio").search(problem, 100, 0)
    assert problem.within(result.policy.kept(problem.targets))


# ---- the family's files


def test_the_family_is_written_as_policies_and_a_table(tmp_path):
    problem = toy.problem()
    search = NetAdapt()
    result = search.search(problem, 100, 0)
    table = search.save(tmp_path)
    assert table == tmp_path / "family.csv"
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert len(rows) == len(search.family) > 3
    assert float(rows[0]["macs_of_dense"]) == 1.0
    for row, member in zip(rows, search.family, strict=True):
        policy = Policy.load(tmp_path / row["policy"])
        assert policy == member.trial.policy
        assert float(row["score"]) == member.trial.score
        assert float(row["macs"]) == problem.cost(policy)["macs"]
        assert row["target"] == (member.target or "")
    assert Policy.load(tmp_path / rows[-1]["policy"]) == result.policy


def test_a_longer_family_does_not_mix_with_a_shorter_one(tmp_path):
    long, short = NetAdapt(), NetAdapt()
    long.search(toy.problem(), 200, 0)
    short.search(toy.problem(), 12, 0)
    long.save(tmp_path)
    short.save(tmp_path)
    assert len(list((tmp_path / "family").iterdir())) == len(short.family)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"winner": "best"}, "no winner is called 'best'"),
        ({"step": 0.0}, r"NetAdapt.step must be None or in \(0, 1\], got 0.0"),
        ({"decay": 1.1}, r"NetAdapt.decay must be in \(0, 1\], got 1.1"),
        ({"tolerance": -1.0}, "NetAdapt.tolerance must be >= 0 and finite, got -1.0"),
    ],
)
def test_bad_settings_are_refused(settings, says):
    with pytest.raises((InputError, ValueError), match=says):
        NetAdapt(**settings)


def test_no_trials_are_refused():
    with pytest.raises(ValueError, match=r"NetAdapt.trials must be >= 1, got 0"):
        NetAdapt().search(toy.problem(), 0, 0)
