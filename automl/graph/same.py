"""Whether two networks put out the same, but for rounding."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def close(expected: Tensor, found: Tensor) -> bool:
    """Whether shapes and dtypes are the same and all numbers nearly so, and finite."""
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return False
    if not expected.is_floating_point() or not expected.numel():
        return bool((expected == found).all())
    scale = float(expected.abs().max())
    tolerance = 1e-4 if torch.finfo(expected.dtype).bits > 16 else 3e-2
    return np.isfinite(scale) and float((expected - found).abs().max()) <= tolerance * scale
