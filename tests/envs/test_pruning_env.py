import gymnasium
import numpy as np
import pytest
import toy
from gymnasium.utils.env_checker import check_env as gymnasium_check
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as sb3_check

import envs
from automl.problem import SearchStopped
from automl.types import InputError, LayerSpec, Target
from envs.features import FEATURES

UNITS = (16, 16, 32, 64)


def play(env, actions):
    """Plays one episode; returns its last step."""
    actions = iter(actions)
    env.reset(seed=0)
    while True:
        step = env.step(np.array([next(actions)], np.float32))
        if step[2]:
            return step


def single_steps_that_fit(problem, kept):
    level, top = problem.space.level(kept), problem.space.level(problem.space.high)
    raised = problem.space.kept(np.minimum(level + np.eye(len(kept), dtype=np.int64), top))
    return np.any(raised != kept, axis=1) & problem.within(raised)


# ---- the wall

LAYER = st.tuples(st.floats(0.01, 1e6), st.integers(-1, 9), st.integers(-1, 9))


@st.composite
def problems(draw):
    """Networks of any coupling, under one or two budgets."""
    units = draw(st.lists(st.integers(1, 96), min_size=1, max_size=10))
    ends = st.integers(-1, len(units) - 1)
    layers = st.lists(st.tuples(st.floats(0.01, 1e6), ends, ends), min_size=1, max_size=12)
    costs = {name: toy.Products(name, tuple(draw(layers))) for name in ("macs", "params")}
    targets = toy.targets(*units)
    budget = draw(
        st.dictionaries(st.sampled_from(("macs", "params")), st.floats(0.05, 1.0), min_size=1)
    )
    rounding = draw(st.sampled_from((1, 2, 8)))
    settings = {"rounding": rounding, "min_keep": draw(st.sampled_from((0.0, 0.2)))}
    try:
        return toy.Problem(
            toy.Plan(targets),
            toy.Pruner(targets),
            toy.Scorer(np.ones(len(units))),
            budget,
            costs,
            **settings,
        )
    except InputError:  # out of reach
        return toy.problem(units, {"macs": 1.0}, **settings)


@settings(max_examples=60, deadline=None)
@given(problem=problems(), data=st.data())
def test_no_episode_exceeds_the_budget_and_none_leaves_a_step_unused(problem, data):
    actions = st.floats(0, 1, width=32)
    env = envs.PruningEnv(problem)
    info = play(env, [data.draw(actions) for _ in problem.targets])[4]
    assert problem.within(info["kept"])
    assert problem.space.contains(info["kept"])
    assert not single_steps_that_fit(problem, info["kept"]).any()
    # What was executed leads to the same network again: replay teaches what was scored.
    again = play(env, info["actions"])[4]
    assert again["kept"].tolist() == info["kept"].tolist()


def test_both_extremes_meet_the_budget_differently():
    problem = toy.problem(UNITS, {"macs": 0.5})
    env = envs.PruningEnv(problem)
    first_kept, first_pruned = (play(env, [a] * 4)[4]["kept"] for a in (1.0, 0.0))
    assert first_kept[0] == 16 and first_pruned[0] < 16
    assert first_pruned[-1] == 64 and first_kept[-1] < 64


def test_costs_that_fall_with_more_units_are_still_held():
    class Stairs:
        resource = "latency_ms"

        def __call__(self, kept):
            return np.where(kept[..., -1] % 16 == 8, 5.0, 1.0) + kept.sum(-1) / 100

    targets = toy.targets(*UNITS)
    parts = (toy.Plan(targets), toy.Pruner(targets), toy.Scorer(np.ones(4)))
    problem = toy.Problem(*parts, {"latency_ms": {"absolute": 6.2}}, {"latency_ms": Stairs()})
    rng = np.random.default_rng(0)
    for _ in range(50):
        assert problem.within(play(envs.PruningEnv(problem), rng.random(4))[4]["kept"])


def test_without_a_wall_policies_are_what_the_actions_say():
    problem = toy.problem(UNITS, {"macs": 0.5})
    env = envs.PruningEnv(problem, wall=False)
    assert play(env, [1.0] * 4)[4]["kept"].tolist() == list(UNITS)
    assert play(env, [0.0] * 4)[4]["kept"].tolist() == problem.space.low.tolist()


# ---- the interface


@pytest.mark.filterwarnings("ignore:We recommend you to use a symmetric:UserWarning")
@pytest.mark.parametrize("settings", [{}, {"wall": False}, {"reward": "params"}], ids=str)
def test_gymnasium_and_stable_baselines3_accept_it(settings):
    gymnasium_check(envs.PruningEnv(toy.problem(), **settings), skip_render_check=True)
    sb3_check(envs.PruningEnv(toy.problem(), **settings))


