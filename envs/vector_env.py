"""Several pruning episodes at once, their endings scored together."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from automl.problem import Problem
from envs.pruning_env import Observation, PruningEnv


class PruningVectorEnv(gymnasium.vector.VectorEnv[Observation, NDArray[np.float32], Any]):
    """Episodes in step with each other; all end at once and go to ``evaluate_many`` together.

    Made by ``gymnasium.make_vec("PruningRatio-v0", num_envs=8, problem=problem)``. Meaning of
    actions, observations and ``info`` as in ``PruningEnv``, with a leading axis. As in any of
    Gymnasium's, ``info`` holds an array for every name (``trial``: of objects) and beside it, as
    ``_trial``, which episodes have it: all or none. After an ending, the next step starts anew and
    its actions are not looked at (Gymnasium's ``AutoresetMode.NEXT_STEP``).
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(self, problem: Problem, num_envs: int = 1, **settings: Any) -> None:
        """Builds the spaces.

        Args:
            problem: What to prune, within which budget.
            num_envs: Episodes at a time, >= 1.
            settings: As for ``PruningEnv``.

        Raises:
            ValueError: ``num_envs`` is below 1.
        """
        if num_envs < 1:
            raise ValueError(f"PruningVectorEnv.num_envs must be >= 1, got {num_envs}")
        self.num_envs = num_envs
        self._one = PruningEnv(problem, **settings)
        self.single_observation_space = self._one.observation_space
        self.single_action_space = self._one.action_space
        self.observation_space = batch_space(self._one.observation_space, num_envs)
        self.action_space = batch_space(self._one.action_space, num_envs)
        self._step = self._one.episodes.start(num_envs)

    def reset(
        self,
        *,
        seed: int | list[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts ``num_envs`` episodes; nothing in them is random."""
        super().reset(seed=int(seed) if isinstance(seed, Integral) else None)
        self._step = self._one.episodes.start(self.num_envs)
        return self._step.observation, {}

    def step(
        self, actions: NDArray[np.float32]
    ) -> tuple[Observation, Any, NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Decides the next target of every episode.

        Raises:
            ValueError: ``actions`` is not one number in [0, 1] per episode.
            SearchStopped: Too many trials in a row have failed.
        """
        flags = np.zeros(self.num_envs, np.bool_)
        if self._step.done:
            observation, info = self.reset()
            return observation, np.zeros(self.num_envs), flags, flags.copy(), info
        asked = np.asarray(actions, np.float64).reshape(-1)
        if asked.shape != (self.num_envs,) or not np.all((asked >= 0) & (asked <= 1)):
            raise ValueError(
                f"PruningVectorEnv.actions must be {self.num_envs} numbers in [0, 1], got {actions}"
            )
        self._step = self._one.episodes.advance(self._step, asked)
        step, rewards = self._step, np.zeros(self.num_envs)
        info = {"action": step.executed[:, step.target - 1]}
        if step.done:
            trials = np.empty(self.num_envs, object)
            trials[:] = self._one.evaluate_many(step.kept)
            rewards = np.array([self._one.reward(trial) for trial in trials])
            info |= {"kept": step.kept, "actions": step.executed, "trial": trials}
        info |= {f"_{name}": np.ones(self.num_envs, np.bool_) for name in info}
        return step.observation, rewards, flags | step.done, flags.copy(), info
