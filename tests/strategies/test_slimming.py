"""Global rankings: what they keep, how layers are compared, and slimming's own units."""

from __future__ import annotations

import numpy as np
import pytest
import toy
from hypothesis import given, settings
from hypothesis import strategies as st

from automl.problem import Problem
from automl.strategies import load
from automl.strategies.slimming import NORMALISE, Global, Slimming
from automl.types import InputError


class Pruner(toy.Pruner):
    """A toy pruner with scores of one's own, which remembers what it was asked."""

    def __init__(self, targets, scores):
        super().__init__(targets)
        self.given, self.asked = scores, []

    def unit_scores(self, criterion=None, **settings_):
        self.asked.append((criterion, settings_))
        return self.given


def problem(scores, budget=0.5, **settings_):
    targets = toy.targets(*(len(s) for s in scores))
    n = len(targets)
    costs = {"params": toy.Products("params", tuple((1.0, -1, i) for i in range(n)))}
    pruner = Pruner(targets, [np.asarray(s, float) for s in scores])
    scorer = toy.Scorer(np.ones(n))
    made = Problem(
        toy.Plan(targets), pruner, scorer, {"params": budget}, costs, rounding=1, **settings_
    )
    return made, pruner


def kept_by(strategy, problem_):
    return strategy.search(problem_, 1, 0).policy.kept(problem_.targets).tolist()


def test_the_best_units_of_the_whole_network_stay():
    made, _ = problem([[9, 8, 1, 1], [7, 6, 5, 0.5], [0.4, 0.3, 0.2, 0.1]])
    assert kept_by(Global(["none"]), made) == [2, 3, 1]  # one unit of each target always stays


@pytest.mark.parametrize(
    ("name", "kept"),
    [("none", [4, 1]), ("mean", [2, 3]), ("max", [2, 3]), ("lamp", [3, 2])],
)
def test_layers_are_made_comparable(name, kept):
    first, second = np.array([40.0, 14, 12, 12]), np.array([1.0, 0.9, 0.4, 0.1])
    scaled = [NORMALISE[name](first), NORMALISE[name](second)]
    marks = sorted([*((v, 0) for v in scaled[0][1:]), *((v, 1) for v in scaled[1][1:])])[::-1]
    counts = [1, 1]
    for _, target in marks[:3]:
        counts[target] += 1
    made, _ = problem([first, second], budget=5 / 8)
    assert kept_by(Global([name]), made) == counts == kept


def test_lamp_is_the_share_among_all_that_are_better():
    ranked = np.array([4.0, 3.0, 2.0, 0.0])
    np.testing.assert_allclose(NORMALISE["lamp"](ranked), [1, 3 / 7, 2 / 9, 0])
    np.testing.assert_allclose(NORMALISE["lamp"](np.zeros(3)), 0)


@settings(max_examples=40, deadline=None)
@given(
    scores=st.lists(st.lists(st.floats(0, 1e6), min_size=1, max_size=12), min_size=1, max_size=5),
    name=st.sampled_from(sorted(NORMALISE)),
    factor=st.floats(1e-3, 1e3),
)
def test_normalised_scores_keep_the_order_and_forget_the_scale(scores, name, factor):
    for values in scores:
        ranked = np.sort(values)[::-1]
        found = NORMALISE[name](ranked)
        assert np.isfinite(found).all() and (np.diff(found) <= 1e-12 * abs(found[:-1])).all()
        if name != "none" and ranked.max() > 1e-200:
            np.testing.assert_allclose(NORMALISE[name](factor * ranked), found, rtol=1e-9)


def test_scores_may_be_negative():
    made, _ = problem([[-1, -5, -9, -2], [3, 2, 1, -20]])
    assert kept_by(Global(["none"]), made) == [1, 3]


def test_equal_policies_cost_one_trial():
    made, _ = problem([[4, 3, 2, 1], [4, 3, 2, 1]])
    result = Global(["none", "mean", "max"]).search(made, 10, 0)
    assert len(result.trials) == 1


def test_as_many_ways_are_tried_as_there_are_trials():
    made, _ = problem([[40, 14, 12, 12], [1, 0.9, 0.4, 0.1]], budget=5 / 8)
    assert len(Global(["none", "max", "mean"]).search(made, 2, 0).trials) == 2


