"""Granularities: what is removed together inside a layer; one per file.

The registry is conf/granularity: one YAML per granularity with its class as ``_target_``. Whole
channels and heads are not here: they make networks smaller, which is the tracer's business; the
granularities of this package put exact zeros inside layers whose shape stays.

A granularity sees a weight as (out, into, *kernel), see :class:`Sizes`, and cuts it into units of
equal size. It is named with its parameters (``nm:4``, ``block:1x16``), and that name is what a
policy carries, so that a policy says by itself how it is to be applied.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Protocol

from torch import Tensor

from automl import registry
from automl.hints import did_you_mean
from automl.pruning.granularities.sizes import Ints, Sizes
from automl.types import InputError, Kept

__all__ = ["CHANNEL", "Granularity", "Ints", "Sizes", "load", "names"]

#: Whole channels, heads and hidden units, which the tracer finds.
CHANNEL = "channel"

_GROUP = "granularity"


class Granularity(Protocol):
    """Cuts weights into units, ranks them and counts what is left."""

    @property
    def name(self) -> str:
        """With parameters, such as ``block:1x16``; :func:`load` reads it back."""

    @property
    def acceleration(self) -> str:
        """What can run the zeros faster, one phrase."""

    def refusal(self, sizes: Sizes) -> str | None:
        """Why a weight of these sizes cannot be pruned so; None where it can."""

    def units(self, sizes: Sizes) -> Ints:
        """Units of a weight; batched."""

    def nonzeros(self, kept: Kept, sizes: Sizes) -> Ints:
        """Weights multiplied and stored where ``kept`` units stay; batched, dense at most."""

    def index_bits(self, kept: Kept, sizes: Sizes) -> Ints:
        """Bits that say where the stored weights belong; batched."""

    def unit_scores(self, saliency: Tensor) -> Tensor:
        """What removing each unit costs, highest for the last to go.

        Args:
            saliency: Of every weight, additive, shape (out, into, *kernel).

        Returns:
            Shape (units,), float64: the sum over the unit's weights.
        """

    def mask(self, saliency: Tensor, kept: int) -> Tensor:
        """Which weights stay if the ``kept`` highest units do; ties go to the first.

        Args:
            saliency: As for :meth:`unit_scores`.
            kept: Units that stay, in [1, units].

        Returns:
            Booleans of the shape of ``saliency``.
        """


def names() -> list[str]:
    """The granularities inside layers that conf/granularity knows, in alphabetical order."""
    return sorted(name for name, settings in _registry().items() if "_target_" in settings)


def load(name: str) -> Granularity:
    """The granularity of a name such as ``unstructured``, ``nm:4`` or ``block:1x16``.

    Raises:
        InputError: There is none of that name, or its parameters cannot be read.
    """
    kind, _, parameters = name.partition(":")
    if kind not in names():
        known = [CHANNEL, *names()]
        raise InputError(f"no granularity is called {kind!r}; {did_you_mean(kind, known)}")
    from hydra.utils import get_class

    target: Any = get_class(_registry()[kind]["_target_"])
    if parameters and not hasattr(target, "parse"):
        raise InputError(f"granularity {kind} takes no parameters, got {name!r}")
    made: Granularity = target.parse(parameters) if parameters else target()
    return made


@cache
def _registry() -> dict[str, dict[str, Any]]:
    return {name: registry.settings_of(_GROUP, name) for name in registry.names(_GROUP)}
