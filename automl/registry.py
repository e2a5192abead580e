"""The registry: a folder of conf/ per kind of thing, one YAML each, the class as ``_target_``."""

from __future__ import annotations

import copy
from typing import Any

from automl.conf_files import conf_files
from automl.hints import did_you_mean
from automl.paths import conf_dir
from automl.types import InputError


def names(group: str) -> list[str]:
    """What conf/``group`` knows, in alphabetical order."""
    return sorted(file.stem for file in (conf_dir() / group).glob("*.yaml"))


def settings_of(group: str, name: str) -> dict[str, Any]:
    """What the file of ``name`` says, references to other settings as they are written.

    Raises:
        InputError: There is no such file.
    """
    if name not in names(group):
        raise InputError(f"no {group} is called {name!r}; {did_you_mean(name, names(group))}")
    return copy.deepcopy(conf_files()[f"{group}/{name}"])


def load(group: str, name: str, settings: dict[str, Any]) -> Any:
    """Makes what conf/``group`` calls ``name``.

    Args:
        group: A folder of conf/, such as ``criterion``.
        name: Name of the YAML file.
        settings: Replace those in the file.

    Raises:
        InputError: There is nothing of that name, or it does not take these settings.
    """
    config = settings_of(group, name)
    for setting in settings:
        if setting not in config or setting == "_target_":
            known = [key for key in config if key != "_target_"]
            hint = did_you_mean(setting, known) if known else "it has none"
            raise InputError(f"{group} {name!r} has no setting {setting!r}; {hint}")
    from hydra.utils import instantiate

    # Settings of the run (${seed}, ${threads}) are the command's; without one, defaults count.
    own = {key: value for key, value in config.items() if not _is_reference(value)}
    return instantiate(own, **settings)


def _is_reference(value: object) -> bool:
    return isinstance(value, str) and value.startswith("${")
