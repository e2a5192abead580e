"""Digests that name weights and settings, the same on every machine and in every process."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

#: A counter of training steps, not a weight: it changes no output in eval mode.
_NOT_WEIGHTS = "num_batches_tracked"


def digest(*parts: object) -> str:
    """SHA-256 (hexadecimal) over JSON values and tensors.

    Args:
        parts: Tensors count with type, shape and values, wherever they lie and however they are
            strided; everything else must be JSON-serialisable, with tuples counting as lists and
            the order of keys not counting.

    Raises:
        TypeError: A part is neither a tensor nor JSON-serialisable.
        ValueError: A part holds NaN or an infinity outside a tensor.
    """
    sha = hashlib.sha256()
    for part in parts:
        for chunk in _chunks(part):
            # The length goes first, so that no two lists of parts run together to equal bytes.
            sha.update(len(chunk).to_bytes(8, "little"))
            sha.update(chunk)
    return sha.hexdigest()


def weights_hash(model: nn.Module | Mapping[str, Any]) -> str:
    """SHA-256 (hexadecimal) over names, types, shapes and values of all weights and buffers.

    Neither the order of registration, the device nor the memory format matters;
    ``num_batches_tracked`` and entries that are not tensors (``_extra_state``) are left out.

    Args:
        model: A module or its ``state_dict()``.
    """
    from torch import Tensor

    state = model if isinstance(model, Mapping) else model.state_dict()
    names = sorted(
        name
        for name, value in state.items()
        if isinstance(value, Tensor) and name.rpartition(".")[2] != _NOT_WEIGHTS
    )
    return digest(*(part for name in names for part in (name, state[name])))


def _chunks(part: object) -> Iterator[bytes | memoryview]:
    # Whoever passes a tensor has imported torch; whoever has not need not wait for it here.
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(part, torch.Tensor):
        yield _json(part)
        return
    tensor: Tensor = part
    yield _json([str(tensor.dtype), list(tensor.shape)])
    # As bytes, because NumPy has no bfloat16; flat, because such views need a last dimension.
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    yield flat.view(torch.uint8).numpy().data


def _json(value: object) -> bytes:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")
