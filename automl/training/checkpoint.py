"""Saves a fine-tuning run after every epoch, whole or not at all, and finds it again.

A checkpoint carries the identity of its run (settings, network, starting weights, data, the stage
of a schedule), so that it is never continued by another one.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from automl.paths import atomic_write
from automl.types import InputError

_FORMAT = "prunepilot-finetune-1"

Identity = Mapping[str, str | int | float | bool | None]


def save_checkpoint(path: Path, identity: Identity, state: Mapping[str, Any]) -> None:
    """Writes ``state``; a crash or Ctrl-C leaves the file of the epoch before.

    Args:
        path: File to write; its directory must exist.
        identity: What the run is made of.
        state: Tensors and plain values, nested in dicts and lists.
    """
    buffer = io.BytesIO()
    torch.save({"format": _FORMAT, "identity": dict(identity), "state": dict(state)}, buffer)
    atomic_write(path, buffer.getvalue())


def load_checkpoint(path: Path, identity: Identity, device: torch.device) -> dict[str, Any]:
    """Reads what `save_checkpoint` wrote for a run of the same identity.

    Raises:
        InputError: The file is damaged or something else, or belongs to another run.
    """
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises nearly anything on a damaged file
        reason = str(error).strip().splitlines()[:1]
        raise InputError(
            f"{path} cannot be read ({type(error).__name__}{': ' if reason else ''}"
            f"{''.join(reason)}); delete it to start over"
        ) from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise InputError(f"{path} is no fine-tuning checkpoint ({_FORMAT}); name another file")
    saved, state = content.get("identity"), content.get("state")
    if not isinstance(saved, dict) or not isinstance(state, dict):
        raise InputError(f"{path} is damaged; delete it to start over")
    _check_identity(path, saved, identity)
    return state


def _check_identity(path: Path, saved: Identity, asked: Identity) -> None:
    for name in {**asked, **saved}:
        before, now = saved.get(name), asked.get(name)
        if before == now:
            continue
        both_opaque = _is_digest(before) and _is_digest(now)
        difference = (
            f"another {name}" if both_opaque else f"{name}={_told(before)}, not {_told(now)}"
        )
        raise InputError(
            f"{path} was made with {difference}; delete it to start over, or name another file"
        )


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64


def _told(value: object) -> str:
    return f"{str(value)[:8]}..." if _is_digest(value) else str(value)
