"""Which layers are pruned by what: whole channels, something finer inside layers, or both."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from automl.pruning.granularities import CHANNEL, Granularity, load
from automl.types import InputError


@dataclass(frozen=True)
class Grains:
    """Which grain each layer is pruned by.

    Attributes:
        channels: Whether whole channels, heads and hidden units are pruned, before anything else.
        inside: What layers are pruned by that no rule names; None leaves them as they are.
        rules: Shell patterns of layers and what they are pruned by, the first that fits counts.
    """

    channels: bool = False
    inside: Granularity | None = None
    rules: tuple[tuple[str, Granularity], ...] = ()

    @classmethod
    def parse(cls, grains: Sequence[str], layers: Mapping[str, str] | None = None) -> Grains:
        """Reads names of granularities.

        Args:
            grains: ``channel`` and at most one finer one, such as ``["channel", "nm:4"]``.
            layers: Pattern of layers -> another finer granularity.

        Raises:
            InputError: A name is unknown, there are two finer ones, or there is nothing.
        """
        rules = tuple((pattern, _inside(name)) for pattern, name in (layers or {}).items())
        finer = [name for name in grains if name != CHANNEL]
        if len(finer) > 1:
            raise InputError(
                f"granularity has two grains for the same layers, {finer[0]} and {finer[1]}; give "
                "one, and the other by layers, as granularity.layers={linear: nm:4}"
            )
        if not grains and not rules:
            raise InputError("granularity has no grain; give one, as granularity=[channel,nm:4]")
        return cls(CHANNEL in grains, load(finer[0]) if finer else None, rules)

    @property
    def names(self) -> list[str]:
        """All grains by name, channels first."""
        found = [CHANNEL] * self.channels
        found += [] if self.inside is None else [self.inside.name]
        return list(dict.fromkeys([*found, *(grain.name for _, grain in self.rules)]))

    def of(self, layer: str) -> tuple[Granularity | None, bool]:
        """The granularity inside a layer, and whether a rule names it."""
        for pattern, granularity in self.rules:
            if fnmatch.fnmatchcase(layer, pattern):
                return granularity, True
        return self.inside, False


def is_inside(granularity: str) -> bool:
    """Whether a decision's granularity is one inside layers, not whole channels or heads."""
    return granularity not in (CHANNEL, "head", "head_dim")


def matches(layer: str, patterns: Sequence[str]) -> bool:
    """Whether one of the shell patterns fits a layer's name."""
    return any(fnmatch.fnmatchcase(layer, pattern) for pattern in patterns)


def require_rules_match(grains: Grains, layers: list[str]) -> None:
    """Refuses rules that no layer's name fits.

    Raises:
        InputError: Names the first.
    """
    for pattern, _ in grains.rules:
        if not fnmatch.filter(layers, pattern):
            raise InputError(
                f"granularity.layers pattern {pattern!r} matches no layer; see `prunepilot trace`"
            )


def _inside(name: str) -> Granularity:
    if name == CHANNEL:
        raise InputError(
            "granularity.layers gives finer grains to layers; channels are pruned by "
            "granularity=[channel,...] and left alone by exclude="
        )
    return load(str(name))
