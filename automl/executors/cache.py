"""How much the processor caches, and how to put weights out of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch


@cache
def last_level_cache() -> int:
    """Bytes of the last-level cache; 32 MiB where the system does not tell."""
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text()
        return int(text.strip().removesuffix("K")) * 1024
    except (OSError, ValueError):
        return 32 * 2**20


def evictor() -> Callable[[], None]:
    """A function that fills the cache with something else."""
    buffer = torch.ones(last_level_cache() // 2)  # Twice as many bytes.

    def evict() -> None:
        buffer.sum()

    return evict
