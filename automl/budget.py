"""Budgets: how much a pruned network may cost, in one or several resources."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

from automl.hints import did_you_mean
from automl.types import RESOURCES, InputError, Resource


@dataclass(frozen=True, slots=True)
class Limit:
    """The most that one resource may cost.

    Attributes:
        resource: What is limited.
        value: A fraction of the dense network's cost in (0, 1], or a positive absolute value
            in the resource's unit.
        relative: Whether ``value`` is a fraction.
    """

    resource: Resource
    value: float
    relative: bool

    def __str__(self) -> str:
        """For example ``macs <= 50 % of dense``."""
        if self.relative:
            return f"{self.resource} <= {100 * self.value:g} % of dense"
        return f"{self.resource} <= {self.value:,.10g}"


@dataclass(frozen=True, slots=True)
class Budget:
    """One or several limits, at most one per resource.

    Attributes:
        limits: In the order of ``automl.types.RESOURCES``.
    """

    limits: tuple[Limit, ...]

    @classmethod
    def parse(cls, spec: Mapping[str, Any] | Budget) -> Budget:
        """Reads what a person wrote.

        A bare number in (0, 1] is a fraction of the dense network's cost, a larger one an
        absolute value; ``{"fraction": f}`` and ``{"absolute": a}`` say it outright (needed, for
        example, for less than one millisecond). Entries that are None are left out.

        Args:
            spec: Resource -> limit, such as ``{"macs": 0.5, "latency_ms": {"absolute": 0.8}}``.

        Raises:
            InputError: Unknown resource, no limit at all, both kinds at once, or no such number.
        """
        if isinstance(spec, Budget):
            return spec
        if not isinstance(spec, Mapping):
            raise InputError(
                f'budget must be given per resource, such as {{"macs": 0.5}}, got {spec!r}'
            )
        for name in spec:
            if name not in RESOURCES:
                hint = did_you_mean(str(name), RESOURCES)
                raise InputError(f"budget names an unknown resource {name!r}; {hint}")
        limits = (_limit(name, spec.get(name)) for name in RESOURCES)
        found = tuple(limit for limit in limits if limit is not None)
        if not found:
            raise InputError("budget is empty; give at least one limit, such as budget.macs=0.5")
        return cls(found)

    def resolve(self, dense: Mapping[str, float]) -> dict[Resource, float]:
        """The limits as absolute values.

        Args:
            dense: Resource -> cost of the dense network.

        Raises:
            InputError: No cost is known for a resource that the budget names.
        """
        absolute: dict[Resource, float] = {}
        for limit in self.limits:
            if limit.resource not in dense:
                raise InputError(
                    f"budget.{limit.resource} cannot be held: no cost model for it here, "
                    f"only for {', '.join(dense) or 'nothing'}"
                )
            base = dense[limit.resource] if limit.relative else 1.0
            absolute[limit.resource] = limit.value * base
        return absolute

    def to_dict(self) -> dict[str, dict[str, float]]:
        """The explicit form, which ``parse`` reads back to an equal budget."""
        kinds = {True: "fraction", False: "absolute"}
        return {limit.resource: {kinds[limit.relative]: limit.value} for limit in self.limits}

    def __str__(self) -> str:
        """All limits, comma-separated."""
        return ", ".join(map(str, self.limits))


def beside_limits(costs: Mapping[str, float], limits: Mapping[Resource, float]) -> str:
    """What is limited and what of it is spent, as ``macs 1,200 of 1,000``."""
    return ", ".join(f"{name} {costs[name]:,.6g} of {most:,.6g}" for name, most in limits.items())


def _limit(resource: Resource, value: Any) -> Limit | None:
    if isinstance(value, Mapping):
        return _explicit(resource, value)
    if value is None:
        return None
    number = _positive(f"budget.{resource}", value)
    return Limit(resource, number, relative=number <= 1)


def _explicit(resource: Resource, spec: Mapping[str, Any]) -> Limit | None:
    for name in spec:
        if name not in ("fraction", "absolute"):
            raise InputError(
                f"budget.{resource} knows 'fraction' and 'absolute', got {name!r}; "
                f"{did_you_mean(str(name), ('fraction', 'absolute'))}"
            )
    given = {name: value for name, value in spec.items() if value is not None}
    if len(given) == 2:
        raise InputError(f"budget.{resource} is both absolute and relative; give one of them")
    for name, value in given.items():
        number = _positive(f"budget.{resource}.{name}", value)
        if name == "fraction" and number > 1:
            raise InputError(f"budget.{resource}.fraction must be in (0, 1], got {value!r}")
        return Limit(resource, number, relative=name == "fraction")
    return None


def _positive(name: str, value: Any) -> float:
    # Real covers NumPy's scalars, but neither "0.5" nor (with the first test) True.
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InputError(f"{name} must be a number, got {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not (math.isfinite(number) and number > 0):
        raise InputError(f"{name} must be a positive, finite number, got {number:g}")
    return number
