"""Strategies: searches for the policy that scores best, one per file.

The registry is conf/strategy: one YAML per strategy with its class as ``_target_``.
"""

from __future__ import annotations

from typing import Any

from automl import registry
from automl.types import Strategy


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
