"""Stable-Baselines3's DDPG, TD3 and SAC, taught by whole episodes of the pruning environment.

What differs from the libraries' loops is in ``EpisodeLearner``, a mixin over any of the three:
episodes may be planned beforehand, exploration is truncated-normal, and transitions are stored
when the episode is over, with the actions that were executed and the rewards that it earned.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import DDPG, SAC, TD3
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from automl.fitting import Floats
from automl.hashing import digest
from automl.paths import atomic_write
from automl.seeding import own_random_numbers
from automl.types import InputError
from envs.features import FEATURES, OBSERVATION_VERSION

AGENT_FILE = "agent.safetensors"
_SCHEMA = "prunepilot/agent"


@dataclass(frozen=True, slots=True)
class Transitions:
    """One finished episode.

    Attributes:
        observations: Shape (targets + 1, features).
        actions: As executed, shape (targets,), in [0, 1].
        rewards: Of each decision, shape (targets,).
    """

    observations: NDArray[np.float32]
    actions: Floats
    rewards: Floats


#: Called at the start of an episode: actions to play, or None to let the agent act.
Planner = Callable[[], Floats | None]
#: Called at its end with the environment's ``info``: the episode's transitions and, where the
#: rewards of earlier episodes have changed too, those, shape (episodes, targets). None: nothing is
#: to be learned.
Teacher = Callable[[Mapping[str, Any]], tuple[Transitions, Floats | None] | None]


class EpisodeLearner(OffPolicyAlgorithm):
    """Mixin for off-policy algorithms.

    Attributes:
        planner: Plans episodes.
        teacher: Turns their endings into transitions.
        sigma: Width of the exploration around the actor's action.
        losses: Mean losses of the latest updates, by name as in ``critic_loss``.
    """

    planner: Planner
    teacher: Teacher
    sigma: float = 0.0
    actor_rate: float = 1.0
    losses: Mapping[str, float] = {}
    _plan: Floats | None = None
    _at: int = 0
    _key: str = ""
    _rng: np.random.Generator

    def prepare(self, planner: Planner, teacher: Teacher, key: str, actor_rate: float) -> None:
        """Sets what the algorithms' constructors do not take.

        Args:
            planner: See ``Planner``.
            teacher: See ``Teacher``.
            key: A digest that all random numbers depend on.
            actor_rate: Learning rate of the actor as a multiple of the critic's.
        """
        self.planner, self.teacher, self._key = planner, teacher, key
        self.actor_rate = actor_rate
        self._rng = np.random.default_rng(int(key[:16], 16))

    def _sample_action(
        self, learning_starts: int, action_noise: Any = None, n_envs: int = 1
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        if self._at == 0:
            self._plan = self.planner()
        if self._plan is None:
            assert isinstance(self._last_obs, np.ndarray)
            chosen = explore(self.act(self._last_obs), self.sigma, self._rng)
        else:
            chosen = self._plan[self._at : self._at + 1]
        self._at += 1
        action = np.asarray(chosen, np.float32).reshape(1, 1)
        return action, np.asarray(self.policy.scale_action(action), np.float32)

    def act(self, observations: NDArray[np.float32]) -> Floats:
        """The actor's actions, without exploration, shape (observations,)."""
        with one_thread():
            actions, _ = self.policy.predict(observations, deterministic=True)
        return np.clip(np.asarray(actions, np.float64).reshape(-1), 0.0, 1.0)

    def _store_transition(
        self,
        replay_buffer: Any,
        buffer_action: NDArray[np.float32],
        new_obs: Any,
        reward: NDArray[np.float32],
        dones: NDArray[np.bool_],
        infos: list[dict[str, Any]],
    ) -> None:
        """Stores nothing until the episode is over, and then all of it."""
        self._last_obs = new_obs
        if not dones[0]:
            return
        self._at = 0
        lesson = self.teacher(infos[0])
        if lesson is not None:
            self._remember(replay_buffer, *lesson)

    def _remember(self, replay_buffer: Any, new: Transitions, earlier: Floats | None) -> None:
        if earlier is not None:
            replay_buffer.rewards[: earlier.size] = earlier.reshape(-1, 1)
        last = len(new.actions) - 1
        for t, action in enumerate(new.actions):
            replay_buffer.add(
                new.observations[t][None],
                new.observations[t + 1][None],
                self.policy.scale_action(np.array([[action]], np.float32)),
                new.rewards[t : t + 1],
                np.array([t == last]),
                [{}],
            )

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """The algorithm's own updates, on random numbers of their own."""
        if self.replay_buffer is None or self.replay_buffer.size() == 0:
            return
        with one_thread(), own_random_numbers(digest(self._key, self._n_updates)):
            super().train(gradient_steps, batch_size)
        logged = self.logger.name_to_value
        names = ("train/actor_loss", "train/critic_loss")
        self.losses = {name[6:]: float(logged[name]) for name in names if name in logged}

    def _update_learning_rate(self, optimizers: Any) -> None:
        super()._update_learning_rate(optimizers)
        for group in self.actor.optimizer.param_groups:  # type: ignore[union-attr]
            group["lr"] *= self.actor_rate


