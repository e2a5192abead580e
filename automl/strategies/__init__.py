"""Strategies: searches for the policy that scores best, one per file.

The registry is conf/strategy: one YAML per strategy with its class as ``_target_``.
"""

from __future__ import annotations

from typing import Any

from automl import registry
from automl.types import InputError, Strategy


def names() -> list[str]:
    """The strategies that conf/strategy knows, in alphabetical order."""
    return registry.names("strategy")


def defaults(name: str) -> dict[str, Any]:
    """The settings of a strategy as conf/strategy has them; none where it does not know it."""
    return registry.settings_of("strategy", name) if name in names() else {}


def load(name: str, **settings: Any) -> Strategy:
    """The strategy that conf/strategy calls ``name``.

    Args:
        name: Name of the YAML file.
        settings: Replace those in the file.

    Raises:
        InputError: There is no such strategy, or it does not take these settings.
    """
    strategy: Strategy = registry.load("strategy", name, settings)
    return strategy


def strategy_of(given: str | Strategy) -> Strategy:
    """The strategy of a name from conf/strategy, or the one that was given.

    Raises:
        InputError: There is none of that name, or it is no strategy.
    """
    if isinstance(given, str):
        return load(given)
    if isinstance(given, type):
        raise InputError(
            f"strategy must be an instance: write {given.__name__}(...), not {given.__name__}"
        )
    if not callable(getattr(given, "search", None)):
        raise InputError(
            "strategy must be a name from conf/strategy or have a method "
            f"search(problem, trials, seed), got {type(given).__name__}"
        )
    return given
