"""Values read from the plain configuration, each refused in one line that names its key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from automl.types import InputError

Config = Mapping[str, Any]

#: More threads than any machine has cores.
_MOST_THREADS = 1024

#: What classes raise on arguments that are no good, or of another type than they expect.
_REFUSALS = (
    ValueError, TypeError, ImportError, AttributeError, LookupError, ArithmeticError,
)  # fmt: skip


def whole(section: Config, name: str, least: int) -> int:
    """A whole number from the configuration; ``name`` is its full key.

    Raises:
        InputError: It is none, or below ``least``.
    """
    value = section[name.rpartition(".")[2]]
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{name} must be a whole number >= {least}, got {value!r}")
    return value


def number(section: Config, name: str, least: float) -> float:
    """A finite number from the configuration; ``name`` is its full key.

    Raises:
        InputError: It is none, or below ``least``.
    """
    value = section[name.rpartition(".")[2]]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not least <= value < math.inf:
        raise InputError(f"{name} must be a number >= {least:g}, got {value!r}")
    return float(value)


def flag(section: Config, name: str) -> bool:
    """A yes or no from the configuration; ``name`` is its full key.

    Raises:
        InputError: It is neither.
    """
    value = section[name.rpartition(".")[2]]
    if not isinstance(value, bool):
        raise InputError(f"{name} must be true or false, got {value!r}")
    return value


def run_dir(config: Config) -> Path | None:
    """Where a run is to be written; None where that was not said.

    Raises:
        InputError: ``run_dir`` is no text, or no path.
    """
    value = config["run_dir"]
    if not value:
        return None
    if not isinstance(value, str) or "\0" in value:
        raise InputError(f"run_dir must be a path (quote it: run_dir='\"1\"'), got {value!r}")
    return Path(value)


def instantiate(section: Config, name: str) -> Any:
    """Makes what a section's ``_target_`` names, with its other keys as arguments.

    Raises:
        InputError: An argument is refused; programmers' messages are passed on as one line.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate as hydra_instantiate

    try:
        return hydra_instantiate(dict(section), _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, InputError):
            raise cause from None
        if isinstance(cause, _REFUSALS) or cause is None:
            text = str(cause or error).strip().split("\n", 1)[0]
            raise InputError(f"{name}: {text}") from error
        raise


def set_threads(config: Config) -> None:
    """Limits torch to the CPU threads asked for.

    Raises:
        InputError: ``threads`` is neither null nor a whole number from 1 to 1,024.
    """
    import torch

    if config["threads"] is not None:
        threads = whole(config, "threads", 1)
        if threads > _MOST_THREADS:
            raise InputError(f"threads must be at most {_MOST_THREADS}, got {threads}")
        torch.set_num_threads(threads)
