"""Settings that several criteria share, and their checks."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from automl.pruning.criteria.context import Need

#: Whose labels gradients are of: the data's, or drawn from what the network itself predicts.
Labels = Literal["data", "model"]


@dataclass(frozen=True)
class OnInputs:
    """A criterion that needs inputs, no labels.

    Attributes:
        images: Calibration inputs used.

    Raises:
        ValueError: ``images`` is below 1.
    """

    title: ClassVar[str]

    images: int = 256

    def __post_init__(self) -> None:
        """Checks the count."""
        require_counts(self, "images")

    @property
    def name(self) -> str:
        """Its title and settings."""
        return named(self)

    @property
    def needs(self) -> frozenset[Need]:
        """Inputs."""
        return frozenset({"data"})


@dataclass(frozen=True)
class OnGradients:
    """A criterion that needs inputs, labels and a loss.

    Attributes:
        images: Calibration inputs used.
        batch_size: Inputs per gradient.
        labels: ``data``, or ``model`` to draw labels from the network's own predictions, which
            needs neither labels nor a loss.

    Raises:
        ValueError: A field breaks its rule.
    """

    title: ClassVar[str]

    images: int = 512
    batch_size: int = 32
    labels: Labels = "data"

    def __post_init__(self) -> None:
        """Checks the fields."""
        require_counts(self, "images", "batch_size")
        require_choice(self, "labels", "data", "model")

    @property
    def name(self) -> str:
        """Its title and settings."""
        return named(self)

    @property
    def needs(self) -> frozenset[Need]:
        """Inputs, and labels with a loss unless they are drawn."""
        if self.labels == "data":
            return frozenset({"data", "labels", "loss"})
        return frozenset({"data", "seed"})


def named(criterion: Any) -> str:
    """The title and the values of all fields, ``taylor(512, 32, data)``."""
    values = ", ".join(f"{getattr(criterion, field.name)}" for field in fields(criterion))
    return f"{criterion.title}({values})"


def require_counts(owner: Any, *names: str) -> None:
    """Raises ValueError unless these fields are whole numbers >= 1."""
    for name in names:
        value = getattr(owner, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(_text(owner, name, "a whole number >= 1", value))


def require_positive(owner: Any, *names: str) -> None:
    """Raises ValueError unless these fields are finite numbers > 0."""
    for name in names:
        value = getattr(owner, name)
        fine = isinstance(value, int | float) and not isinstance(value, bool)
        if not (fine and math.isfinite(value) and value > 0):
            raise ValueError(_text(owner, name, "a finite number > 0", value))


def require_choice(owner: Any, name: str, *choices: str) -> None:
    """Raises ValueError unless a field is one of the choices."""
    value = getattr(owner, name)
    if value not in choices:
        raise ValueError(_text(owner, name, " or ".join(repr(one) for one in choices), value))


def _text(owner: Any, name: str, rule: str, value: object) -> str:
    return f"{type(owner).__name__}.{name} must be {rule}, got {value!r}"
