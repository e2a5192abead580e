"""Values read from the plain configuration, each refused in one line that names its key."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from automl.seeding import MOST_SEED
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


def seed_of(config: Config) -> int:
    """The seed of a run.

    Raises:
        InputError: It is no whole number, negative, or larger than all generators take.
    """
    seed = whole(config, "seed", 0)
    if seed > MOST_SEED:
        raise InputError(f"seed must be at most {MOST_SEED}, got {seed}")
    return seed


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


def path(section: Config, name: str) -> str | None:
    """A path from the configuration, or None; ``name`` is its full key.

    Raises:
        InputError: It is no text, or holds what no path may.
    """
    value = section[name.rpartition(".")[2]]
    if value is not None and (not isinstance(value, str) or "\0" in value):
        raise InputError(f"{name} must be a path (quote it: {name}='\"1\"'), got {value!r}")
    return value


def run_dir(config: Config) -> Path | None:
    """Where a run is to be written; None where that was not said.

    Raises:
        InputError: ``run_dir`` is no text, or no path.
    """
    value = path(config, "run_dir")
    return Path(value) if value else None


def instantiate(section: Config, name: str) -> Any:
    """Makes what a section's ``_target_`` names, with its other keys as arguments.

    Raises:
        InputError: An argument is refused; programmers' messages are passed on as one line.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate as hydra_instantiate
    from omegaconf.errors import OmegaConfBaseException

    if not isinstance(section.get("_target_"), str):  # Hydra would give the section back
        raise InputError(f"{name}._target_ must name a class, got {section.get('_target_')!r}")
    try:
        return hydra_instantiate(dict(section), _convert_="all")
    except OmegaConfBaseException as error:  # a key that is no text, say
        raise InputError(f"{name}: {str(error).strip().splitlines()[0]}") from error
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, InputError):
            raise cause from None
        if isinstance(cause, _REFUSALS) or cause is None:
            text = str(cause or error).strip().split("\n", 1)[0]
            of_a_type = isinstance(cause, TypeError) and _misfit(section, name)
            raise InputError(of_a_type or f"{name}: {text}") from error
        raise


#: What people call the types that settings have.
_WORDS: Mapping[Any, str] = {
    int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null",
}  # fmt: skip


def _misfit(section: Config, name: str) -> str | None:
    """In words, the first argument of another type than its parameter says; None without one."""
    from hydra.utils import get_object

    try:
        parameters = inspect.signature(get_object(section["_target_"]), eval_str=True).parameters
    except (NameError, TypeError, ValueError):  # types that are imported for type checkers alone
        return None
    for key, value in section.items():
        hint = parameters[key].annotation if key in parameters else None
        kinds = _kinds(hint)
        if all(kind in _WORDS for kind in kinds) and not _is_one_of(value, kinds):
            rule = " or ".join(_WORDS[kind] for kind in kinds)
            return f"{name}.{key} must be {rule}, got {value!r}"
    return None


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The types of a union; of a mapping or a list, not those of what it holds."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _is_one_of(value: Any, kinds: Sequence[Any]) -> bool:
    """As type checkers have it, but for yes and no, which are no numbers."""
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, (*kinds, int) if float in kinds else tuple(kinds))


def set_up_process(config: Config) -> None:
    """Limits torch to the CPU threads asked for, and lets it use freed memory again.

    Raises:
        InputError: ``threads`` is neither null nor a whole number from 1 to 1,024.
    """
    import torch

    from automl.allocator import keep_freed_memory

    keep_freed_memory()
    if config["threads"] is not None:
        threads = whole(config, "threads", 1)
        if threads > _MOST_THREADS:
            raise InputError(f"threads must be at most {_MOST_THREADS}, got {threads}")
        torch.set_num_threads(threads)
