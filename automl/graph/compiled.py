"""Networks that ``torch.compile`` has wrapped."""

from __future__ import annotations

from torch import nn


def uncompiled(model: nn.Module) -> nn.Module:
    """What ``torch.compile(model)`` was given; any other network as it is."""
    inside = getattr(model, "_orig_mod", None)
    return inside if is_compiled(model) and isinstance(inside, nn.Module) else model


def is_compiled(module: nn.Module) -> bool:
    """Whether calling it runs compiled code."""
    wrapped = type(module).__name__ == "OptimizedModule"
    return wrapped or getattr(module, "_compiled_call_impl", None) is not None