class EpisodeDDPG(EpisodeLearner, DDPG):
    """DDPG (arXiv 1509.02971) on finished episodes."""


class EpisodeTD3(EpisodeLearner, TD3):
    """TD3 (arXiv 1802.09477) on finished episodes."""


class EpisodeSAC(EpisodeLearner, SAC):
    """SAC (arXiv 1812.05905) on finished episodes."""


ALGORITHMS: dict[str, type[EpisodeLearner]] = {
    "ddpg": EpisodeDDPG,
    "td3": EpisodeTD3,
    "sac": EpisodeSAC,
}


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread for the block: more only slow networks as small as these."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def explore(mean: Floats, sigma: float, rng: np.random.Generator) -> Floats:
    """Normal around ``mean``, truncated to [0, 1] (AMC, equation 5); by rejection.

    Args:
        mean: In [0, 1], any shape.
        sigma: Standard deviation before truncation.
        rng: Where numbers come from.
    """
    if sigma <= 0:
        return mean
    drawn = mean + sigma * rng.standard_normal(mean.shape)
    # At least about half of all draws at the ends are accepted unless sigma is huge.
    for _ in range(64):
        outside = (drawn < 0) | (drawn > 1)
        if not outside.any():
            break
        drawn[outside] = mean[outside] + sigma * rng.standard_normal(int(outside.sum()))
    return np.clip(drawn, 0.0, 1.0)


# ---- files


def save_agent(agent: EpisodeLearner, algorithm: str, path: str | os.PathLike[str]) -> Path:
    """Writes the networks of an agent; no pickles.

    Args:
        agent: What to write.
        algorithm: Its name in ``ALGORITHMS``.
        path: A file, or a folder in which it is called ``agent.safetensors``.

    Returns:
        The file.
    """
    from safetensors.torch import save

    file = _file(path)
    about = {
        "schema": _SCHEMA,
        "algorithm": algorithm,
        "observation": OBSERVATION_VERSION,
        "features": list(FEATURES),
        "net_arch": agent.policy.net_arch,
    }
    state = {name: tensor.contiguous() for name, tensor in agent.policy.state_dict().items()}
    # Not save_file: what it writes is for the owner's eyes alone, unlike all else in the folder.
    atomic_write(file, save(state, metadata={"agent": json.dumps(about)}))
    return file


def load_agent(agent: EpisodeLearner, algorithm: str, path: str | os.PathLike[str]) -> None:
    """Gives an agent the networks that ``save_agent`` wrote.

    Raises:
        InputError: The file cannot be read, is no agent, or is one of another algorithm, another
            size, or for other observations.
    """
    from safetensors import SafetensorError, safe_open

    file = _file(path)
    try:
        with safe_open(str(file), framework="pt") as stored:
            about = json.loads((stored.metadata() or {}).get("agent", "{}"))
            state = {name: stored.get_tensor(name) for name in stored.keys()}
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"cannot read agent {str(file)!r}: {reason}") from None
    _check(about, agent, algorithm, str(file))
    try:
        agent.policy.load_state_dict(state)
    except (RuntimeError, TypeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise InputError(f"agent {str(file)!r} is damaged: {reason}") from None


def _check(about: Any, agent: EpisodeLearner, algorithm: str, file: str) -> None:
    if not isinstance(about, dict) or about.get("schema") != _SCHEMA:
        raise InputError(f"{file!r} is not an agent; name a run folder of strategy=amc")
    version, features = about.get("observation"), about.get("features")
    if version != OBSERVATION_VERSION or features != list(FEATURES):
        raise InputError(
            f"agent {file!r} was trained on observations of version {version}, this release has "
            f"version {OBSERVATION_VERSION}; train it anew"
        )
    for name, found, wanted in (
        ("algorithm", about.get("algorithm"), algorithm),
        ("hidden layers", about.get("net_arch"), agent.policy.net_arch),
    ):
        if found != wanted:
            raise InputError(f"agent {file!r} has {name} {found}, this strategy {wanted}")


def _file(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    return path / AGENT_FILE if path.is_dir() else path
