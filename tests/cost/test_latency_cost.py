from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automl.cost.latency import LatencyCost, LatencySum
from automl.cost.lut.operators import Operators
from automl.cost.lut.signature import Signature
from automl.fitting import Constraints, Space, fit
from automl.plan import IndexPlan
from automl.plan_axes import Axis
from automl.types import InputError, Target

UNITS = (16, 24, 32)


def plan(sizes: tuple[int, ...] = UNITS) -> IndexPlan:
    """Three targets in a row, an axis each."""
    ends = np.cumsum((0, *sizes))
    axes = tuple(Axis(np.arange(a, b), np.full(b - a, -1)) for a, b in pairwise(ends))
    targets = tuple(
        Target(f"t{i}", i, "channel", units, (f"t{i}",), ()) for i, units in enumerate(sizes)
    )
    empty: dict[str, object] = {}
    return IndexPlan(targets, (), (), axes, (), empty, (), (), frozenset(), 0)


def signatures(kept) -> tuple[Signature, ...]:
    """A chain of convolutions between a stem and a head of fixed size, the last of them twice."""
    a, b, c = (int(k) for k in kept)
    return (
        Signature("conv2d", 1, 3, a, 8, 8),
        Signature("conv2d", 1, a, b, 8, 8),
        Signature("conv2d", 1, b, c, 8, 8),
        Signature("conv2d", 1, b, c, 8, 8),
        Signature("softmax", 1, 10, 10, 1, 1),
    )


@pytest.fixture(scope="module")
def operators() -> Operators:
    network = plan()
    kepts = [np.array(UNITS), np.array([3, 5, 7]), np.array([4, 9, 6])]
    return Operators.align(network, kepts, [signatures(kept) for kept in kepts])


def test_networks_of_other_widths_have_keys_of_their_own(operators):
    """A calibration holds the latency of the dense network."""
    keys = {operators.key}
    for sizes in ((16, 24, 40), (32, 48, 64)):
        kepts = [np.array(sizes), np.array([3, 5, 7]), np.array([4, 9, 6])]
        other = Operators.align(plan(sizes), kepts, [signatures(kept) for kept in kepts])
        assert other.operators[2].family == operators.operators[2].family
        keys.add(other.key)
    assert len(keys) == 3


def staircase_us(signature: Signature) -> float:
    """Faster at multiples of 16, like real devices: not monotone."""
    waste = 1.0 if signature.out_channels % 16 == 0 else 1.8
    return 5 + 0.02 * signature.in_channels * signature.out_channels * waste


@dataclass
class Times:
    """Counts what it is asked for."""

    asked: list[Signature] = field(default_factory=list)

    def times_us(self, wanted):
        self.asked += wanted
        return np.array([staircase_us(signature) for signature in wanted])


def by_hand_ms(kept) -> float:
    return sum(map(staircase_us, signatures(kept))) / 1e3


counts = st.tuples(*(st.integers(1, units) for units in UNITS))


@settings(deadline=None)
@given(st.lists(counts, min_size=1, max_size=20))
def test_sums_are_those_of_the_operators_batched_or_not(operators, kepts):
    total = LatencySum(operators, Times())
    expected = [by_hand_ms(kept) for kept in kepts]
    assert total(np.array(kepts)) == pytest.approx(expected)
    assert [float(total(np.array(kept))) for kept in kepts] == pytest.approx(expected)
    assert total(np.array(kepts)[:, None]).shape == (len(kepts), 1)


def test_nothing_is_asked_for_twice_and_everything_only_when_needed(operators):
    times = Times()
    total = LatencySum(operators, times)
    assert times.asked == []
    rng = np.random.default_rng(0)
    for _ in range(20):
        total(rng.integers(4, np.array(UNITS) + 1, size=(8, 3)))  # 3 is the stem's
    assert len(times.asked) == len(set(times.asked))


def test_what_is_asked_for_comes_in_the_order_of_the_network(operators):
    times = Times()
    LatencySum(operators, times)(np.array([[16, 24, 32], [8, 8, 8], [4, 8, 8]]))
    assert [s.in_channels for s in times.asked[:3]] == [3, 3, 3]
    assert times.asked[-1].kind == "softmax"


def test_calibration_is_affine(operators):
    cost = LatencyCost(LatencySum(operators, Times()), slope=1.2, offset_ms=0.3)
    assert float(cost(np.array(UNITS))) == pytest.approx(1.2 * by_hand_ms(UNITS) + 0.3)
    assert cost.resource == "latency_ms"
    frozen = staircase_us(Signature("softmax", 1, 10, 10, 1, 1)) / 1e3
    assert cost.frozen_ms == pytest.approx(1.2 * frozen + 0.3)


def test_a_missing_operator_is_passed_on(operators):
    class Offline:
        def times_us(self, wanted):
            raise InputError(f"lacks {wanted[0]}")

    with pytest.raises(InputError, match="lacks conv2d"):
        LatencySum(operators, Offline())(np.array(UNITS))


def test_the_same_sequence_of_operators_has_one_key(operators):
    kepts = [np.array(UNITS), np.array([2, 3, 4]), np.array([5, 7, 11])]
    again = Operators.align(plan(), kepts, [signatures(kept) for kept in kepts])
    assert again.key == operators.key
    wider = [tuple(Signature(**{**_fields(s), "height": 16}) for s in signatures(k)) for k in kepts]
    assert Operators.align(plan(), kepts, wider).key != operators.key


def _fields(signature):
    return {name: getattr(signature, name) for name in Signature.__dataclass_fields__}


# ---- budgets on costs that fall with more units


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(0, 1), min_size=3, max_size=3), st.floats(0.25, 0.99), st.integers(1, 8))
def test_budgets_hold_on_a_staircase_and_no_step_can_be_added(operators, wish, part, rounding):
    network = plan()
    cost = LatencyCost(LatencySum(operators, Times()))
    space = Space.of(network.targets, rounding)
    limits = {"latency_ms": part * float(cost(space.units))}
    constraints = Constraints({"latency_ms": cost}, limits)
    if not constraints(space.low):
        return
    kept = fit(wish, space, constraints)
    assert cost(kept) <= limits["latency_ms"] and space.contains(kept)
    for i in range(len(kept)):
        more = kept.copy()
        more[i] = min(more[i] + space.step[i], space.units[i])
        assert more[i] == kept[i] or cost(more) > limits["latency_ms"]
