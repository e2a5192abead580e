"""From overrides to one resolved, plain configuration; the only place that knows Hydra."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import lru_cache
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from automl.commands.options import ROOT, default_choices, groups
from automl.commands.shape import MISSING, misshapen, require_representable
from automl.conf_files import conf_files
from automl.hints import did_you_mean, nearest
from automl.paths import conf_dir
from automl.trust import check_typed
from automl.types import InputError

#: What a person names in place of ``model=OPTION``: torchvision:NAME, timm:NAME, my.pkg.factory.
_CUSTOM = "custom"
#: What stands for granularity=[channel,nm:4] and granularity=block:4x4.
_SEVERAL = "mixed"
_GRAINS = "granularity"
_CHANNEL = "channel"


def compose(overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration of a run.

    Args:
        overrides: ``key=value`` in Hydra's syntax. ``model=torchvision:NAME``,
            ``model=timm:NAME`` and ``model=my.pkg.factory`` are accepted beside the options of
            conf/model, ``granularity=[channel,nm:4]`` beside those of conf/granularity, and new
            keys below any ``kwargs`` need no ``+``.

    Returns:
        Nested dicts, lists and scalars, all interpolations resolved.

    Raises:
        InputError: An override cannot be read, names a group, option or key that is not
            there (with the nearest one that is), or a ``_target_`` that is neither PrunePilot's
            nor of a package in ``trust``.
    """
    texts = [rewritten for text in overrides for rewritten in _rewrite(text)]
    parsed = [_parse(text) for text in texts]
    choices = [text for text, override in zip(texts, parsed, strict=True) if _is_choice(override)]
    for override in parsed:
        _check_option(override)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        known = _known(str(conf_dir()), tuple(choices))
        if known.granularity.name == _CHANNEL and any(map(_is_layers, parsed)):
            # Channels first, then the grains of the layers; the file of channels alone has none.
            texts = [t for t, o in zip(texts, parsed, strict=True) if o.key_or_group != _GRAINS]
            texts += [f"{_GRAINS}={_SEVERAL}", f"{_GRAINS}.grains=[{_CHANNEL}]"]
            parsed = [_parse(text) for text in texts]
            choices = [t for t, o in zip(texts, parsed, strict=True) if _is_choice(o)]
            known = _known(str(conf_dir()), tuple(choices))
        for override in parsed:
            _check_key(override, known)
        data = _data_of_model(choices, known)
        config = _plain(_composed([*choices, *data], [o for o in parsed if not _is_choice(o)]))
        _check_shape(config)
        check_typed(config, _trusted(config.pop("trust")))
        made = {"choices": _choices([*parsed, *map(_parse, data)]), "overrides": list(overrides)}
        return {**config, **made}


def _trusted(names: Any) -> list[str]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"trust must be a list of packages, as trust=[my.package], got {names}")
    return names


def _check_shape(config: Mapping[str, Any]) -> None:
    require_representable(config)
    fault = misshapen(config)
    if fault is None:
        return
    key, value = fault
    if value is MISSING:
        raise InputError(f"{key} cannot be left out: drop ~{key}, and set another value if need be")
    raise InputError(f"{key} is a section: set its keys, as {key}.KEY=VALUE, not {key}={value}")


def expand(overrides: Sequence[str]) -> list[list[str]]:
    """All combinations of a sweep's values, each as overrides with one value.

    Args:
        overrides: As for :func:`compose`; values may be lists without brackets (``seed=0,1,2``),
            ``range(3)`` and the other sweeps of Hydra's syntax.

    Raises:
        InputError: An override cannot be read.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    parsed = [_parse(_quoted(text)) for text in overrides]
    (combinations,) = BasicSweeper.split_arguments(parsed, None)
    return [list(texts) for texts in combinations]


def _choices(parsed: Sequence[Override]) -> dict[str, str]:
    """Group -> option: what a run is called by."""
    chosen = default_choices()
    chosen |= {
        o.key_or_group: str(o.value()) for o in parsed if _is_choice(o) and not o.is_delete()
    }
    return chosen


def _rewrite(text: str) -> list[str]:
    key, equals, value = text.partition("=")
    if not equals and not key.startswith("~"):
        raise InputError(f"cannot read {text!r}: settings are KEY=VALUE, as budget.macs=0.5")
    if key == "model" and value not in groups()["model"] and any(mark in value for mark in ".:"):
        return [f"model={_CUSTOM}", f"model.factory='{value}'"]
    if key == _GRAINS and value not in groups()[_GRAINS]:
        grains = value if value.startswith("[") else f"[{value}]"
        if value.startswith("[") or ":" in value:
            return [f"{key}={_SEVERAL}", f"{key}.grains={grains}"]
    if key == f"{_GRAINS}.layers":
        return [f"++{text}"]
    if ".kwargs." in key and not key.startswith(("+", "~")):
        return [f"++{text}"]
    return [_quoted(text)]


def _quoted(text: str) -> str:
    """A value that only Hydra's syntax stands in the way of, a path for instance, in quotes."""
    key, equals, value = text.partition("=")
    if not equals or key.startswith("~") or key in groups() or value.startswith(tuple("[{\"'")):
        return text
    if _is_read(text):
        return text
    given = [f"{key}={mark}{value}{mark}" for mark in "\"'" if mark not in value]
    return next((one for one in given if _is_read(one)), text)


