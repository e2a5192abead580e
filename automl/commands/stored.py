"""The settings of a run, read back from its folder: whole, and calling nothing foreign."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from automl.commands.shape import MISSING, misshapen, require_representable
from automl.runs import CONFIG, SEARCHER, RunFolder
from automl.trust import check_config
from automl.types import InputError


def stored_settings(folder: RunFolder, trust: Sequence[str]) -> dict[str, Any]:
    """The settings that a run was started with, fit to be used like composed ones.

    Args:
        folder: The run's.
        trust: Packages and functions that the folder may call beside PrunePilot's own.

    Raises:
        InputError: There is no run, its config.yaml is damaged or of another version, or it calls
            what nobody vouched for; or the run was begun in Python, by objects that no file holds.
    """
    config = folder.config()
    if config.get("started_by") == SEARCHER:
        raise InputError(
            f"{folder.path} was begun in Python: go on with the same "
            "automl.Searcher(...).search(), whose result has export()"
        )
    source = str(folder.file(CONFIG))
    check_config(config, trust, source)
    check_shape(config, source)
    return config


def check_shape(config: Mapping[str, Any], source: str) -> None:
    """Refuses settings that lack a section or key, or hold numbers that nothing can work with.

    Args:
        config: What a config.yaml holds.
        source: The file, for the message.

    Raises:
        InputError: Something is missing, is a value where a section should be, or too large.
    """
    require_representable(config)
    fault = misshapen(config)
    if fault is None:
        return
    path, value = fault
    if value is MISSING:
        raise InputError(
            f"{source} has no {path}: it is damaged, or of another version of PrunePilot; start "
            "the run anew"
        )
    raise InputError(f"{source}: {path} must be a section of settings, got {value!r:.80}")
