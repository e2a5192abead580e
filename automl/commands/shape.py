"""Which sections and keys the settings of every run have, read from conf/."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

from automl.commands.options import ROOT, groups
from automl.conf_files import conf_files
from automl.types import InputError

#: Settings that runs of earlier versions do not have.
_LATER = frozenset({"logger", "depth", "codebook", "repair.refine"})
#: Keys of config.yaml that are not settings of a run.
_NOT_STORED = frozenset({"defaults", "trust", "hydra"})
#: In place of the value of a key that is missing.
MISSING = object()


def misshapen(config: Mapping[str, Any]) -> tuple[str, Any] | None:
    """What every run's settings have and these do not.

    Args:
        config: Settings, composed or read from a folder.

    Returns:
        The full key of the first fault, and ``MISSING`` or the value that stands where a section
        should; None where all is well.
    """
    for name, default in _wanted().items():
        fault = _fault(config, name, default, name)
        if fault is not None:
            return fault
    return None


def _fault(
    section: Mapping[str, Any], name: str, default: Any, path: str
) -> tuple[str, Any] | None:
    """Of one key and, where the default is a section, of what that holds."""
    if name not in section:
        return None if path in _LATER else (path, MISSING)
    if not isinstance(default, Mapping):
        return None
    value = section[name]
    if not isinstance(value, Mapping):
        return path, value
    inner = (_fault(value, key, one, f"{path}.{key}") for key, one in default.items())
    return next((fault for fault in inner if fault is not None), None)


def require_representable(config: Any, path: str = "") -> None:
    """Refuses whole numbers that no float holds, on which any arithmetic would fail.

    Args:
        config: Settings, composed or read from a folder.
        path: The full key of what is looked at, empty for all.

    Raises:
        InputError: There is one.
    """
    if isinstance(config, Mapping):
        for key, value in config.items():
            require_representable(value, f"{path}.{key}" if path else str(key))
    elif isinstance(config, list):
        for index, value in enumerate(config):
            require_representable(value, f"{path}[{index}]")
    elif isinstance(config, int) and abs(config) > sys.float_info.max:
        raise InputError(f"{path} must be a number below 1e308")


@cache
def _wanted() -> Mapping[str, Any]:
    """Every key that composed settings have; a section where all options of it have one."""
    root = _read(ROOT)
    wanted = {name: default for name, default in root.items() if name not in _NOT_STORED}
    known = groups()
    for group in _chosen(root):
        options = [_read(f"{group}/{option}") for option in known[group]]
        wanted[group] = {
            key: {} if all(isinstance(option[key], Mapping) for option in options) else None
            for key in sorted(set.intersection(*(set(option) for option in options)))
        }
    return wanted


def _chosen(root: Mapping[str, Any]) -> list[str]:
    """Groups of which every run has one option."""
    names = [next(iter(entry)) for entry in root["defaults"] if isinstance(entry, Mapping)]
    return [name for name in names if name != "experiment"]


def _read(name: str) -> dict[str, Any]:
    return dict(conf_files()[name] or {})
