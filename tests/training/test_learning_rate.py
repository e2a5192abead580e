import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automl.training.config import FinetuneConfig
from automl.training.learning_rate import learning_rate


def rates(steps_per_epoch, **fields):
    config = FinetuneConfig(**fields)
    steps = config.epochs * steps_per_epoch
    return [learning_rate(config, step, steps_per_epoch) for step in range(steps)]


def test_cosine_follows_half_a_period():
    got = rates(10, epochs=4, lr=0.2)
    expected = [0.1 * (1 + math.cos(math.pi * step / 40)) for step in range(40)]
    assert got == pytest.approx(expected, rel=1e-12)
    assert got[0] == 0.2 and got[20] == pytest.approx(0.1)


def test_warm_up_rises_linearly_to_the_rate_and_cosine_starts_there():
    got = rates(10, epochs=3, lr=1.0, warmup_epochs=0.5)
    assert got[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert got[6] < 1.0


def test_constant_stays():
    assert set(rates(3, epochs=2, lr=0.3, schedule="constant")) == {0.3}
    assert rates(2, epochs=2, lr=1.0, schedule="constant", warmup_epochs=1)[-1] == 1.0


@given(
    st.integers(1, 6), st.integers(1, 30), st.floats(0, 1), st.sampled_from(["cosine", "constant"])
)
@settings(max_examples=60, deadline=None)
def test_rates_stay_above_zero_and_reach_but_never_pass_the_highest(epochs, steps, part, schedule):
    got = rates(steps, epochs=epochs, lr=0.5, warmup_epochs=part * epochs, schedule=schedule)
    assert all(0 < rate <= 0.5 for rate in got)
    assert max(got) == pytest.approx(0.5)
    top = got.index(max(got))
    assert got[:top] == sorted(got[:top])
    assert got[top:] == sorted(got[top:], reverse=True)
