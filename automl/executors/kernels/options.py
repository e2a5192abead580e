"""How every kernel is compiled."""

from __future__ import annotations

from typing import Any

#: ``contract`` allows fused multiply-adds; nothing may assume that NaN or infinity is absent.
OPTIONS: dict[str, Any] = {
    "cache": True,
    "nogil": True,
    "boundscheck": False,
    "error_model": "numpy",
    "fastmath": {"contract"},
}
