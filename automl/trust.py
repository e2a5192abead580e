"""What a folder from outside may name: networks and classes that come with PrunePilot.

A run folder says in config.yaml and rebuild.json by which functions and classes it was made.
Whoever writes a folder could name any function of Python there, so that only names of a fixed
list are followed; everything else needs the word of the person at the keyboard.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from automl.conf_files import conf_files
from automl.types import InputError, one_or_more

#: Sources of networks beside dotted paths; their names lead to no file and no download.
_SOURCES = ("torchvision", "timm", "hf")
_NAME = re.compile(r"[A-Za-z0-9][\w.\-]*")
#: Names of torchvision's own weights, at addresses and with hashes that torchvision knows.
_WEIGHTS_NAME = re.compile(r"[A-Z0-9_]+")
#: Arguments of factories that make them read files, or fetch weights or code.
_READS = frozenset({
    "pretrained", "weights", "weights_backbone", "pretrained_backbone", "pretrained_cfg",
    "pretrained_cfg_overlay", "pretrained_strict", "checkpoint", "checkpoint_path", "state_dict",
    "cache_dir", "pretrained_model_name_or_path", "trust_remote_code", "auto_map", "code_revision",
    "attn_implementation", "experts_implementation", "use_kernels", "kernel_config",
    "quantization_config", "backbone", "backbone_config", "use_pretrained_backbone",
    "use_timm_backbone", "config", "adapter_kwargs", "model_fn", "url",
})  # fmt: skip
#: Classes of conf/ that connect or write elsewhere: argument, and its values that do not.
_REACHING: Mapping[str, tuple[str, tuple[Any, ...]]] = {
    "automl.engines.ray.Ray": ("address", (None, "auto", "local")),
    "automl.loggers.MLflow": ("uri", (None,)),
    "automl.loggers.TensorBoard": ("folder", (None,)),
    "automl.loggers.WandB": ("mode", (None, "offline")),
    "automl.strategies.amc.AMC": ("tensorboard", (None,)),
}
#: Types of transformers' networks that make networks of other sources, by names that may lead out.
_WRAPPERS = frozenset({"timm_wrapper", "timm_backbone"})
#: Calls another factory, and leaves out blocks.
SHORTER = "automl.models.shorter.shorter"


class UntrustedError(InputError):
    """A folder names what nobody vouched for.

    Attributes:
        name: What to trust.
    """

    name: str = ""


def check_factory(factory: Any, kwargs: Any, trust: Sequence[str], source: str) -> None:
    """Refuses a factory from a folder unless it is known or trusted.

    Args:
        factory: As in :func:`automl.models.load_model`.
        kwargs: Its arguments.
        trust: Names, and prefixes up to a dot or colon, that the caller trusts.
        source: The file it is from, for the message.

    Raises:
        InputError: It is neither, or its arguments make it read files.
    """
    if not isinstance(factory, str) or not isinstance(kwargs, Mapping):
        raise InputError(f"{source}: the factory is no name with arguments; make the run again")
    if is_trusted(factory, trust):
        return
    if factory == SHORTER:
        check_factory(kwargs.get("factory"), kwargs.get("kwargs"), trust, source)
        return
    kind, _, name = factory.partition(":")
    if factory not in _known_factories() and not _is_sourced(kind, name):
        package = factory.replace(":", ".").rpartition(".")[0] or factory
        text = f"{source} asks to call {factory[:80]!r}, which is no network of PrunePilot"
        raise _refusal(text, factory if kind in _SOURCES else package)
    for key, value in _pairs(kwargs):
        reads = (key in _READS or key.startswith("_")) and not _loads_nothing(kind, key, value)
        if reads or (kind in _SOURCES and isinstance(value, str) and re.search(r"[:/\\]", value)):
            raise _refusal(f"{source} asks {factory} to load {key}={str(value)[:80]!r}", factory)


def check_config(config: Mapping[str, Any], trust: Sequence[str], source: str) -> None:
    """Refuses settings from a folder that name anything but what conf/ names.

    Args:
        config: What a run folder's config.yaml holds.
        trust: As in :func:`check_factory`.
        source: The file it is from, for the message.

    Raises:
        InputError: A ``_target_`` that is in no file of conf/ and not trusted, an interpolation,
            or a factory as in :func:`check_factory`.
    """
    for node in _nodes(config):
        if isinstance(node, str) and "${" in node:
            raise InputError(f"{source} holds {node[:80]!r}; settings of runs are resolved")
        if isinstance(node, Mapping) and "_target_" in node:
            _check_target(node, trust, source)
    model = config.get("model")
    if isinstance(model, Mapping):
        check_factory(model.get("factory"), model.get("kwargs") or {}, trust, source)


def names_to_trust(config: Mapping[str, Any]) -> list[str]:
    """What somebody has to vouch for before a folder's settings can be used.

    Args:
        config: As in :func:`check_config`.
    """
    names: list[str] = []
    while True:
        try:
            check_config(config, names, "")
        except UntrustedError as error:
            if error.name in names:  # trusting it is not enough
                return names
            names.append(error.name)
        except InputError:
            return names
        else:
            return names


def check_typed(config: Mapping[str, Any], trust: Sequence[str]) -> None:
    """Refuses a ``_target_`` on a command line that conf/ does not name and nobody vouched for.

    A line that was copied from somewhere is no better than a file; who means it says so once more.

    Args:
        config: The composed settings.
        trust: As in :func:`check_factory`.

    Raises:
        InputError: A ``_target_`` is neither known nor trusted.
    """
    for node in _nodes(config):
        if not isinstance(node, Mapping) or "_target_" not in node:
            continue
        target = node["_target_"]
        if isinstance(target, str) and (target in _known_targets() or is_trusted(target, trust)):
            continue
        shown = str(target)[:80]
        raise InputError(
            f"_target_={shown} is no class of PrunePilot; if it is yours, add "
            f"trust=[{shown.rpartition('.')[0] or shown}]"
        )


def is_trusted(name: str, trust: str | Sequence[str]) -> bool:
    """Whether ``name`` is one of ``trust`` or below one of them."""
    return any(
        name == given
        or (name.startswith(given) and (given[-1] in ".:" or name[len(given)] in ".:"))
        for given in one_or_more(trust)
        if given
    )


def _check_target(node: Mapping[Any, Any], trust: Sequence[str], source: str) -> None:
    target = node["_target_"]
    if isinstance(target, str) and is_trusted(target, trust):
        return
    if not isinstance(target, str) or target not in _known_targets():
        shown = str(target)[:80]
        text = f"{source} asks to call {shown!r}, which conf/ does not know"
        raise _refusal(text, shown.rpartition(".")[0] or shown)
    key, harmless = _REACHING.get(target, ("", (None,)))
    if node.get(key) not in harmless:
        text = f"{source} asks to let {target} reach out by {key}={str(node[key])[:80]!r}"
        raise _refusal(text, target)


def _refusal(text: str, name: str) -> UntrustedError:
    how = f'--trust {name} (in Python trust=("{name}",))'
    error = UntrustedError(f"{text}; if you trust it, add {how}")
    error.name = name
    return error


def _is_sourced(kind: str, name: str) -> bool:
    if kind not in _SOURCES or not _NAME.fullmatch(name) or name in _WRAPPERS:
        return False
    if kind != "hf":
        return True
    try:  # only types of networks: other names are folders and repositories, whose files are read
        from transformers import CONFIG_MAPPING
    except ImportError:
        return True  # nothing is built either
    return name in CONFIG_MAPPING


def _loads_nothing(kind: str, key: str, value: Any) -> bool:
    if value is None or value is False:
        return True
    is_name = isinstance(value, str) and _WEIGHTS_NAME.fullmatch(value) is not None
    return kind == "torchvision" and key in ("weights", "weights_backbone") and is_name


def _pairs(node: Any) -> Iterator[tuple[str, Any]]:
    """Every value of a document with the key that it, or the list that holds it, stands behind."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            values = value if isinstance(value, list | tuple) else [value]
            yield str(key), value
            yield from ((str(key), one) for one in values)
            yield from _pairs(value)
    elif isinstance(node, list | tuple):
        for child in node:
            yield from _pairs(child)


def _nodes(node: Any) -> Iterator[Any]:
    """A document and everything in it."""
    yield node
    if isinstance(node, Mapping):
        for key, child in node.items():
            yield key
            yield from _nodes(child)
    elif isinstance(node, list | tuple):
        for child in node:
            yield from _nodes(child)


@cache
def _known_targets() -> frozenset[str]:
    nodes = _nodes(list(conf_files().values()))
    return frozenset(n["_target_"] for n in nodes if isinstance(n, Mapping) and "_target_" in n)


@cache
def _known_factories() -> frozenset[str]:
    found = [
        content["factory"] for name, content in conf_files().items() if name.startswith("model/")
    ]
    return frozenset(factory for factory in found if factory)
