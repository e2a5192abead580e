"""One search of the AMC strategy: which episodes are played, and what is learned from them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from automl.fitting import Floats
from automl.hashing import digest
from automl.paths import atomic_write
from automl.problem import Problem, Trial
from automl.seeding import own_random_numbers
from automl.strategies.amc_agent import (
    ALGORITHMS,
    EpisodeLearner,
    Transitions,
    explore,
    load_agent,
)
from automl.strategies.amc_credit import Credit
from automl.strategies.amc_judge import Interactions, Judge
from automl.strategies.heuristics import Depth
from automl.strategies.neighbours import neighbour
from automl.strategies.random import Random
from automl.strategies.sensitivity import OVERHEAD, Informed, analyse
from automl.types import InputError, Kept
from envs.actions import to_actions
from envs.pruning_env import PruningEnv

if TYPE_CHECKING:
    from automl.strategies.amc import AMC

#: Draws for a policy that was not played yet, before there are taken to be no more.
_DRAWS = 100
#: Best episodes whose neighbours are candidates.
_ELITES = 10
#: Rounds in which the most promising candidates get neighbours of their own.
_ROUNDS = 3
#: Episodes before the credit model says anything.
_LEAST = 4

#: The judge's covariance is chosen anew when there are so many times as many episodes.
_REFIT = 1.1
#: A judge without interactions.
_ADDITIVE = Interactions(power=0.0, length=1.0, noise=0.1)
#: Columns of ``learning.csv``. Losses are those of the updates before the episode.
CURVE_COLUMNS = (
    "episode", "source", "reward", "best_reward", "sigma", "actor_loss", "critic_loss",
)  # fmt: skip


class NoMorePolicies(Exception):
    """Every policy that can be found has been played."""


class Session:
    """Plays and learns.

    Attributes:
        agent: The actor-critic agent.
        found: Trials in the order of the episodes.
        curve: What learning looked like, a row per episode (see ``CURVE_COLUMNS``).
    """

    def __init__(self, problem: Problem, settings: AMC, trials: int, seed: int) -> None:
        """Builds environment and agent.

        Raises:
            InputError: The agent to start from cannot be used.
        """
        self.problem, self.settings, self.trials = problem, settings, trials
        self.env = PruningEnv(problem, settings.reward, wall=settings.wall, race=True)
        self.found: list[Trial] = []
        self.curve: list[dict[str, Any]] = []
        self._source = ""
        self._rng = np.random.default_rng(seed)
        self._warmup = math.ceil(settings.warmup * trials)
        self._suggested = self._first_plans()
        self._analysed = 0
        self._ahead: list[Trial] = []
        self._informed: Informed | None = None
        self._seen: set[bytes] = set()
        # Episodes that are planned, with who planned them, and the trials of those scored already.
        self._round: deque[tuple[Kept, str]] = deque()
        self._scored: dict[bytes, Trial] = {}
        # Episodes that did not fail, in order; of those that fell behind in a race, rewards are
        # estimates.
        self._kept: list[Kept] = []
        self._rewards: list[float] = []
        self._baseline: float | None = None
        self._credit: Credit | None = None
        self._covariance: Interactions | None = None
        self._refit_at = 0
        self.agent = self._make_agent(digest("amc", seed))

    def run(self) -> list[Trial]:
        """The analysis, if any, and all episodes; returns their trials."""
        self._analyse()
        episodes = self.trials - self._analysed
        try:
            self.agent.learn(episodes * len(self.problem.targets), log_interval=1)
        except NoMorePolicies:
            pass
        return self.found

    def _analyse(self) -> None:
        """Prunes targets one at a time, for the guides; see ``strategy=sensitivity``."""
        # As in ``strategy=sensitivity``, uniform, dense and one policy from the analysis must fit.
        probes = min(int(self.settings.analysis * self.trials), self.trials - OVERHEAD)
        choices = sum(len(grid) > 1 for grid in self.problem.grids)
        if probes < 1 or choices < 2 or not self.settings.wall:
            return
        if self.settings.guides:  # so that a search that is cut has something to show
            uniform = self.problem.fit(np.ones(len(self.problem.targets)))
            self._ahead = [self.problem.evaluate(self.problem.policy(uniform))]
        analysis = analyse(self.problem, probes)
        distinct: dict[str, Trial] = {}  # where all of it is allowed, uniform is the dense network
        for trial in (*self._ahead, analysis.dense, *analysis.trials):
            distinct.setdefault(trial.policy.key, trial)
        self.found += distinct.values()
        self._analysed = len(self.found)
        self._seen |= {t.policy.kept(self.problem.targets).tobytes() for t in self.found}
        if analysis.dense.status == "ok":
            self._informed = Informed(self.problem, analysis)
            self._warmup = 0  # random policies would tell little now, and mislead the process

    @property
    def _played(self) -> int:
        """Episodes so far."""
        return len(self.found) - self._analysed

    def _make_agent(self, key: str) -> EpisodeLearner:
        s, targets = self.settings, len(self.problem.targets)
        if s.tensorboard is not None:
            _require_tensorboard()
        with own_random_numbers(key):
            agent = ALGORITHMS[s.algorithm](
                "MlpPolicy",
                self.env,
                learning_rate=s.critic_rate,
                # Credit is given anew to every episode, so none may be forgotten.
                buffer_size=max(s.buffer_size, self.trials * targets * int(s.credit)),
                learning_starts=self._warmup * targets,
                batch_size=s.batch_size,
                tau=s.tau,
                gamma=s.gamma,
                train_freq=(1, "episode"),
                gradient_steps=s.updates * targets,
                policy_kwargs={
                    "net_arch": [s.hidden, s.hidden],
                    "optimizer_kwargs": {"fused": True},  # half the time of a step
                },
                tensorboard_log=s.tensorboard,
                device="cpu",
            )
        agent.prepare(self._plan, self._teach, key, s.actor_rate / s.critic_rate)
        if s.agent is not None:
            load_agent(agent, s.algorithm, s.agent)
        return agent

    # ---- which episodes are played

    def _plan(self) -> Floats | None:
        """Actions of the next episode; None lets the agent act as it goes along.

        Raises:
            NoMorePolicies: Nothing new can be found.
        """
        if not self._round:
            self._plan_round()
        if not self._round:
            self._source = "agent"
            return None
        kept, self._source = self._round.popleft()
        self.env.planned = kept
        return np.asarray(to_actions(kept, self.problem.space))

    def _plan_round(self) -> None:
        """Plans the next episodes, and scores them together if they are several."""
        left = self.trials - len(self.found)
        for _ in range(min(self.settings.episodes_per_round, max(left, 1))):
            try:
                planned = self._next()
            except NoMorePolicies:
                if not self._round:
                    raise
                break  # those that were found are played first
            if planned is None:
                break
            self._seen.add(planned[0].tobytes())
            self._round.append(planned)
        if len(self._round) > 1:
            kept = [one for one, _ in self._round]
            trials = self.env.evaluate_many(np.stack(kept))
            self._scored = {k.tobytes(): trial for k, trial in zip(kept, trials, strict=True)}

    def _next(self) -> tuple[Kept, str] | None:
        """The next episode and who planned it; None lets the agent act as it goes along.

        Raises:
            NoMorePolicies: Nothing new can be found.
        """
        kept = next(self._suggested, None)
        if kept is None and self._played + len(self._round) < self._warmup:
            kept = self._random_episode()
        if kept is not None:
            return kept, "planned"
        self._cool()
        return (self._most_promising(), "agent") if self.settings.candidates else None

    def _cool(self) -> None:
        """Narrows the exploration with every episode that the agent had a part in."""
        learned = self._played + len(self._round) - self._warmup
        self.agent.sigma = self.settings.sigma * self.settings.sigma_decay ** max(learned, 0)

    def _first_plans(self) -> Iterator[Kept]:
        """A loaded agent's own policy, what the analysis suggests, and guides."""
        suggested = [] if self._informed is None else [*self._informed.first()]
        if self.settings.wall and self.settings.guides:
            suggested += self._guides()
        if self.settings.agent is not None:
            suggested.insert(0, self.env.episodes.play(self.agent.act, 1)[0])
        for kept in suggested:
            if kept.tobytes() not in self._seen:
                yield kept

    def _random_episode(self) -> Kept:
        """A policy that uses the budget; without a wall, what random actions lead to."""
        if self.settings.wall:
            return self._new_random()
        kept: Kept = self.env.episodes.play(lambda rows: self._rng.random(len(rows)), 1)[0]
        return kept

    def _guides(self) -> list[Kept]:
        ones = np.ones(len(self.problem.targets))
        depth = [Depth(towards).kept(self.problem) for towards in ("deep", "shallow")]
        return [self.problem.fit(ones), *depth]

    def _new_random(self) -> Kept:
        for _ in range(_DRAWS):
            kept = Random().draw(self.problem, self._rng)
            if kept.tobytes() not in self._seen:
                return kept
        raise NoMorePolicies

    def _most_promising(self) -> Kept:
        """The best of the candidates by the credit model, among those not played yet."""
        count = self.settings.candidates
        acting = round(self.settings.acting * count)
        pool: dict[bytes, Kept] = {}
        if acting:
            pool = {kept.tobytes(): kept for kept in self.env.episodes.play(self._explore, acting)}
        value = self._judge()
        parents = self._elites()
        for _ in range(_ROUNDS):
            for kept in self._near(parents, count - acting):
                pool[kept.tobytes()] = kept
            candidates = np.stack(list(pool.values()))
            ranked = candidates[np.argsort(-value(candidates), kind="stable")]
            parents = list(ranked[:_ELITES])
        for kept in ranked:
            if kept.tobytes() not in self._seen:
                return np.asarray(kept)
        return self._new_random()

    def _near(self, parents: Sequence[Kept], count: int) -> Iterator[Kept]:
        """Neighbours of promising policies, at most ``count``; more where an analysis helps."""
        if self._informed is not None and count:
            yield from self._informed.near(parents, self._rng)
            return
        for _ in range(count):
            parent = parents[int(self._rng.integers(len(parents)))]
            yield neighbour(self.problem, parent, self._rng)

    def _judge(self) -> Callable[[Kept], Floats]:
        if self._informed is not None and self.settings.interactions:
            informed = self._informed.judge([*self._ahead, *self.found[self._analysed :]])
            if informed is not None:
                return informed
        if self._credit is None:  # too little is known yet
            return lambda kept: self._rng.random(len(kept))
        kept, rewards = np.stack(self._kept), np.array(self._rewards)
        units, settings = self.problem.space.units, self._known_covariance(len(kept))
        judge = Judge(self._credit, kept, rewards, units, settings)
        self._covariance = judge.settings
        return judge.draw(self._rng)

    def _known_covariance(self, episodes: int) -> Interactions | None:
        """The judge's covariance; None where it is to be chosen anew."""
        if not self.settings.interactions:
            return _ADDITIVE
        if episodes < self._refit_at:
            return self._covariance
        self._refit_at = math.ceil(_REFIT * episodes)
        return None

    def _explore(self, observations: Any) -> Floats:
        return explore(self.agent.act(observations), self.agent.sigma, self._rng)

    def _elites(self) -> list[Kept]:
        order = np.argsort([-reward for reward in self._rewards], kind="stable")[:_ELITES]
        return [self._kept[i] for i in order] or [self._new_random()]

    # ---- what is learned

    def _teach(self, info: Mapping[str, Any]) -> tuple[Transitions, Floats | None] | None:
        kept = info["kept"]
        trial = self._scored.pop(kept.tobytes(), info["trial"])  # the first time it was scored
        self.found.append(trial)
        self._seen.add(kept.tobytes())
        if trial.status == "failed":
            self._note(math.nan)
            return None
        self._kept.append(kept)
        self._rewards.append(self.env.reward(trial))
        self._note(self._rewards[-1])
        observations = self.env.episodes.observations(kept)
        if not self.settings.credit:
            rewards = np.full(len(kept), self._above_baseline(self._rewards[-1]))
            self._fit_credit()
            return Transitions(observations, info["actions"], rewards), None
        shares = self._fit_credit()
        return Transitions(observations, info["actions"], shares[-1]), shares[:-1]

    def _note(self, reward: float) -> None:
        row = {
            "episode": self._played,
            "source": self._source,
            "reward": reward,
            "best_reward": max(self._rewards, default=math.nan),
            "sigma": self.agent.sigma,
        }
        self.curve.append({**row, **self.agent.losses})

    def _above_baseline(self, reward: float) -> float:
        """A reward less the moving average of those before."""
        if self._baseline is None:
            self._baseline = reward
        above = reward - self._baseline
        keep = self.settings.baseline_decay
        self._baseline = keep * self._baseline + (1 - keep) * reward
        return above

    def _fit_credit(self) -> Floats:
        """Fits the credit model to all episodes; returns their shares, (episodes, targets)."""
        kept = np.stack(self._kept)
        if len(kept) < _LEAST or not (self.settings.credit or self.settings.candidates):
            return np.zeros(kept.shape)
        self._credit = Credit(kept, np.array(self._rewards), self.problem.space.units)
        return self._credit.shares(kept)


def write_curve(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes the learning curve as CSV, whole or not at all."""
    import pandas as pd

    table = pd.DataFrame(rows, columns=list(CURVE_COLUMNS))
    atomic_write(path, table.to_csv(index=False, float_format="%.9g"))


def _require_tensorboard() -> None:
    from importlib.util import find_spec

    if find_spec("tensorboard") is None:
        raise InputError("strategy.tensorboard needs the package: pip install tensorboard")
