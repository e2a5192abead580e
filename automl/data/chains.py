"""Sequences drawn from Markov chains: text of small made-up languages, whose entropy is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Chain:
    """A chain of first order: every token is drawn by the one before it.

    Attributes:
        transitions: Probability of the next token, shape (tokens, tokens), rows sum to 1.
    """

    transitions: NDArray[np.float64]

    @classmethod
    def draw(cls, tokens: int, sharpness: float, random: np.random.Generator) -> Chain:
        """A chain whose transitions are a softmax of normal numbers.

        Args:
            tokens: Size of the vocabulary.
            sharpness: Standard deviation of the logits; 0 makes every token equally likely.
            random: Source of the logits.
        """
        weights = np.exp(sharpness * random.standard_normal((tokens, tokens)))
        return cls(weights / weights.sum(1, keepdims=True))

    def sample(self, count: int, length: int, random: np.random.Generator) -> NDArray[np.int64]:
        """Sequences that begin with any token, shape (count, length)."""
        tokens = len(self.transitions)
        upto = np.cumsum(self.transitions, axis=1)
        out = np.empty((count, length), dtype=np.int64)
        out[:, 0] = random.integers(tokens, size=count)
        for step in range(1, length):
            drawn = random.random((count, 1))
            # The last sum may round to just below 1.
            out[:, step] = np.minimum((drawn > upto[out[:, step - 1]]).sum(1), tokens - 1)
        return out
