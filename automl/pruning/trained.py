"""A pruner that trains every network for a moment, as NetAdapt's short-term fine-tuning does.

The moment is the same for every network and starts from the dense weights, pruned and repaired: a
trial still depends on its policy alone, whoever asked for it and when.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from automl.fitting import Floats
from automl.hashing import digest
from automl.policy import Policy
from automl.types import Kept


class Training(Protocol):
    """Trains networks in place; ``automl.training.short_term.ShortTerm``."""

    @property
    def fingerprint(self) -> str:
        """Identifies data and settings; part of the journal's key."""

    def __call__(self, network: nn.Module) -> None:
        """Trains ``network``."""


class NetworkMaker(Protocol):
    """What makes networks; ``automl.pruning.pruner.Pruner``."""

    @property
    def fingerprint(self) -> str:
        """Identifies its settings."""

    @property
    def model_hash(self) -> str:
        """``weights_hash`` of the dense network."""

    def unit_scores(self, criterion: str | None = None, **settings: Any) -> list[Floats]:
        """Importance of every unit."""

    def prepare(self) -> None:
        """Computes all that no policy changes."""

    def policy(self, kept: Kept) -> Policy:
        """Chooses which units to keep."""

    def prune(self, policy: Policy) -> nn.Module:
        """The slim, repaired network."""


@dataclass(frozen=True)
class TrainedPruner:
    """Another pruner's networks, trained.

    Attributes:
        pruner: Prunes and repairs.
        training: Trains what it returns; a network of which nothing was pruned is left alone.
    """

    pruner: NetworkMaker
    training: Training

    @property
    def model_hash(self) -> str:
        """``weights_hash`` of the dense network."""
        return self.pruner.model_hash

    @property
    def fingerprint(self) -> str:
        """Identifies everything besides the policy that decides what ``prune`` returns."""
        return digest(self.pruner.fingerprint, self.training.fingerprint)

    def prepare(self) -> None:
        """Computes all that no policy changes; see ``Pruner.prepare``."""
        self.pruner.prepare()

    def unit_scores(self, criterion: str | None = None, **settings: Any) -> list[Floats]:
        """The pruner's."""
        return self.pruner.unit_scores(criterion, **settings)

    def policy(self, kept: Kept) -> Policy:
        """The pruner's policy."""
        return self.pruner.policy(kept)

    def prune(self, policy: Policy) -> nn.Module:
        """The pruner's network, trained, in eval mode."""
        network = self.pruner.prune(policy)
        if any(decision.kept < decision.units for decision in policy.decisions):
            self.training(network)
        return network.eval()
