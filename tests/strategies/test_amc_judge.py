import numpy as np
import pytest

from automl.strategies.amc_credit import Credit, transform
from automl.strategies.amc_judge import GRID, Interactions, Judge

UNITS = np.full(6, 64)


def episodes(count, interaction, seed=0):
    """Random policies, and damages that add up in the logarithm but for two targets."""
    rng = np.random.default_rng(seed)
    kept = 8 * rng.integers(1, 9, (count, 6))
    lost = 1 - kept / 64
    damage = np.exp(lost @ np.linspace(0.5, 1.5, 6) + interaction * 4 * lost[:, 0] * lost[:, 1])
    return kept, -damage / 100


def judge(kept, rewards, settings=None):
    return Judge(Credit(kept, rewards, UNITS), kept, rewards, UNITS, settings)


def test_what_does_not_add_up_is_learned_and_what_does_is_left_additive():
    assert judge(*episodes(150, interaction=1.0)).settings.power > 0
    assert judge(*episodes(150, interaction=0.0)).settings.power <= 0.05


def test_draws_foretell_policies_that_were_not_played_better_than_the_additive_model():
    kept, rewards = episodes(150, interaction=1.0)
    other, truth = episodes(200, interaction=1.0, seed=1)

    def skill(settings):
        rng = np.random.default_rng(2)
        found = judge(kept, rewards, settings)
        drawn = np.mean([found.draw(rng)(other) for _ in range(20)], axis=0)
        return np.corrcoef(drawn, transform(truth))[0, 1]

    additive = Interactions(power=0.0, length=1.0, noise=0.1)
    assert skill(None) > 0.98 > skill(additive)


def test_a_draw_is_one_function_and_agrees_with_what_is_known():
    kept, rewards = episodes(80, interaction=1.0)
    found = judge(kept, rewards, Interactions(power=0.4, length=0.6, noise=0.01))
    value = found.draw(np.random.default_rng(0))
    assert np.allclose(value(kept)[:10], value(kept[:10]))
    standard = transform(rewards)
    standard = (standard - standard.mean()) / standard.std()
    assert np.abs(value(kept) - standard).max() < 0.5


def test_draws_spread_where_nothing_is_known():
    kept, rewards = episodes(60, interaction=1.0)
    near = kept[:, 0] > 32
    found = judge(kept[near], rewards[near])
    rng = np.random.default_rng(0)
    drawn = np.stack([found.draw(rng)(kept) for _ in range(50)])
    spread = drawn.std(axis=0)
    assert spread[~near].mean() > 1.5 * spread[near].mean()


def test_equal_rewards_and_two_episodes_are_no_trouble():
    kept = np.array([[8] * 6, [16] * 6])
    found = judge(kept, np.array([-0.5, -0.5]))
    assert np.isfinite(found.draw(np.random.default_rng(0))(kept)).all()


@pytest.mark.parametrize("settings", GRID[::7])
def test_every_covariance_of_the_grid_can_be_factored(settings):
    kept, rewards = episodes(40, interaction=0.5)
    doubled = np.concatenate([kept, kept]), np.concatenate([rewards, rewards])
    assert np.isfinite(judge(*doubled, settings).draw(np.random.default_rng(0))(kept)).all()
