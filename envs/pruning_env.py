"""The pruning environment: one step per decision target, in network order.

A thin adapter: costs, grids, budgets and trials are the problem's. AMC (He et al., ECCV 2018,
arXiv 1802.03494), section 3, with the wall on whole units and on both sides (``envs.wall``).
"""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from automl.problem import Problem, Trial
from automl.types import Kept
from envs.episodes import Episodes
from envs.features import FEATURES
from envs.rewards import make_reward

Observation = NDArray[np.float32]


class PruningEnv(gymnasium.Env[Observation, NDArray[np.float32]]):
    """``PruningRatio-v0``: prune one target a step; the reward comes with the last.

    Observation: ``Box(0, 1, (len(FEATURES),))``, described in ``envs.features.FEATURES``.

    Action: ``Box(0, 1, (1,))``, how much of the target to KEEP within its bounds
    (``envs.actions``), then clipped by the wall and rounded.

    ``info`` of every step: ``action``, what was executed. Of the last step also ``kept`` (counts
    of all targets), ``actions`` (those that lead to them) and ``trial``; the last corrections
    (``Wall.finish``) may have raised earlier actions, so learn from these.

    Attributes:
        problem: What to prune, within which budget.
        episodes: The same without scoring.
        planned: Counts that this episode ends with whatever its actions, shape (targets,); for
            whoever planned it by ``episodes``. Played again, its actions may end elsewhere: the
            wall takes costs to grow with every target, and measured ones may fall. ``reset``
            forgets it.

    Example:
        >>> env = gymnasium.make("PruningRatio-v0", problem=problem)
        >>> observation, info = env.reset(seed=0)
        >>> while "trial" not in info:
        ...     action = env.action_space.sample()
        ...     observation, reward, terminated, truncated, info = env.step(action)
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - Gymnasium's name and form

    def __init__(
        self,
        problem: Problem,
        reward: str = "error",
        *,
        wall: bool = True,
        strict: bool = False,
        floor: float = -math.inf,
        race: bool = False,
    ) -> None:
        """Builds the spaces; scores nothing yet.

        Args:
            problem: What to prune, within which budget.
            reward: A name from ``envs.rewards.REWARDS``.
            wall: Whether actions are clipped to meet the budget. Without it, policies may be
                over budget, as accuracy-guaranteed compression wants (reward ``params`` or
                ``macs``).
            strict: Whether an episode over budget gets ``floor`` instead of its reward.
            floor: The reward outside the limits, for ``strict``; learning needs a finite one.
            race: Whether episodes may be discarded that fall behind the best (see
                ``Problem.evaluate``); their rewards are then of what is estimated of them.

        Raises:
            InputError: The reward is unknown, or the problem cannot compute it.
        """
        self.problem = problem
        self.episodes = Episodes(problem, wall=wall)
        self._reward = make_reward(reward, problem)
        self._strict, self._floor, self._race = strict, floor, race
        self.observation_space = spaces.Box(0.0, 1.0, (len(FEATURES),), np.float32)
        self.action_space = spaces.Box(0.0, 1.0, (1,), np.float32)
        self.planned: Kept | None = None
        self._step = self.episodes.start(1)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts an episode; nothing in it is random."""
        super().reset(seed=seed)
        self.planned = None
        self._step = self.episodes.start(1)
        return self._step.observation[0], {}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Decides the next target.

        Raises:
            ValueError: ``action`` is not one number in [0, 1], or the episode is over.
            SearchStopped: At its end, too many trials in a row have failed.
        """
        asked = np.asarray(action, np.float64).reshape(-1)
        if asked.shape != (1,) or not 0 <= asked[0] <= 1:
            raise ValueError(f"PruningEnv.action must be one number in [0, 1], got {action}")
        self._step = self.episodes.advance(self._step, asked)
        if self._step.done and self.planned is not None:
            self._step = self.episodes.ended(self.planned)
        info: dict[str, Any] = {"action": float(self._step.executed[0, self._step.target - 1])}
        if not self._step.done:
            return self._step.observation[0], 0.0, False, False, info
        kept = self._step.kept[0]
        (trial,) = self.evaluate_many(kept[None])
        info |= {"kept": kept, "actions": self._step.executed[0], "trial": trial}
        return self._step.observation[0], self.reward(trial), True, False, info

    def evaluate_many(self, kept: Kept) -> list[Trial]:
        """Scores finished episodes, shape (episodes, targets)."""
        policies = [self.problem.policy(one) for one in kept]
        over = not self.episodes.has_wall
        return self.problem.evaluate_many(policies, allow_over_budget=over, race=self._race)

    def reward(self, trial: Trial) -> float:
        """The reward of a trial, at the end of its episode."""
        if self._strict and not self.problem.within(trial.policy.kept(self.problem.targets)):
            return self._floor
        return self._reward(trial)
