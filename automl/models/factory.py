"""From a name to a network: dotted paths, torchvision, timm and Hugging Face."""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from automl.engines.errors import one_line, place_of
from automl.signals import behind
from automl.types import InputError


@dataclass(frozen=True, slots=True)
class Built:
    """A network from a factory, and what the factory knows of its input.

    Attributes:
        model: The network.
        name: Short name, for tables and folders.
        input_shape: (channels, height, width), or None where the factory does not say.
        mean: Per channel mean its weights expect of images in [0, 1], or None.
        std: Per channel standard deviation likewise, or None.
        vocab_size: Ids that its input may hold, from 0 on, where that is token ids and not
            numbers; else None.
    """

    model: nn.Module
    name: str
    input_shape: tuple[int, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    vocab_size: int | None = None


def build(factory: str, kwargs: Mapping[str, Any]) -> Built:
    """Builds the network that ``factory`` names.

    A network that reads token ids says so by an attribute ``vocab_size``: ids are below
    it.

    Args:
        factory: ``torchvision:NAME``, ``timm:NAME``, ``hf:NAME`` (see
            :mod:`automl.models.huggingface`) or a dotted path (``pkg.mod.func`` or
            ``pkg.mod:func``; modules in the current folder are found too).
        kwargs: Passed to the factory.

    Raises:
        InputError: Unknown name (with the nearest), unimportable module, refused arguments, or a
            factory that does not return a module.
    """
    source, _, name = factory.partition(":")
    if source == "torchvision":
        return _from_torchvision(name, kwargs)
    if source == "timm":
        return _from_timm(name, kwargs)
    if source == "hf":
        return _from_huggingface(name, kwargs)
    function = _import_dotted(factory)
    if not callable(function):
        raise InputError(f"model.factory {factory} must be callable, got {type(function).__name__}")
    if isinstance(function, nn.Module):
        raise InputError(f"model.factory {factory} is a network: name a function that returns one")
    model = _call(factory, function, kwargs)
    size = getattr(model, "vocab_size", None)
    known = size if isinstance(size, int) else None
    return Built(model, _short_name(factory), vocab_size=known)


def _from_torchvision(name: str, kwargs: Mapping[str, Any]) -> Built:
    models = _import_vision("torchvision").models
    known = models.list_models(module=models)
    if name not in known:
        raise _unknown("torchvision", name, known)
    kwargs = dict(kwargs)
    if name in ("googlenet", "inception_v3") and kwargs.get("weights") is None:
        # Left unset it warns of a default that will change; said, it stays as it is.
        kwargs.setdefault("init_weights", True)
    model = _call(f"torchvision:{name}", models.get_model_builder(name), kwargs)
    side = 299 if name == "inception_v3" else 224
    return Built(model, name, (3, side, side))


def _from_timm(name: str, kwargs: Mapping[str, Any]) -> Built:
    timm = _import_vision("timm")
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        raise _unknown("timm", name, timm.list_models())

    def create(**arguments: Any) -> Any:
        try:
            return timm.create_model(name, **arguments)
        except RuntimeError as error:  # how timm refuses the tag behind a name's dot
            raise ValueError(str(error)) from error

    model = _call(f"timm:{name}", create, kwargs)
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    shape, mean, std = (config.get(key) for key in ("input_size", "mean", "std"))
    return Built(
        model,
        architecture,
        tuple(shape) if shape else None,
        tuple(mean) if mean else None,
        tuple(std) if std else None,
    )


def _from_huggingface(name: str, kwargs: Mapping[str, Any]) -> Built:
    from automl.models.huggingface import create

    model = create(name, kwargs)
    short = name.rstrip("/").rpartition("/")[2]
    return Built(model, short, model.input_shape, vocab_size=model.vocab_size)


def _import_vision(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] in (package, "torchvision"):
            raise InputError(
                f"model.factory={package}:NAME needs {error.name}: pip install {error.name}"
            ) from error
        raise
    except RuntimeError as error:
        # A torchvision built for another torch cannot register its operators.
        if "torchvision::" not in str(error):
            raise
        raise InputError(
            f"{package} does not load because torchvision and torch do not match "
            f"({str(error).splitlines()[0]}): install a matching pair from one index, "
            "pip install --force-reinstall torch torchvision"
        ) from error


def _import_dotted(factory: str) -> Any:
    module_path, _, attribute = (
        factory.partition(":") if ":" in factory else factory.rpartition(".")
    )
    if factory.partition(":")[0].endswith(".py"):
        raise InputError(_of_a_file(factory))
    if not module_path or not attribute:
        raise InputError(
            "model.factory must be torchvision:NAME, timm:NAME or a dotted path such as "
            f"package.module.function, got '{factory}'"
        )
    module = _import_module(module_path, factory)
    try:
        return getattr(module, attribute)
    except AttributeError:
        near = _nearest(attribute, [name for name in vars(module) if not name.startswith("_")])
        raise InputError(f"model.factory: {module_path} has no '{attribute}'{near}") from None


def _of_a_file(factory: str) -> str:
    """How to name the function of a file, such as ``./nets.py:make``."""
    path, _, function = factory.partition(":")
    file = Path(path).with_suffix("")
    is_below = not file.is_absolute() and ".." not in file.parts
    name = ".".join([*(file.parts if is_below else [file.name]), function or "make"])
    where = "" if is_below else f", in the folder {file.parent}"
    return f"model={factory} is a file: name a function in it, as model={name}{where}"


def _import_module(module_path: str, factory: str) -> ModuleType:
    # Console scripts, unlike `python -m`, do not look in the current folder.
    top = module_path.partition(".")[0]
    here = Path.cwd()
    if str(here) not in sys.path and ((here / top).is_dir() or (here / f"{top}.py").is_file()):
        sys.path.append(str(here))
        importlib.invalidate_caches()
    try:
        return importlib.import_module(module_path)
    except ModuleNotFoundError as error:
        missing = error.name or module_path
        if not f"{module_path}.".startswith(f"{missing}."):
            hint = f"{module_path} needs {missing}, which is not installed"
        else:
            hint = f"there is no module {missing}; check the spelling or install its package"
        raise InputError(f"model.factory {factory} cannot be imported: {hint}") from error
    except SyntaxError as error:
        hint = f"{error.filename}, line {error.lineno}: {error.msg}"
        raise InputError(f"model.factory {factory} cannot be imported: {hint}") from error
    except SystemExit as error:
        hint = f"{module_path} ends the program (exit code {error.code}) when it is imported"
        raise InputError(f"model.factory {factory} cannot be imported: {hint}") from error
    except Exception as error:  # names such as "..x" are complained about here, too
        if behind(error) is not None:  # Ctrl-C, which somebody's code made an error of
            raise
        raise InputError(
            f"model.factory {factory} cannot be imported: {one_line(error)}{place_of(error)}"
        ) from error


def _call(factory: str, function: Any, kwargs: Mapping[str, Any]) -> nn.Module:
    refusals: tuple[type[Exception], ...]
    refusals = (TypeError, ValueError, KeyError, *_of_libraries(factory))
    called = False
    try:
        inspect.signature(function).bind(**kwargs)
        called = True
        model = function(**kwargs)
    except (Exception, SystemExit) as error:
        if behind(error) is not None:  # likewise
            raise
        if not called or (isinstance(error, refusals) and kwargs and not place_of(error)):
            first = (str(error) or type(error).__name__).splitlines()[0]
            text = f"does not take model.kwargs {dict(kwargs)}: {first}"
        else:
            given = f", given model.kwargs {dict(kwargs)}" if kwargs else ""
            text = f"raised {one_line(error)}{place_of(error)}{given}"
        raise InputError(f"model.factory {factory} {text}") from error
    if not isinstance(model, nn.Module):
        raise InputError(
            f"model.factory {factory} must return a torch.nn.Module, got {type(model).__name__}"
        )
    return model


def _of_libraries(factory: str) -> tuple[type[Exception], ...]:
    """What libraries raise at arguments that make no network; of other factories, it is a bug."""
    is_theirs = factory.partition(":")[0] in ("torchvision", "timm")
    return (RuntimeError, AssertionError, ZeroDivisionError) if is_theirs else ()


def _short_name(factory: str) -> str:
    return factory.replace(":", ".").rpartition(".")[2]


def _unknown(source: str, name: str, known: Iterable[str]) -> InputError:
    return InputError(f"{source} has no model '{name}'{_nearest(name, known)}")


def _nearest(name: str, known: Iterable[str]) -> str:
    def likeness(other: str) -> tuple[float, int]:
        # Of equally like names (resnet21: resnet20, resnet32) the one that begins the same way.
        ratio = difflib.SequenceMatcher(None, name, other).ratio()
        same = takewhile(lambda pair: pair[0] == pair[1], zip(name, other, strict=False))
        return ratio, len(list(same))

    near = max(known, key=likeness, default=None)
    return f"; the nearest is '{near}'" if near else ""