def test_gymnasium_makes_it_by_name():
    problem = toy.problem()
    env = gymnasium.make("PruningRatio-v0", problem=problem)
    assert env.unwrapped.problem is problem
    observation, _ = env.reset(seed=3)
    assert observation.shape == (len(FEATURES),)


def test_the_vector_form_plays_what_the_single_form_plays():
    problem = toy.problem(UNITS, {"macs": 0.5})
    many = gymnasium.make_vec("PruningRatio-v0", num_envs=3, problem=problem)
    rng = np.random.default_rng(0)
    actions = rng.random((4, 3, 1), np.float32)
    for episode in range(2):
        many.reset(seed=episode)
        for action in actions:
            observation, rewards, terminated, _, info = many.step(action)
            assert many.observation_space.contains(observation)
        assert terminated.all()
        for i in range(3):
            _, reward, _, _, alone = play(envs.PruningEnv(problem), actions[:, i, 0])
            assert info["kept"][i].tolist() == alone["kept"].tolist() and rewards[i] == reward
    observation, rewards, terminated, _, _ = many.step(actions[0])  # starts anew
    assert not terminated.any() and np.all(observation[:, 0] == 0)


def test_infos_of_the_vector_form_are_those_of_gymnasiums_own():
    made = [
        gymnasium.make_vec("PruningRatio-v0", num_envs=2, problem=toy.problem(UNITS), **mode)
        for mode in ({}, {"vectorization_mode": "sync"})
    ]
    assert made[0].reset(seed=np.int64(1))[1] == made[1].reset(seed=1)[1] == {}
    for action in np.random.default_rng(0).random((6, 2, 1), np.float32):
        ours, theirs = (many.step(action)[-1] for many in made)
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert isinstance(ours[name], np.ndarray) and ours[name].dtype == value.dtype
            assert ours[name].tolist() == value.tolist()


def test_infos_of_the_vector_form_become_a_list_by_gymnasiums_wrapper():
    many = gymnasium.make_vec("PruningRatio-v0", num_envs=3, problem=toy.problem(UNITS))
    listed = gymnasium.wrappers.vector.DictInfoToList(many)
    assert listed.reset(seed=0)[1] == [{}, {}, {}]
    actions = np.random.default_rng(0).random((4, 3, 1), np.float32)
    infos = [listed.step(action)[-1] for action in actions]
    assert all(info.keys() == {"action"} for info in infos[0])
    for i, info in enumerate(infos[-1]):
        alone = play(envs.PruningEnv(toy.problem(UNITS)), actions[:, i, 0])[4]
        assert info["trial"] == alone["trial"] and info["kept"].tolist() == alone["kept"].tolist()


@pytest.mark.parametrize("action", [1.5, -0.1, float("nan")])
def test_actions_out_of_range_are_refused(action):
    env = envs.PruningEnv(toy.problem())
    with pytest.raises(ValueError, match=r"PruningEnv.action must be one number in \[0, 1\]"):
        env.step(np.array([action]))


def test_a_step_after_the_end_is_refused():
    env = envs.PruningEnv(toy.problem())
    play(env, [0.5] * 4)
    with pytest.raises(ValueError, match="must not be done"):
        env.step(np.array([0.5]))


# ---- observations


def network():
    """conv a (3 -> 16, stride 2) feeds depthwise b, which feeds linear c (frozen)."""
    shape = {"in_height": 32, "in_width": 32, "out_height": 16, "out_width": 16}
    a = LayerSpec("a", 0, "conv", 3, 16, (3, 3), (2, 2), 1, **shape, macs=1, params=1)
    b = LayerSpec("b", 1, "conv", 16, 16, (7, 7), (1, 1), 16, **shape, macs=1, params=1)
    c = LayerSpec("c", 2, "linear", 16, 64, (), (), 1, 1, 1, 1, 1, macs=1, params=1)
    targets = (
        Target("a", 0, "channel", 16, ("a", "b"), ("b", "c")),
        Target("c", 1, "head", 64, ("c",), ()),
    )

    class Plan:
        layers = (a, b, c)

    plan = Plan()
    plan.targets = targets
    cost = toy.Products("macs", ((1.0, -1, 0), (2.0, 0, 1)))
    parts = (plan, toy.Pruner(targets), toy.Scorer(np.ones(2)))
    return toy.Problem(*parts, {"macs": 0.5}, {"macs": cost})


