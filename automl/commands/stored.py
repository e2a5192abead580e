"""The settings of a run, read back from its folder: whole, and calling nothing foreign."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import yaml

from automl.commands.options import ROOT, groups
from automl.paths import conf_dir
from automl.runs import CONFIG, RunFolder
from automl.trust import check_config
from automl.types import InputError

#: Settings that runs of earlier versions do not have.
_LATER = frozenset({"logger", "depth", "codebook"})
#: Keys of config.yaml that are not settings of a run.
_NOT_STORED = frozenset({"defaults", "trust", "hydra"})


def stored_settings(folder: RunFolder, trust: Sequence[str]) -> dict[str, Any]:
    """The settings that a run was started with, fit to be used like composed ones.

    Args:
        folder: The run's.
        trust: Packages and functions that the folder may call beside PrunePilot's own.

    Raises:
        InputError: There is no run, its config.yaml is damaged or of another version, or it calls
            what nobody vouched for.
    """
    config = folder.config()
    source = str(folder.file(CONFIG))
    check_config(config, trust, source)
    check_shape(config, source)
    return config


def check_shape(config: Mapping[str, Any], source: str) -> None:
    """Refuses settings in which a section or key is missing that every composed one has.

    Args:
        config: What a config.yaml holds.
        source: The file, for the message.

    Raises:
        InputError: Something is missing, or is a value where a section should be.
    """
    for name, default in _wanted().items():
        _check(config, name, default, name, source)


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


def _check(section: Mapping[str, Any], name: str, default: Any, path: str, source: str) -> None:
    """One key and, where the default is a section, what that holds."""
    if name not in section:
        if path in _LATER:
            return
        raise InputError(
            f"{source} has no {path}: it is damaged, or of another version of PrunePilot; start "
            "the run anew"
        )
    if not isinstance(default, Mapping):
        return
    value = section[name]
    if not isinstance(value, Mapping):
        raise InputError(f"{source}: {path} must be a section of settings, got {value!r:.80}")
    for key, inner in default.items():
        _check(value, key, inner, f"{path}.{key}", source)


def _chosen(root: Mapping[str, Any]) -> list[str]:
    """Groups of which every run has one option."""
    names = [next(iter(entry)) for entry in root["defaults"] if isinstance(entry, Mapping)]
    return [name for name in names if name != "experiment"]


def _read(name: str) -> dict[str, Any]:
    text = (conf_dir() / f"{name}.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text) or {})
