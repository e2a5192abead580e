"""AMC: a DDPG agent that learns how much of every layer to keep.

He et al., "AMC: AutoML for Model Compression and Acceleration on Mobile Devices", ECCV 2018
(arXiv 1802.03494). As in the paper (section 3 and 4): one step per layer in network order, an
actor and a critic with two hidden layers of 300, tau .01, gamma 1, minibatches of 64, replay of
2,000 transitions, learning rates 1e-4 and 1e-3, exploration from a truncated normal distribution of
width .5 that decays exponentially per episode after the warm-up, every transition of an episode
rewarded with the episode's reward less a moving average, updates after each episode.

Deviations, whatever the settings:

* Steps are coupled groups of layers, not layers; coupled layers cannot be pruned apart.
* The action wall is two-sided and stands on whole units (``envs.wall``): the paper's is one-sided
  and on fractions, so that rounded policies may exceed the budget.
* Replay holds the actions that were EXECUTED, after wall and rounding. The official code stores
  what the actor wished, and so teaches it that a wish had another wish's effect.
* Warm-up episodes are random policies that use the budget, all targets alike
  (``automl.strategies.random``), not random actions, which the wall would turn into networks
  with all pruning at their end; where there is an analysis, none are random.
* The agent also sees coupling, the budget, how much is left to do and where the wall stands
  (``envs.features``).
* Actors end in tanh on [-1, 1], scaled, as Stable-Baselines3 has them, not in a sigmoid.

Deviations that are settings (``strategy=amc_paper`` turns all of them off):

* ``analysis``: part of the trials prunes targets one at a time, and the policies that dynamic
  programming makes of that are the first episodes (``automl.strategies.sensitivity``).
* ``guides``: the next episodes play the uniform and the depth-wise policies.
* ``credit``: rewards are divided among the decisions by an additive model of all episodes
  (``automl.strategies.amc_credit``).
* ``candidates``: every episode is thought through that many times (the actor with exploration,
  and neighbours of the best episodes); of those not scored before, the one that a draw from the
  posterior of a Gaussian process likes best is scored. Trials are dear, arithmetic is cheap.
* ``interactions``: that process knows that damages do not quite add up
  (``automl.strategies.amc_judge``).
* ``updates``: more updates per step than one.

What each of them is worth is measured in docs/amc.md.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from automl.hints import did_you_mean
from automl.problem import Problem, best_within
from automl.types import InputError, SearchResult

if TYPE_CHECKING:
    from automl.strategies.amc_session import Session

CURVE_FILE = "learning.csv"
ALGORITHMS = ("ddpg", "td3", "sac")


@dataclass(eq=False)
class AMC:
    """Searches with an actor-critic agent; see the module's docstring.

    Attributes:
        algorithm: ``ddpg``, ``td3`` or ``sac``.
        reward: A name from ``envs.rewards.REWARDS``.
        wall: Whether actions are clipped to meet the budget.
        warmup: Episodes before the agent learns from them, as part of the trials, in [0, 1]; the
            paper has 100 of 400. They are random, unless there was an analysis: that knows better
            ones, and only the agent's first updates wait.
        hidden: Units of both hidden layers of actor and critic.
        tau: How far target networks move per update.
        gamma: Discount.
        batch_size: Transitions per update.
        buffer_size: Transitions remembered.
        critic_rate: Learning rate.
        actor_rate: Learning rate.
        updates: Updates per step of an episode.
        sigma: Width of the exploration after the warm-up.
        sigma_decay: Its factor per episode.
        baseline_decay: Of the moving average that rewards are compared with.
        analysis: Part of the trials that goes to single targets, in [0, 1].
        guides: Whether the next episodes are the uniform and depth-wise policies.
        credit: Whether an additive model divides rewards among decisions.
        candidates: Episodes thought through for each one that is scored; 0 acts at once.
        interactions: Whether candidates are judged by more than the additive model.
        acting: The part of the candidates that the actor plays, in [0, 1]; the others are
            neighbours of the best episodes.
        episodes_per_round: Episodes that are planned before the first of them is scored, >= 1; an
            engine scores them side by side, and none of them knows how the others end. Acting at
            once (``candidates`` 0) plans nothing: there it changes nothing.
        agent: Run folder or file of a trained agent to start from.
        tensorboard: Folder for TensorBoard's scalars.
    """

    algorithm: str = "ddpg"
    reward: str = "error"
    wall: bool = True
    warmup: float = 0.1
    hidden: int = 300
    tau: float = 0.01
    gamma: float = 1.0
    batch_size: int = 64
    buffer_size: int = 2000
    critic_rate: float = 1e-3
    actor_rate: float = 1e-4
    updates: int = 1
    sigma: float = 0.5
    sigma_decay: float = 0.95
    baseline_decay: float = 0.95
    analysis: float = 0.25
    guides: bool = True
    credit: bool = True
    candidates: int = 32
    interactions: bool = True
    acting: float = 0.5
    episodes_per_round: int = 1
    agent: str | None = None
    tensorboard: str | None = None
    _session: Session | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
            InputError: The algorithm or reward is unknown.
            ValueError: A number is out of range.
        """
        from envs.rewards import REWARDS

        for kind, name, known in (
            ("algorithm", self.algorithm, ALGORITHMS),
            ("reward", self.reward, REWARDS),
        ):
            if name not in known:
                raise InputError(f"no {kind} is called {name!r}; {did_you_mean(name, known)}")
        for name in ("warmup", "gamma", "baseline_decay", "acting", "sigma_decay", "analysis"):
            self._require(name, 0 <= getattr(self, name) <= 1, "in [0, 1]")
        for name in ("hidden", "batch_size", "buffer_size", "updates", "episodes_per_round"):
            self._require(name, getattr(self, name) >= 1, ">= 1")
        for name in ("tau", "critic_rate", "actor_rate"):
            self._require(name, 0 < getattr(self, name) <= 1, "in (0, 1]")
        for name in ("sigma", "candidates"):
            self._require(name, getattr(self, name) >= 0, ">= 0")

    def _require(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            raise ValueError(f"AMC.{name} must be {rule}, got {getattr(self, name)}")

    def search(self, problem: Problem, trials: int, seed: int) -> SearchResult:
        """Runs ``trials`` episodes, fewer where there are no more policies.

        Raises:
            InputError: The agent to start from cannot be used.
            SearchStopped: Too many trials in a row failed, or none met the budget.
            ValueError: ``trials`` is below 1.
        """
        if trials < 1:
            raise ValueError(f"AMC.trials must be >= 1, got {trials}")
        from automl.strategies.amc_session import Session  # loads torch

        self._session = Session(problem, self, int(trials), int(seed))
        found = self._session.run()
        best = best_within(problem, found)
        return SearchResult(best.policy, tuple(found), len(found) < trials)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the agent of the last search, for the setting ``agent``; returns the file.

        Args:
            path: A folder, in which it is called ``agent.safetensors`` and gets the learning
                curve beside it, ``learning.csv``; or a file.

        Raises:
            RuntimeError: There was no search yet.
        """
        if self._session is None:
            raise RuntimeError("AMC.save: search first, then there is an agent to save")
        from automl.strategies.amc_agent import save_agent
        from automl.strategies.amc_session import write_curve

        if Path(path).is_dir():
            write_curve(self._session.curve, Path(path) / CURVE_FILE)
        return save_agent(self._session.agent, self.algorithm, path)
