"""How every kernel is compiled."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numba import njit
from numba.core.caching import FunctionCache, IndexDataCacheFile

#: ``contract`` allows fused multiply-adds; nothing may assume that NaN or infinity is absent.
OPTIONS: dict[str, Any] = {
    "cache": True,
    "nogil": True,
    "boundscheck": False,
    "error_model": "numpy",
    "fastmath": {"contract"},
}


def kernel(function: Callable[..., Any]) -> Any:
    """Compiles a function when it is first called, or loads what was compiled before."""
    return _stamped(njit(**OPTIONS)(function))


def inlined(function: Callable[..., Any]) -> Any:
    """The same for one that becomes part of those that call it."""
    return _stamped(njit(**OPTIONS, inline="always")(function))


@cache
def sources(folder: Path = Path(__file__).parent) -> str:
    """A digest of all kernels' sources."""
    content = hashlib.sha256()
    for file in sorted(folder.glob("*.py")):
        content.update(file.read_bytes())
    return content.hexdigest()


def _stamped(compiled: Any) -> Any:
    """Lets what was compiled be forgotten once any kernel has changed.

    Numba looks at the file of a function alone, whatever of other files has become part of it.
    """
    found = getattr(compiled, "_cache", None)
    if isinstance(found, FunctionCache):
        locator = found._impl.locator
        found._cache_file = IndexDataCacheFile(
            cache_path=found.cache_path,
            filename_base=found._impl.filename_base,
            source_stamp=(locator.get_source_stamp(), sources()),
        )
    return compiled