def quoted(text: str) -> str:
    """Any text as a value in Hydra's syntax."""
    return QuotedString(text, Quote.single).with_quotes()


def unquoted(value: str) -> str:
    """The text that a value in Hydra's quotes stands for; of others, the value itself.

    Raises:
        InputError: The quotes are not closed.
    """
    found = _parse(f"text={value}").value() if value.startswith(("'", '"')) else value
    return found if isinstance(found, str) else value


def _is_read(text: str) -> bool:
    try:
        OverridesParser.create().parse_override(text)
    except HydraException:
        return False
    return True


def _data_of_model(choices: list[str], known: DictConfig) -> list[str]:
    """The data set that the model goes with, unless one was chosen."""
    chosen = any(choice.startswith("data=") for choice in choices)
    data = known.model.get("data") if "model" in known else None
    return [] if chosen or data is None else [f"data={data}"]


def _parse(text: str) -> Override:
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        raise InputError(f"cannot read {text!r}: {_first_line(error)}") from error


def _is_choice(override: Override) -> bool:
    return override.key_or_group in groups()


def _is_layers(override: Override) -> bool:
    return override.key_or_group == f"{_GRAINS}.layers" and not override.is_delete()


def _check_option(override: Override) -> None:
    if override.is_sweep_override():
        raise InputError(
            f"{override.input_line!r} is a sweep; add -m to run all values, or quote the comma"
        )
    if not _is_choice(override) or override.is_delete():
        return
    group, option = override.key_or_group, override.value()
    options = list(groups()[group])
    if not isinstance(option, str) or option not in options:
        hint = f"; {did_you_mean(str(option), options)}"
        raise InputError(f"no {group} named {str(option)!r}{hint}")


def _check_key(override: Override, known: DictConfig) -> None:
    if re.match(r"hydra\b", override.key_or_group):
        raise InputError(f"{override.input_line!r}: what Hydra itself does cannot be set")
    if _is_choice(override) or override.is_add() or override.is_force_add():
        return
    key = override.key_or_group
    keys = list(_keys(OmegaConf.to_container(known)))
    if key in keys:
        return
    group, _, name = key.partition(".")
    others = [one for one in groups().get(group, ()) if _has(f"{group}/{one}", name)]
    if others:
        owners = f"{group}={' and '.join(others)}"
        raise InputError(f"{key} is a setting of {owners}; add {group}={others[0]} to set it")
    near = nearest(key, keys)
    hint = f"did you mean {near!r}?" if near is not None else _beside(key, keys)
    raise InputError(f"no setting named {key!r}; {hint}")


def _beside(key: str, keys: Sequence[str]) -> str:
    """The settings of a key's section; all sections where that is none."""
    section = key.rpartition(".")[0]
    start = f"{section}." if section in keys else ""
    there = [one for one in keys if one.startswith(start) and "." not in one[len(start) :]]
    names = [one for one in there if not one.endswith("_target_")]
    return f"there are {', '.join(names)} (see --help)"


def _has(file: str, key: str) -> bool:
    """Whether a file of conf/ has a key, with dots where it is in sections."""
    content = conf_files()[file]
    return isinstance(content, Mapping) and key in _keys(content)


def refuse(overrides: Sequence[str], sections: Sequence[str], why: str) -> None:
    """Refuses settings that a verb would not look at.

    Args:
        overrides: As they were given.
        sections: Settings, or groups of them.
        why: Ends the sentence that begins with the setting.

    Raises:
        InputError: One of the settings is given.
    """
    for text in overrides:
        key = text.partition("=")[0].lstrip("+~")
        if key.partition(".")[0] in sections:
            raise InputError(f"{key} {why}")


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    if not isinstance(node, Mapping):
        return
    for name, child in node.items():
        yield f"{prefix}{name}"
        yield from _keys(child, f"{prefix}{name}.")


def _composed(choices: Sequence[str], settings: Sequence[Override]) -> DictConfig:
    """What Hydra makes of these overrides, without composing choices again that are known.

    Hydra, too, sets single values in what the files of the choices have given.
    """
    config = deepcopy(_known(str(conf_dir()), tuple(choices)))
    with _told():
        ConfigLoaderImpl._apply_overrides_to_config(list(settings), config)
    return config


@lru_cache(maxsize=16)
def _known(folder: str, choices: tuple[str, ...]) -> DictConfig:
    """All keys that these choices have; cells of a sweep mostly share them. Not to be changed."""
    with _told():
        return hydra_compose(ROOT, list(choices))


@contextmanager
def _told() -> Iterator[None]:
    """What Hydra finds wrong, as one line."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(_first_line(error)) from error


def _plain(config: DictConfig) -> dict[str, Any]:
    try:
        container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise InputError(_first_line(error)) from error
    return {str(key): value for key, value in dict(container).items()}  # type: ignore[arg-type]


def _first_line(error: BaseException) -> str:
    """Its first line, and that of its cause, which is where Hydra says why."""
    errors = [error] if error.__cause__ is None else [error, error.__cause__]
    return ": ".join(str(one).strip().split("\n", 1)[0].rstrip(".") for one in errors)
