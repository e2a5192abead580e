import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from automl.cost.lut.calibration import Calibration, Check, calibrate, compare
from automl.types import InputError


def counts(sums):
    return np.arange(2 * len(sums)).reshape(-1, 2)


def test_slope_and_offset_are_found_again():
    sums = np.linspace(0.2, 2, 20)
    found = calibrate(counts(sums), sums, 1.3 * sums + 0.4, 13)
    assert (found.slope, found.offset_ms) == pytest.approx((1.3, 0.4))
    assert found.fitted.mape == pytest.approx(0, abs=1e-5)
    assert len(found.held_out.measured_ms) == 8 and found.held_out.measured_ms[0] == 0.66


def test_networks_held_out_do_not_touch_the_fit():
    sums = np.linspace(0.2, 2, 20)
    measured = 1.3 * sums + 0.4
    spoilt = np.concatenate([measured[:13], 5 * measured[13:]])
    one, other = (calibrate(counts(sums), sums, y, 13) for y in (measured, spoilt))
    assert (one.slope, one.offset_ms) == (other.slope, other.offset_ms)
    assert other.held_out.mape == pytest.approx(0.8, abs=0.01)


def test_latencies_that_fall_with_the_sum_are_refused():
    with pytest.raises(InputError, match="do not grow"):
        calibrate(np.ones((3, 2), int), np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0]), 3)


def test_figures_by_hand():
    check = Check((1.0, 0.55, 0.27), (1.0, 0.5, 0.3))
    assert check.mape == pytest.approx((0.1 + 0.1) / 2)
    assert check.worst == pytest.approx(0.1)
    assert check.ratio_error == pytest.approx((0.05 + 0.03) / 2)
    assert check.rho == pytest.approx(1)


def test_a_slower_machine_is_not_an_error_of_the_table_but_is_said():
    check = Check((1.0, 0.5, 0.3), (1.2, 0.6, 0.36), slowdown=1.2)
    assert check.mape == pytest.approx(0)
    assert check.mape_as_calibrated == pytest.approx(1 / 6)
    assert "1.200 times as long" in str(check)


@given(st.lists(st.tuples(st.floats(0.1, 9), st.floats(0.1, 9)), min_size=3, max_size=20))
def test_rank_correlation_is_scipys(pairs):
    predicted, measured = zip(*pairs, strict=True)
    check = Check(predicted, measured)
    if len(set(predicted)) == 1 or len(set(measured)) == 1:
        assert check.rho == 0
    else:
        assert check.rho == pytest.approx(stats.spearmanr(predicted, measured)[0], abs=1e-9)


def test_calibrations_survive_json():
    sums = np.linspace(0.2, 2, 9)
    found = calibrate(counts(sums), sums, 1.3 * sums + 0.4, 5, "2026-01-01")
    assert Calibration.from_dict(found.to_dict()) == found


@pytest.mark.parametrize(
    "times", [((1.0,), (1.0,)), ((1.0, 2.0), (1.0, 0.0)), ((1.0,), (1.0, 2.0))]
)
def test_checks_need_two_networks_and_positive_times(times):
    with pytest.raises(ValueError, match=r"Check\.measured_ms"):
        Check(*times)


def test_comparisons_round_to_a_nanosecond():
    check = compare(np.array([1 / 3, 1.0]), np.array([1.0, 1.0]))
    assert check.predicted_ms == (0.333333, 1.0)