# ---- slimming


def test_slimming_keeps_the_units_of_its_own_scores():
    made, pruner = problem([[1, 9, 2, 8], [0.1, 0.2, 7, 0.3]])
    result = load("slimming", normalise=["none"]).search(made, 1, 0)
    assert [d.indices for d in result.policy.decisions] == [(1, 2, 3), (2,)]
    assert result.policy.model_hash == made.model_hash
    ((criterion, given_),) = pruner.asked
    assert criterion == "slimming" and given_["epochs"] == 5


def test_settings_reach_the_criterion():
    made, pruner = problem([[1, 2]])
    Slimming("growing", {"epochs": 2, "regularizer": {"growth": 0.5}}).search(made, 1, 0)
    assert pruner.asked == [("growing", {"epochs": 2, "regularizer": {"growth": 0.5}})]


def test_units_below_the_threshold_go_even_within_the_budget():
    scores = [[1.0, 0.9, 1e-4, 0.0], [1.0, 0.5, 0.4, 0.3]]
    made, _ = problem(scores, budget=1.0)
    assert kept_by(Slimming(normalise=["none"]), made) == [4, 4]
    assert kept_by(Slimming(normalise=["none"], threshold=0.01), made) == [2, 4]


def test_a_threshold_keeps_whole_steps_and_one_unit_at_least():
    targets = toy.targets(16)
    costs = {"params": toy.Products("params", ((1.0, -1, 0),))}
    pruner = Pruner(targets, [np.linspace(0, 1, 16) ** 8])
    made = Problem(
        toy.Plan(targets), pruner, toy.Scorer(np.ones(1)), {"params": 1.0}, costs, rounding=4
    )
    assert kept_by(Slimming(normalise=["none"], threshold=0.9), made) == [4]


# ---- refusals


@pytest.mark.parametrize("normalise", [[], ["l3"], "lamp"])
def test_ways_that_are_not_known_are_refused(normalise):
    with pytest.raises(ValueError, match=r"Global\.normalise must list some of none"):
        Global(normalise)


@pytest.mark.parametrize("threshold", [-0.1, 1.0, float("nan")])
def test_thresholds_out_of_range_are_refused(threshold):
    with pytest.raises(ValueError, match=r"Slimming\.threshold must be in \[0, 1\)"):
        Slimming(threshold=threshold)


def test_pruners_that_rank_no_units_are_refused():
    class Bare:
        fingerprint = model_hash = "bare"

    made, _ = problem([[1, 2]])
    made._pruner = Bare()
    with pytest.raises(InputError, match="choose granularity=channel"):
        Global().search(made, 1, 0)


def test_scores_below_0_lose_no_unit_to_a_threshold_of_0_and_count_from_the_least():
    scores = [[-1.0, -1.1, -3.0, -9.0], [1.0, -0.5, -0.6, -0.7]]
    made, _ = problem(scores, budget=1.0)
    assert kept_by(Slimming(normalise=["none"]), made) == [4, 4]
    assert kept_by(Slimming(normalise=["none"], threshold=0.5), made) == [3, 1]


def test_units_below_the_threshold_stay_where_the_network_would_be_too_slow_without_them():
    class Steps:  # odd counts take longer than the even count above them
        resource = "latency_ms"

        def __call__(self, kept):
            kept = np.asarray(kept)
            return (kept + 2.5 * (kept % 2)).sum(-1).astype(float)

    lowered = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        targets = toy.targets(16, 16, 16)
        pruner = Pruner(targets, [np.abs(rng.normal(size=16)) for _ in targets])
        made = Problem(
            toy.Plan(targets), pruner, toy.Scorer(np.ones(3)), {"latency_ms": 0.6},
            {"latency_ms": Steps()}, rounding=1,
        )  # fmt: skip
        plain = Global(["none"]).kept(made, pruner.given, "none")
        kept = Slimming(threshold=0.3).kept(made, pruner.given, "none")
        assert made.within(kept) and (kept <= plain).all()
        assert len(Slimming(threshold=0.3).search(made, 5, 0).trials) >= 1
        lowered += bool((kept < plain).any())
    assert lowered