def test_features_say_what_their_descriptions_say():
    problem = network()
    env = envs.PruningEnv(problem)
    names = list(FEATURES)
    first = dict(zip(names, env.reset()[0].tolist(), strict=True))
    dense, low = 16 + 2 * 16 * 64, problem.space.low
    assert first["in_channels"] == pytest.approx(np.log2(4) / 13)
    assert first["stride"] == pytest.approx(2 / 4) and first["kernel"] == pytest.approx(3 / 7)
    assert first["height"] == pytest.approx(np.log2(33) / 9)
    assert first["layers"] == pytest.approx(np.log2(5) / 6)
    assert first["is_depthwise"] == 1 and first["is_head"] == 0 and first["last_action"] == 1
    assert first["cost"] == pytest.approx(1 - (low[0] + 2 * low[0] * 64) / dense)
    assert first["reduced"] == 0
    assert first["rest"] == pytest.approx(1 - problem.costs(low)["macs"] / dense)
    assert first["duty"] == pytest.approx(0.5 / first["rest"])
    assert first["budget_macs"] == pytest.approx(0.5) and first["budget_params"] == 1
    observation, *_, info = env.step(np.array([0.75], np.float32))
    second = dict(zip(names, observation.tolist(), strict=True))
    kept = round(16 * (1 - second["reduced"] * dense / (16 + 2 * 16 * 64)))
    assert second["last_action"] == pytest.approx(info["action"])
    assert info["action"] == pytest.approx((kept - low[0]) / (16 - low[0]))
    assert second["is_head"] == 1 and second["is_linear"] == 1 and second["index"] == 0.5
    assert 0 <= second["least"] <= second["most"] <= 1


def test_observations_of_a_policy_are_those_of_its_episode():
    problem = toy.problem(UNITS, {"macs": 0.5, "params": 0.6})
    env = envs.PruningEnv(problem)
    info = play(env, [0.3, 0.9, 0.2, 0.7])[4]
    seen = [env.reset()[0], *(env.step(np.array([a]))[0] for a in info["actions"])]
    assert np.array_equal(env.episodes.observations(info["kept"]), np.stack(seen))


# ---- rewards


def test_the_error_is_one_minus_top1():
    class Top1(toy.Scorer):
        def __call__(self, model):
            score, _ = super().__call__(model)
            return 0.9 + (score - 1) / 10, {"top1": 0.9 + (score - 1) / 10}

    problem = toy.problem(scorer=Top1(np.ones(4)))
    _, reward, _, _, info = play(envs.PruningEnv(problem), [0.5] * 4)
    assert reward == pytest.approx(info["trial"].measurement.metrics["top1"] - 1)


@pytest.mark.parametrize(
    ("score", "metrics", "error"),
    [
        (-0.3, {"top1": 0.8, "kl": 0.3}, 0.3),
        (-0.3, {"top1": 0.8, "loss": 0.3}, 0.3),
        (0.8, {"top1": 0.8, "kl": 0.3}, 0.2),
        (0.6, {"f1": 0.6}, 0.4),
    ],
)
def test_the_error_follows_what_trials_are_scored_by(score, metrics, error):
    class Fixed(toy.Scorer):
        def __call__(self, model):
            return score, metrics

    env = envs.PruningEnv(toy.problem(scorer=Fixed(np.ones(4))))
    assert play(env, [0.5] * 4)[1] == pytest.approx(-error)


@pytest.mark.parametrize("metrics", [[], ["top1"], ["top1", "loss"]])
@pytest.mark.parametrize("reward", ["error", "macs"])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_better_networks_earn_more_whatever_the_scale_of_scores(scale, reward, metrics):
    class Scaled(toy.Scorer):
        def __call__(self, model):
            score, _ = super().__call__(model)
            named = {"top1": scale * score, "loss": 1 - score}
            return scale * score, {name: named[name] for name in metrics}

    problem = toy.problem(scorer=Scaled(np.linspace(0.2, 0.25, 4)), rounding=1)
    env = envs.PruningEnv(problem, reward)
    found = [play(env, row) for row in np.random.default_rng(0).random((20, 4))]
    scores = np.array([info["trial"].score for *_, info in found])
    rewards = np.array([reward for _, reward, *_ in found])
    costs = [1.0 if reward == "error" else np.log(i["trial"].measurement.costs["macs"])
             for *_, i in found]  # fmt: skip
    assert np.all(rewards < 0)
    assert np.array_equal(np.argsort(scores), np.argsort(rewards / costs))
    if scale == 1:
        assert rewards / costs == pytest.approx(scores - 1)


