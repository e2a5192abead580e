import numpy as np
import pytest
import toy
from hypothesis import given
from hypothesis import strategies as st

from automl.strategies.heuristics import Depth
from automl.strategies.uniform import Uniform

UNITS = (64, 64, 64, 64, 64)


def removed(strategy, budget=None) -> np.ndarray:
    problem = toy.problem(UNITS, budget or {"params": 0.6}, rounding=1)
    policy = strategy.search(problem, 1, 0).policy
    return np.array([decision.removed for decision in policy.decisions])


@pytest.mark.parametrize("contrast", [2.0, 4.0, 10.0])
def test_ratios_rise_linearly_with_depth(contrast):
    ratios = removed(Depth("deep", contrast))
    strength = ratios[-1] / contrast
    line = strength * np.linspace(1, contrast, len(UNITS))
    assert np.allclose(ratios, line, atol=1.5 / 64)


def test_shallow_is_deep_upside_down():
    assert np.allclose(removed(Depth("shallow")), removed(Depth("deep"))[::-1], atol=1.5 / 64)


def test_no_contrast_is_uniform():
    assert removed(Depth("deep", 1.0)).tolist() == removed(Uniform()).tolist()


@given(st.floats(0.02, 1), st.sampled_from(["deep", "shallow"]))
def test_any_budget_that_can_be_met_is_met(fraction, towards):
    problem = toy.problem(UNITS, {"params": fraction})
    kept = Depth(towards).search(problem, 1, 0).policy.kept(problem.targets)
    order = kept if towards == "shallow" else kept[::-1]
    assert problem.within(kept)
    # The ends read or write one channel, so what is left of the budget may buy them steps.
    assert np.all(np.diff(order[1:-1]) >= -problem.space.step[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"towards": "sideways"}, "Depth.towards must be 'deep' or 'shallow', got 'sideways'"),
        ({"contrast": 0.5}, "Depth.contrast must be >= 1"),
        ({"contrast": float("inf")}, "Depth.contrast must be >= 1"),
    ],
)
def test_shapes_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Depth(**settings)
