"""Episodes as arithmetic: from actions to kept counts and observations, without scoring.

Batched over episodes, so that an agent can think many through before it has one scored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from automl.fitting import Floats, Ints
from automl.problem import Problem
from automl.types import Kept
from envs.actions import to_actions, to_level
from envs.features import Featurizer
from envs.wall import Wall

#: Observations (episodes, features) -> actions (episodes,) in [0, 1].
Actor = Callable[[NDArray[np.float32]], Floats]


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """Where some episodes stand.

    Attributes:
        target: Index of the next target to decide; the number of targets at the end.
        done: Whether all are decided.
        kept: Counts decided so far, shape (episodes, targets); dense where undecided.
        wish: Fractions of the units that actions asked for, shape (episodes, targets).
        observation: Before the next decision, shape (episodes, features).
        least: Lowest level that the wall allows next, shape (episodes,).
        most: Highest level that it allows next, shape (episodes,).
        executed: Actions that lead to ``kept``, shape (episodes, targets).
    """

    target: int
    done: bool
    kept: Kept
    wish: Floats
    observation: NDArray[np.float32]
    least: Ints
    most: Ints
    executed: Floats


class Episodes:
    """Plays episodes of one problem."""

    def __init__(self, problem: Problem, *, wall: bool = True) -> None:
        """Computes what all episodes share."""
        self.has_wall = wall
        self._space = problem.space
        self._wall = Wall(problem)
        self._features = Featurizer.of(problem)
        self._count = len(problem.targets)
        self._levels = (
            problem.space.level(problem.space.low),
            problem.space.level(problem.space.high),
        )

    def start(self, episodes: int) -> Step:
        """``episodes`` episodes before their first decision."""
        kept = np.tile(self._space.high, (episodes, 1))
        return self._stand(0, kept, np.ones(kept.shape))

    def advance(self, step: Step, actions: Floats) -> Step:
        """Decides the next target of every episode.

        Args:
            step: Where they stand.
            actions: In [0, 1], shape (episodes,).

        Raises:
            ValueError: The episodes are over.
        """
        if step.done:
            raise ValueError("Episodes.step must not be done, got a finished one; reset first")
        t, space = step.target, self._space
        level = np.clip(to_level(actions, space, t), step.least, step.most)
        kept, wish = step.kept.copy(), step.wish.copy()
        kept[:, t] = np.minimum(level * space.step[t], space.units[t])
        low, high, units = space.low[t], space.high[t], space.units[t]
        wish[:, t] = (low + actions * (high - low)) / units
        if t + 1 == self._count and self.has_wall:
            kept = np.stack([self._wall.finish(k, w) for k, w in zip(kept, wish, strict=True)])
        return self._stand(t + 1, kept, wish)

    def ended(self, kept: Kept) -> Step:
        """The end of the one episode that decided these counts, shape (targets,)."""
        return self._stand(self._count, kept[None], kept[None] / self._space.units)

    def play(self, actor: Actor, episodes: int) -> Kept:
        """Finished episodes of an actor, shape (episodes, targets)."""
        step = self.start(episodes)
        while not step.done:
            step = self.advance(step, actor(step.observation))
        return step.kept

    def observations(self, kept: Kept) -> NDArray[np.float32]:
        """What an agent would have seen on its way to finished counts.

        Args:
            kept: Shape (targets,).

        Returns:
            Shape (targets + 1, features): before every decision, and after the last.
        """
        rows = [
            self._stand(t, _undecided(kept, t, self._space.high)[None], np.ones((1, len(kept))))
            for t in range(len(kept) + 1)
        ]
        return np.concatenate([row.observation for row in rows])

    def _stand(self, target: int, kept: Kept, wish: Floats) -> Step:
        done = target == self._count
        executed = to_actions(kept, self._space)
        least, most = self._bounds(kept, target)
        scale = (self._scaled(least, target), self._scaled(most, target))
        observation = self._features(kept, target, *scale)
        return Step(target, done, kept, wish, observation, least, most, executed)

    def _bounds(self, kept: Kept, target: int) -> tuple[Ints, Ints]:
        if target < self._count and self.has_wall:
            return self._wall.bounds(kept, target)
        at = min(target, self._count - 1)
        return tuple(np.full(len(kept), levels[at]) for levels in self._levels)  # type: ignore[return-value]

    def _scaled(self, level: Ints, target: int) -> Floats:
        """Levels of a target as actions."""
        at = min(target, self._count - 1)
        low, high = self._space.low[at], self._space.high[at]
        kept = np.minimum(level * self._space.step[at], self._space.units[at])
        return np.where(high > low, (kept - low) / np.maximum(high - low, 1), 1.0)


def _undecided(kept: Kept, target: int, high: Kept) -> Kept:
    return np.concatenate([kept[:target], high[target:]])
