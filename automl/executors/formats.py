"""The formats that layers can be packed into, by name.

The registry is conf/executor: one YAML per format with its class as ``_target_``.
"""

from __future__ import annotations

from typing import Any

from automl import registry
from automl.executors.packed import Format


def names() -> list[str]:
    """The formats that conf/executor knows, in alphabetical order."""
    return registry.names("executor")


def load(name: str, **settings: Any) -> Format:
    """The format that conf/executor calls ``name``.

    Args:
        name: Name of the YAML file.
        settings: Replace those in the file.

    Raises:
        InputError: There is no such format, or it does not take these settings.
    """
    form: Format = registry.load("executor", name, settings)
    return form
