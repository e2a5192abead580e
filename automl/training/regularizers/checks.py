"""Checks that regularisers share."""

from __future__ import annotations

import math
from typing import Any


def require_strength(owner: Any, field: str = "strength") -> None:
    """Raises ValueError unless a field is a finite number above 0."""
    value = getattr(owner, field)
    fine = isinstance(value, int | float) and not isinstance(value, bool)
    if not (fine and math.isfinite(value) and value > 0):
        raise ValueError(
            f"{type(owner).__name__}.{field} must be a finite number > 0, got {value!r}"
        )
