import time

import numpy as np
import pytest
import toy
from hypothesis import given
from hypothesis import strategies as st

from automl.fitting import Constraints, Space, climb, fit, grid, round_ratio, step_for
from automl.types import InputError

UNITS = st.integers(1, 300)
ROUNDING = st.integers(1, 40)


@pytest.mark.parametrize(
    ("units", "rounding", "step"),
    [(64, 8, 8), (32, 8, 8), (24, 8, 4), (16, 8, 4), (8, 8, 2), (4, 8, 1), (1, 8, 1), (64, 1, 1)],
)
def test_small_targets_get_smaller_steps(units, rounding, step):
    assert step_for(units, rounding) == step


@given(UNITS, ROUNDING)
def test_a_grid_leaves_a_choice_and_holds_multiples_and_the_full_size(units, rounding):
    counts, step = grid(units, rounding), step_for(units, rounding)
    assert counts[-1] == units and counts[0] >= 1
    assert np.all(np.diff(counts) > 0)
    assert np.all(counts[:-1] % step == 0)
    assert len(counts) >= min(units, 4)
    assert step == rounding or len(grid(units, 2 * step)) < 4 or rounding > step


@pytest.mark.parametrize("arguments", [(0, 8), (8, 0)])
def test_a_grid_of_nothing_is_refused(arguments):
    with pytest.raises(ValueError, match="must be >= 1, got 0"):
        grid(*arguments)


@given(st.floats(0, 1, exclude_max=True), UNITS, ROUNDING)
def test_a_ratio_is_honoured_to_half_a_step_and_never_ignored(ratio, units, rounding):
    if units == 1 and ratio > 0:
        return
    kept, counts = round_ratio(ratio, units, rounding), grid(units, rounding)
    assert kept in counts
    assert (kept == units) == (ratio == 0)
    wish = (1 - ratio) * units
    if counts[0] <= wish <= counts[:-1].max(initial=0):
        assert abs(kept - wish) <= step_for(units, rounding) / 2 + 1e-9


def test_the_only_unit_is_not_pruned_in_silence():
    assert round_ratio(0, 1, 8) == 1
    with pytest.raises(InputError, match="one must stay"):
        round_ratio(0.5, 1, 8)


@pytest.mark.parametrize("ratio", [-0.1, 1.0, float("nan")])
def test_a_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(InputError, match=r"must be in \[0, 1\)"):
        round_ratio(ratio, 16, 8)


@st.composite
def spaces(draw) -> Space:
    units = draw(st.lists(st.integers(1, 90), min_size=1, max_size=6))
    kind = draw(st.sampled_from(["channel", "head"]))
    min_keep = draw(st.sampled_from([0.0, 0.0, 0.3, 1.0]))
    return Space.of(toy.targets(*units, kind=kind), draw(st.sampled_from([1, 2, 8])), min_keep)


@st.composite
def constraints(draw, space: Space) -> Constraints:
    """One or two random polynomials, limited anywhere between the least cost and the dense."""
    n = len(space.units)
    names = draw(st.sampled_from([["macs"], ["params"], ["macs", "params"]]))
    ends = st.integers(-1, n - 1)
    layer = st.tuples(st.integers(1, 1000).map(float), ends, ends)
    costs = {
        name: toy.Products(name, tuple(draw(st.lists(layer, min_size=1, max_size=2 * n))))
        for name in names
    }
    limits = {}
    for name, cost in costs.items():
        least, dense = cost(space.low), cost(space.units)
        limits[name] = float(least + draw(st.floats(0, 1)) * (dense - least))
    return Constraints(costs, limits)


CASES = spaces().flatmap(lambda space: st.tuples(st.just(space), constraints(space)))


def wishes(space: Space, data) -> np.ndarray:
    n = len(space.units)
    return np.array(data.draw(st.lists(st.floats(0, 1), min_size=n, max_size=n)))


