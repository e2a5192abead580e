"""Racing: a trial that falls behind the leaders is given up before it has seen every example.

Whether a network is worse than another is tested while its examples come in, in an order that is
drawn at random for every trial. With losses ``x`` of the network and ``y`` of the leader that sets
the bar, both over the same ``n`` examples and never negative, the hypothesis is that the network is
at least as good: ``sum(x) <= sum(y)``. Against it a bettor plays (Waudby-Smith and Ramdas,
"Estimating means of bounded random variables by betting", 2024, arXiv 2010.09686; without
replacement as in "Confidence sequences for sampling without replacement", 2020, arXiv 2006.04347).
For any cap ``c``, ``d = x - min(y, c)`` is at least ``-c``, and if the hypothesis holds the next of
them is on average at most

    m = (sum(y - min(y, c)) - d seen so far) / (examples left),

so that a capital that is multiplied by ``1 + f (d - m) / (c + m)``, 0 < f < 1, does not grow on
average: by Ville's inequality it reaches ``1 / delta`` with a probability of at most ``delta``.
Nothing else is assumed: not that losses are bounded (divergences are not), nor normal, nor
independent, and the test may be looked at after every example. Several caps and fractions share the
capital; caps take out what both networks find hard, which is most of the variance.

Leaders are the ``places`` best trials within the budget that saw every example. A race that counts
is one of a trial that belongs among them: where such a trial survives, leaders are those that there
would be without racing. If ``j`` rounds have changed the leaders, every race of the next round gets
``delta / (places * (j + 1) * (j + 2))``; at most ``places`` races of a round count, and only rounds
that change the leaders have such, so that all together they go wrong with a probability of at most
``delta / (1 * 2) + delta / (2 * 3) + ... = delta``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from automl.hashing import digest
from automl.trials import Trial

Floats = NDArray[np.float64]

#: Fractions of the largest possible bet.
_FRACTIONS = 0.9 * 0.4 ** np.arange(5)
#: The caps are 0 (the leader's losses are then not looked at) and this quantile of its losses.
#: More caps, or others from .8 to .99, changed the examples that races take by less than 5 %.
_CAP = 0.9


@dataclass(frozen=True, slots=True)
class Racing:
    """How trials race.

    Attributes:
        delta: Probability that one of the best trials is given up, at most; in (0, 1).
        round: Trials of a batch that race against the same leaders, >= 1.
        places: How many of the best trials are wanted, >= 1.
    """

    delta: float = 0.01
    round: int = 8
    places: int = 1

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
            ValueError: One breaks its rule.
        """
        if not 0 < self.delta < 1:
            raise ValueError(f"Racing.delta must be in (0, 1), got {self.delta}")
        for name in ("round", "places"):
            if getattr(self, name) < 1:
                raise ValueError(f"Racing.{name} must be >= 1, got {getattr(self, name)}")


@dataclass(frozen=True, eq=False, slots=True)
class Bar:
    """What a network must not fall behind.

    Attributes:
        losses: Of the leader, >= 0, shape (examples,).
        delta: Probability with which a network that is at least as good is given up, at most.
    """

    losses: Floats
    delta: float


@dataclass(frozen=True, eq=False, slots=True)
class Examined:
    """A network's score with what it is made of.

    Attributes:
        score: Over all examples; an estimate where the network was given up.
        metrics: Likewise.
        losses: Of every example, shape (examples,); None where the network was given up.
    """

    score: float
    metrics: Mapping[str, float]
    losses: Floats | None


class Race:
    """One network against a bar; see the module's docstring.

    Attributes:
        examples: How many were seen.
    """

    def __init__(self, bar: Bar) -> None:
        """Nothing was seen yet."""
        y = np.asarray(bar.losses, np.float64)
        self._caps = np.unique([0.0, np.quantile(y, _CAP)])
        self._controls = np.minimum(y, self._caps[:, None])  # (caps, examples)
        self._above = y.sum() - self._controls.sum(axis=1)
        self._sums = np.zeros(len(self._caps))
        self._capital = np.zeros((len(self._caps), len(_FRACTIONS)))  # logarithms
        self._goal = np.log(self._capital.size) - np.log(bar.delta)
        self._tiny = 1e-9 * max(float(y.mean()), np.finfo(np.float64).tiny)
        self.examples = 0

    def falls_behind(self, rows: NDArray[np.int64], losses: Floats) -> bool:
        """Takes the losses of more examples, in the order that was drawn.

        Args:
            rows: Which they are, shape (batch,).
            losses: Of the network, >= 0, shape (batch,).

        Returns:
            Whether the network is worse, with the bar's error probability.
        """
        left = self._controls.shape[1] - self.examples - np.arange(len(rows))
        d = losses - self._controls[:, rows]
        sums = self._sums[:, None] + np.cumsum(d, axis=1)
        means = (self._above[:, None] - (sums - d)) / left
        room = self._caps[:, None] + means
        self._sums, self.examples = sums[:, -1], self.examples + len(rows)
        if bool((room < -self._tiny).any()):
            return True  # what is left cannot make up for it
        won = np.where(room > self._tiny, (d - means) / np.maximum(room, self._tiny), 0.0)
        steps = np.log1p(_FRACTIONS[:, None] * np.maximum(won, -1.0)[:, None, :])
        capital = self._capital[:, :, None] + np.cumsum(steps, axis=2)
        self._capital = capital[:, :, -1]
        most = capital.max(axis=(0, 1))
        together = most + np.log(np.exp(capital - most).sum(axis=(0, 1)))
        return bool((together >= self._goal).any())

    def estimate(self) -> float:
        """The mean loss over all examples, from those seen and the bar's on the others."""
        return float(self._sums[-1] / self.examples + self._controls[-1].mean())


def drawn_order(examples: int, key: str) -> NDArray[np.int64]:
    """The order in which a trial sees its examples, shape (examples,).

    Args:
        examples: How many there are.
        key: Of the trial, a digest; trials have orders that tell nothing of each other's.
    """
    return np.random.default_rng(int(key[:16], 16)).permutation(examples)


@dataclass(eq=False, slots=True)
class Leader:
    """One of the best trials.

    Attributes:
        key: In the journal.
        trial: What was measured.
        losses: Of every example; None until they are asked for, where the journal had the trial.
    """

    key: str
    trial: Trial
    losses: Floats | None


class Leaders:
    """The best trials so far."""

    def __init__(self, racing: Racing) -> None:
        """There are none yet."""
        self._racing = racing
        self._best: list[Leader] = []
        self._changes = 0

    @property
    def last(self) -> Leader | None:
        """Who sets the bar; None while there are fewer than places."""
        return self._best[-1] if len(self._best) == self._racing.places else None

    def bar(self, losses: Floats) -> Bar:
        """The bar for the next round, given the losses of ``last``."""
        return Bar(losses, self._delta)

    @property
    def bar_name(self) -> str | None:
        """Names the bar for the next round; a trial ends alike against bars of one name."""
        last = self.last
        return None if last is None else digest(last.key, self._delta)

    @property
    def _delta(self) -> float:
        """What the next round may go wrong with."""
        tries = self._changes + 1
        return self._racing.delta / (self._racing.places * tries * (tries + 1))

    def add(self, finished: Sequence[Leader]) -> None:
        """Takes the trials of a round that saw every example and are within the budget."""
        full = self.last is not None
        before = [one.key for one in self._best]
        known = set(before)
        several = [*self._best, *(one for one in finished if one.key not in known)]
        several.sort(key=lambda one: (-one.trial.score, one.trial.index))
        self._best = several[: self._racing.places]
        self._changes += full and before != [one.key for one in self._best]
