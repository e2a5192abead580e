"""Schedules: when how much is pruned, and what is trained between; one per file.

The registry is conf/schedule: one YAML per schedule with its class as ``_target_``. A schedule
owns its loop and knows neither masks nor channels: it tells a :class:`Session` to prune to a
ratio, to train so many epochs, to rewind or to regrow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import nn

from automl import registry
from automl.types import InputError

__all__ = ["Schedule", "Session", "load", "names", "share_epochs"]


class Session(Protocol):
    """What a schedule works on; ``automl.pruning.schedules.session``."""

    def prune(self, ratio: Callable[[float], float]) -> None:
        """Prunes to a part of the final policy; what is pruned stays so.

        Args:
            ratio: The fraction to remove now, from the fraction that is removed in the end.
        """

    def blend(self, share: float) -> None:
        """Zeroes this share of the weights that the final policy removes, the least first.

        At 1, which is for the last stage, channels that go are cut off.
        """

    def train(
        self, epochs: int, *, last: bool = False, after_step: AfterStep | None = None
    ) -> None:
        """Trains the network as it is; ``last`` keeps the best epoch instead of the last."""

    def start_anew(self) -> None:
        """Replaces all weights by those of the untrained network, from which tickets are drawn."""

    def remember(self) -> None:
        """Marks the weights as they are now as the point to rewind to."""

    def rewind(self) -> None:
        """Gives what is left of the network the weights of that point."""

    def regrow(self, fraction: float, number: int) -> None:
        """Drops this fraction of every mask's weights and grows as many others by gradient.

        Args:
            fraction: Which part of the weights.
            number: Which regrowing it is, from 1: every one looks at another batch, and one
                that is resumed at the batch that it would have seen.
        """

    def finish(self) -> nn.Module:
        """The pruned network, in eval mode."""


#: Called after every step of an optimiser with the number of steps done.
AfterStep = Callable[[int], None]


class Schedule(Protocol):
    """Leads a network to its final policy."""

    @property
    def name(self) -> str:
        """The schedule as a person calls it."""

    def check(self, grains: Sequence[str], epochs: int) -> None:
        """Refuses what makes no sense, before anything is loaded.

        Args:
            grains: Names of the granularities, such as ``["channel", "nm:4"]``.
            epochs: Training epochs in all.

        Raises:
            InputError: The schedule cannot do that; says what to change.
        """

    def run(self, session: Session, epochs: int) -> nn.Module:
        """Prunes and trains, ``epochs`` epochs in all."""


def names() -> list[str]:
    """The schedules that conf/schedule knows, in alphabetical order."""
    return registry.names("schedule")


def load(name: str, **settings: Any) -> Schedule:
    """The schedule that conf/schedule calls ``name``.

    Args:
        name: Name of the YAML file.
        settings: Replace those in the file.

    Raises:
        InputError: There is no such schedule, or it does not take these settings.
    """
    schedule: Schedule = registry.load("schedule", name, settings)
    return schedule


def share_epochs(epochs: int, stages: int) -> list[int]:
    """Epochs of each stage: alike, and what is left over goes to the last."""
    each = epochs // stages
    return [each] * (stages - 1) + [epochs - each * (stages - 1)]


def require_epochs(name: str, stages: int, epochs: int) -> None:
    """Makes sure that there is training for every stage.

    Raises:
        InputError: There is not.
    """
    if epochs < stages:
        raise InputError(
            f"schedule {name} trains in {stages} stages, but finetune.epochs is {epochs}: set "
            f"finetune=short finetune.epochs={stages} or more, or fewer schedule.stages"
        )


def require_count(owner: str, value: object, least: int) -> None:
    """Checks a whole number of a schedule.

    Raises:
        InputError: It is none, or below ``least``.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{owner} must be a whole number >= {least}, got {value!r}")
