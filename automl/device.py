"""Turns ``device=`` and ``dtype=`` as a person writes them into torch's, or into a clear error."""

from __future__ import annotations

import torch

from automl.types import InputError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The device to compute on.

    Args:
        device: ``auto`` (the current CUDA device where there is one, else the CPU), ``cpu``,
            ``cuda`` or ``cuda:INDEX``.

    Returns:
        The device; CUDA devices always carry an index, so that ``==`` compares as one expects.

    Raises:
        InputError: The name is none of these, or this machine has no such device.
    """
    name = str(device)
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if name == "auto":
        name = "cuda"
    kind, _, index = name.partition(":")
    if kind != "cuda" or (":" in name and not index.isdecimal()):
        raise InputError(f"device must be auto, cpu, cuda or cuda:INDEX, got {name!r}")
    return torch.device("cuda", _cuda_index(name, index))


def _cuda_index(name: str, index: str) -> int:
    if not torch.cuda.is_available():
        raise InputError(f"device={name}: torch finds no CUDA device here; use device=cpu")
    count = torch.cuda.device_count()
    chosen = int(index) if index else torch.cuda.current_device()
    if chosen >= count:
        raise InputError(f"device={name}: this machine has cuda:0 to cuda:{count - 1}")
    return chosen


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The floating-point type that networks compute in on ``device``.

    Args:
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        device: Where it is to be used.

    Raises:
        InputError: The name is none of these, or the device cannot compute in the type.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise InputError(f"dtype must be {', '.join(_DTYPES)}, got {name!r}")
    if name == "float16" and device.type != "cuda":
        raise InputError(f"dtype=float16 needs a CUDA device; on {device.type} use bfloat16")
    if name == "bfloat16" and device.type == "cuda" and not _computes_bfloat16(device):
        raise InputError(f"dtype=bfloat16: {device} cannot compute in it; use float16 or float32")
    return _DTYPES[name]


def _computes_bfloat16(device: torch.device) -> bool:
    # Older devices emulate it, correctly but slower than float32, which nobody asks for.
    with torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