def one_step_more(space: Space, kept: np.ndarray, i: int) -> np.ndarray | None:
    if kept[i] == space.high[i]:
        return None
    raised = kept.copy()
    raised[i] = min((kept[i] // space.step[i] + 1) * space.step[i], space.units[i])
    return raised


def assert_maximal(space: Space, limits: Constraints, kept: np.ndarray) -> None:
    assert limits(kept) and space.contains(kept)
    for i in range(len(kept)):
        raised = one_step_more(space, kept, i)
        assert raised is None or not limits(raised), f"target {i} of {kept} can be raised"


@given(CASES, st.data())
def test_a_fit_meets_every_limit_and_no_single_step_can_be_added(case, data):
    space, limits = case
    kept = fit(wishes(space, data), space, limits)
    assert kept.dtype == np.int64
    assert_maximal(space, limits, kept)


@given(CASES, st.data())
def test_climbing_equals_taking_one_step_after_the_other(case, data):
    space, limits = case
    slope = wishes(space, data)

    def when(target, fraction):
        return fraction + slope[target]

    target, fraction = space.raises()
    kept = space.low.copy()
    for i in target[np.argsort(when(target, fraction), kind="stable")]:
        raised = one_step_more(space, kept, i)
        if limits(raised):
            kept = raised
    assert climb(when, space, limits).tolist() == kept.tolist()


@given(CASES, st.data())
def test_a_wish_that_just_fits_is_only_rounded(case, data):
    space, limits = case
    wish = wishes(space, data)
    nearest = space.nearest(wish)
    exact = Constraints(limits.costs, {n: float(c(nearest)) for n, c in limits.costs.items()})
    kept = fit(wish, space, exact)
    assert np.all(kept >= nearest)
    for cost in exact.costs.values():
        assert cost(kept) == cost(nearest)  # what exceeds the wish costs nothing


@given(CASES, st.data())
def test_without_binding_limits_everything_stays(case, data):
    space, limits = case
    loose = Constraints(limits.costs, {n: float(c(space.units)) for n, c in limits.costs.items()})
    assert fit(wishes(space, data), space, loose).tolist() == space.high.tolist()


@given(CASES, st.data())
def test_the_same_wish_is_met_the_same_way(case, data):
    space, limits = case
    wish = wishes(space, data)
    assert fit(wish, space, limits).tolist() == fit(wish.copy(), space, limits).tolist()


@given(st.integers(8, 64), st.integers(2, 6), st.floats(0.1, 1), st.data())
def test_of_equal_targets_the_one_wished_larger_is_not_left_smaller(units, n, fraction, data):
    space = Space.of(toy.targets(*[units] * n), 8)
    sums = toy.Products("params", tuple((1.0, -1, i) for i in range(n)))
    limits = Constraints({"params": sums}, {"params": max(fraction * n * units, sums(space.low))})
    wish = wishes(space, data)
    kept = fit(wish, space, limits)
    for i in range(n):
        for j in range(n):
            if wish[i] > wish[j]:
                assert kept[i] >= kept[j] - space.step[0]


@given(spaces(), st.integers(0, 2**32 - 1))
def test_costs_that_are_not_monotone_are_never_exceeded_either(space, seed):
    table = np.random.default_rng(seed).uniform(1, 2, size=(len(space.units), 91))

    class Noisy:
        resource = "latency_ms"

        def __call__(self, kept):
            return sum(table[i, kept[..., i]] * kept[..., i] for i in range(kept.shape[-1]))

    noisy = Noisy()
    limit = float(0.5 * (noisy(space.low) + noisy(space.units)))
    limits = Constraints({"latency_ms": noisy}, {"latency_ms": max(limit, float(noisy(space.low)))})
    assert_maximal(space, limits, fit(np.ones(len(space.units)), space, limits))


def test_an_infeasible_limit_is_refused_with_the_least_reachable_cost():
    space = Space.of(toy.targets(16, 32), 8)
    costs = {"macs": toy.chain("macs", [1, 1, 1]), "params": toy.chain("params", [2, 1, 1])}
    limits = Constraints(costs, {"macs": 10.0, "params": 1e6})
    message = r"budget cannot be met: macs 10 is below the least reachable 44 \(7.86 % of dense\)$"
    with pytest.raises(InputError, match=message):
        fit([1, 1], space, limits)


@pytest.mark.parametrize("wish", [[0.5], [0.5, 1.5], [0.5, float("nan")], [[0.5, 0.5]]])
def test_a_wish_of_another_shape_or_range_is_refused(wish):
    space = Space.of(toy.targets(16, 32), 8)
    with pytest.raises(ValueError, match=r"fit.desired must be 2 fractions"):
        fit(wish, space, Constraints({}, {}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((), 8), "nothing in this network can be pruned"),
        ((toy.targets(8), 0), "rounding must be >= 1"),
        ((toy.targets(8), 8, 1.5), "min_keep must be in"),
        ((toy.targets(8), 8, "x"), r"min_keep must be in \[0, 1\], got 'x'"),
        ((toy.targets(8), 8, None), "min_keep must be in"),
        ((toy.targets(8), 8, True), "min_keep must be in"),
    ],
)
def test_a_space_of_nothing_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        Space.of(*arguments)


def test_only_channels_and_head_dimensions_are_rounded():
    assert Space.of(toy.targets(64, kind="head"), 8).step.tolist() == [1]
    assert Space.of(toy.targets(64, kind="head_dim"), 8).step.tolist() == [8]


def test_bounds_lie_on_the_grid():
    space = Space.of(toy.targets(64, 10, 3), 8, min_keep=0.3)
    assert space.low.tolist() == [24, 4, 1]
    assert [counts.tolist()[0] for counts in space.grids()] == [24, 4, 1]
    assert space.grids()[1].tolist() == [4, 6, 8, 10]


@given(spaces(), st.data())
def test_levels_and_counts_are_the_same_thing(space, data):
    keep = wishes(space, data)
    kept = space.nearest(keep)
    assert space.contains(kept)
    assert space.kept(space.level(kept)).tolist() == kept.tolist()
    for counts, count, wish in zip(space.grids(), kept, keep * space.units, strict=True):
        assert count in counts
        assert abs(count - wish) <= np.abs(counts - wish).min() + 1e-9


def test_space_and_constraints_take_batches():
    space = Space.of(toy.targets(16, 32), 8)
    limits = Constraints({"params": toy.chain("params", [1, 1, 1])}, {"params": 300.0})
    batch = np.array([[[16, 32], [8, 16]], [[4, 8], [5, 8]]])
    assert limits(batch).tolist() == [[False, True], [True, True]]
    assert space.contains(batch).tolist() == [[True, True], [True, False]]


def test_a_network_of_200_wide_targets_is_fitted_in_a_fraction_of_a_second():
    n = 200
    space = Space.of(toy.targets(*[1024] * n), 1)
    limits = Constraints({"macs": toy.chain("macs", [1.0] * (n + 1))}, {"macs": n * 1024**2 / 4})
    wish = np.random.default_rng(0).uniform(size=n)
    started = time.process_time()
    kept = fit(wish, space, limits)
    assert time.process_time() - started < 2  # 204,600 steps; one by one this takes minutes
    assert_maximal(space, limits, kept)


def test_a_rounding_may_be_a_number_of_numpys_and_must_be_whole():
    targets = toy.targets(64, 128)
    for rounding in (np.int64(8), [np.int32(8), 8], (8, 8)):
        assert Space.of(targets, rounding).step.tolist() == [8, 8]
    for rounding in (8.0, np.float64(8), "8", [8, 2.5], None):
        with pytest.raises(InputError, match="rounding must be one or several whole numbers"):
            Space.of(targets, rounding)
