"""Reading trained weights: where a checkpoint lies, what is in it, whether it fits the model.

Files are never unpickled with code execution: ``torch.load`` runs with ``weights_only=True``, and
a file that needs more is refused with the one line that converts it.
"""

from __future__ import annotations

import os
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from automl.data.roots import candidate_roots
from automl.training.state import state_tensors
from automl.types import InputError

_TORCH_SUFFIXES = frozenset({".pt", ".pth", ".th", ".bin", ".ckpt", ".tar"})
_WRAPPERS = ("state_dict", "model_state_dict", "model")
#: Prefixes that DataParallel and torch.compile put before every name.
_PREFIXES = ("module.", "_orig_mod.")


def resolve_checkpoint(
    value: str | os.PathLike[str] | None, data_root: str | os.PathLike[str] | None = None
) -> Path | None:
    """Turns a model's ``checkpoint`` setting into a path.

    Args:
        value: ``package:PATH`` (weights shipped in this package), ``data:PATH`` (relative to the
            data root or its parent), any other path as it is, or None.
        data_root: The ``data.root`` setting; None looks where :func:`load_data` would.

    Returns:
        The path, or None for None. ``package:`` and ``data:`` paths exist.

    Raises:
        InputError: A ``package:`` or ``data:`` path that is not there.
    """
    if value is None:
        return None
    text = os.fspath(value)
    scheme, _, rest = text.partition(":")
    if scheme == "package":
        places = [Path(__file__).parent / rest]
    elif scheme == "data":
        places = [
            folder / rest for root in candidate_roots(data_root) for folder in (root, root.parent)
        ]
    else:
        return Path(text).expanduser()
    for place in places:
        if place.is_file():
            return place
    looked = ", ".join(str(place) for place in places) or "no folder (none is set)"
    raise InputError(
        f"checkpoint {text} is not there (looked for {looked}): set data.root or PRUNEPILOT_DATA "
        "to the folder that holds it, or model.checkpoint=FILE (null for untrained weights)"
    )


def load_checkpoint(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Loads weights into ``model`` in place; every name and shape must fit.

    Args:
        model: The network.
        path: ``.pt``, ``.pth``, ``.th`` (a state dict, bare or under ``state_dict`` or ``model``)
            or ``.safetensors``. ``module.`` before names is dropped.

    Raises:
        InputError: The file is missing, corrupt, needs code to load, or does not fit the model;
            names the first tensor that does not.
    """
    path = Path(path)
    state = read_state_dict(path)
    _check_fit(state_tensors(model), state, path)
    with torch.no_grad():
        model.load_state_dict(state, strict=False)


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Reads a checkpoint's tensors by name, on the CPU, wrappers and prefixes removed.

    Raises:
        InputError: The file is missing, corrupt, of an unknown kind, or needs code to load.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is not there"
        raise InputError(f"checkpoint {path} {what}: check model.checkpoint")
    if path.suffix == ".safetensors":
        return _without_prefixes(_read_safetensors(path))
    if path.suffix in _TORCH_SUFFIXES:
        return _without_prefixes(_unwrap(_read_torch(path), path))
    raise InputError(
        f"checkpoint {path} must end in .safetensors, .pt, .pth or .th, got '{path.suffix}'"
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise _corrupt(path, error) from error


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            # Remarks on pickle protocols and archives; what matters of them ends in an error.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _needs_code(path, str(error)) or _corrupt(
            path, "it is no torch checkpoint"
        ) from error
    except RuntimeError as error:
        raise _needs_code(path, str(error)) or _corrupt(path, error) from error
    except Exception as error:
        # What the unpickler raises on damaged bytes depends on where they are damaged.
        raise _corrupt(path, error) from error


def _needs_code(path: Path, message: str) -> InputError | None:
    """The refusal of a pickle that wants more than tensors, or None if that is not the trouble."""
    wanted = re.search(r"GLOBAL ([\w.]+)|(TorchScript) archive", message)
    if wanted is None:
        return None
    convert = (
        f"torch.save(torch.load('{path.name}', weights_only=False).state_dict(), 'weights.pt')"
    )
    return InputError(
        f"checkpoint {path} holds more than tensors ({wanted[1] or wanted[2]}) and loading it "
        f"would run code; if you trust it, convert it once: {convert}"
    )


def _corrupt(path: Path, reason: object) -> InputError:
    first = (str(reason).strip() or type(reason).__name__).splitlines()[0]
    if isinstance(reason, KeyError):  # of a byte that begins nothing
        first = "it is no file of PyTorch"
    return InputError(f"checkpoint {path} cannot be read ({first}): fetch or save it again")


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise InputError(
            f"checkpoint {path} must hold a state dict, got {type(content).__name__}: "
            "save model.state_dict()"
        )
    content = {key: value for key, value in content.items() if not _is_extra(key, value)}
    other = [key for key, value in content.items() if not isinstance(value, Tensor)]
    if other or not content:
        found = f"'{other[0]}' that is no tensor" if other else "nothing"
        raise InputError(
            f"checkpoint {path} must hold a state dict (bare or under 'state_dict' or 'model'), "
            f"got {found}: save model.state_dict()"
        )
    return {str(key): value for key, value in content.items()}


def _is_extra(key: Any, value: Any) -> bool:
    """Whether an entry is what a module keeps beside its tensors (``get_extra_state``)."""
    return str(key).rpartition(".")[2] == "_extra_state" and not isinstance(value, Tensor)


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    while found := [p for p in _PREFIXES if state and all(name.startswith(p) for name in state)]:
        state = {name.removeprefix(found[0]): value for name, value in state.items()}
    return state


def _check_fit(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path) -> None:
    # Safetensors files hold a tensor that has two names, as tied weights, under one of them.
    held = {tensor.data_ptr() for name, tensor in expected.items() if name in state}
    for name, tensor in expected.items():
        if name not in state:
            # Counts batches only; checkpoints older than PyTorch 0.4.1 do not have it.
            if name.endswith("num_batches_tracked") or tensor.data_ptr() in held - {0}:
                continue
            raise InputError(f"checkpoint {path} does not fit the model: it lacks '{name}'")
        if state[name].shape != tensor.shape:
            raise InputError(
                f"checkpoint {path} does not fit the model: '{name}' is "
                f"{list(state[name].shape)} in the file, {list(tensor.shape)} in the model"
            )
    for name in state:
        if name not in expected:
            raise InputError(f"checkpoint {path} does not fit the model: the model has no '{name}'")