class Decibels(toy.Scorer):
    """Scores 20 for the dense network and others down to far below 0."""

    names: tuple[str, ...] = ()

    def __call__(self, model):
        score = 20 - 500 * (1 - super().__call__(model)[0])
        return score, dict.fromkeys(self.names, -score)


@pytest.mark.parametrize("name", ["loss", "kl"])
def test_what_is_called_a_loss_and_goes_below_0_changes_no_reward(name):
    found = []
    for names in ((), (name,)):
        scorer = Decibels(np.linspace(0.05, 0.1, 4))
        scorer.names = names
        env = envs.PruningEnv(toy.problem(scorer=scorer, rounding=1))
        found.append([play(env, row) for row in np.random.default_rng(0).random((20, 4))])
    scores = np.array([info["trial"].score for *_, info in found[1]])
    rewards, expected = (np.array([reward for _, reward, *_ in one]) for one in reversed(found))
    assert scores.min() < 0 < scores.max()
    assert np.array_equal(rewards, expected) and np.all(rewards < 0)
    assert np.array_equal(np.argsort(scores), np.argsort(rewards))


def test_a_loss_that_goes_below_0_only_later_is_none_from_then_on():
    values = iter([-0.5, -1.0, 0.2, -0.5])  # the second is the dense network's

    class Below(toy.Scorer):
        def __call__(self, model):
            score = next(values)
            return score, {"loss": -score}

    env = envs.PruningEnv(toy.problem(scorer=Below(np.ones(4))))
    rewards = [play(env, [action] * 4)[1] for action in (0.1, 0.5, 0.9)]
    assert rewards == pytest.approx([-0.5, -0.8, -1.5])


def test_a_network_with_less_than_1_per_cent_is_not_taken_for_a_good_one():
    values = iter([60.0, 95.0, 0.9])

    class PerCent(toy.Scorer):
        def __call__(self, model):
            score = next(values)
            return score, {"top1": score, "loss": 1.0}

    env = envs.PruningEnv(toy.problem(scorer=PerCent(np.ones(4))))
    rewards = [play(env, [action] * 4)[1] for action in (0.5, 0.1)]
    assert rewards == pytest.approx([-44.5, -103.6])


def test_a_network_better_than_the_dense_one_has_an_error_above_0():
    scorer = toy.Scorer(np.ones(4), every=lambda call: 30.0 if call else 50.0)
    env = envs.PruningEnv(toy.problem(scorer=scorer))
    assert play(env, [0.5] * 4)[1] == pytest.approx(-5)  # first: then the dense one, which is 30
    assert play(env, [0.1] * 4)[1] == pytest.approx(-25)


def test_resource_rewards_multiply_the_error_by_a_logarithm():
    problem = toy.problem()
    error = -play(envs.PruningEnv(problem), [0.5] * 4)[1]
    _, reward, _, _, info = play(envs.PruningEnv(problem, "params"), [0.5] * 4)
    params = info["trial"].measurement.costs["params"]
    assert reward == pytest.approx(-error * np.log(params))


def test_strict_rewards_end_at_the_limit():
    env = envs.PruningEnv(toy.problem(), wall=False, strict=True)
    assert play(env, [1.0] * 4)[1] == -np.inf
    assert play(env, [0.0] * 4)[1] > -np.inf
    env = envs.PruningEnv(toy.problem(), wall=False, strict=True, floor=-7.0)
    assert play(env, [1.0] * 4)[1] == -7


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("eror", "no reward is called 'eror'; did you mean 'error'?"),
        ("latency_ms", "reward 'latency_ms' needs a cost model for it; here there are error, macs"),
    ],
)
def test_unknown_rewards_are_refused(name, message):
    with pytest.raises(InputError) as error:
        envs.PruningEnv(toy.problem(), name)
    assert message in str(error.value)


@pytest.mark.parametrize("fault", [float("nan"), RuntimeError("out of memory")])
def test_failed_trials_get_the_worst_reward_and_three_stop(fault):
    scorer = toy.Scorer(np.linspace(0.1, 0.2, 4), every=lambda call: None if call < 1 else fault)
    env = envs.PruningEnv(toy.problem(scorer=scorer))
    good = play(env, [0.5] * 4)[1]
    actions = np.random.default_rng(0).random((50, 4))
    _, reward, _, _, info = play(env, actions[0])
    assert info["trial"].status == "failed" and np.isfinite(reward) and reward < good
    with pytest.raises(SearchStopped):
        for row in actions[1:]:
            play(env, row)
