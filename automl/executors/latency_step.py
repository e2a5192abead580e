"""The channel step that a device likes: rounding counts up to it costs no time."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from automl.cost.lut.signature import Signature, canonical

#: Steps that may be offered, finest first.
STEPS = (1, 2, 4, 8, 16, 32, 64)
#: Output channels that are measured.
_COUNTS = range(33, 129)
#: How much slower than a count a rounded-up one may be, in the mean.
_TOLERANCE = 0.03
#: (kernel, input channels, size of the map) of layers as they are in the middle of networks.
_LAYERS = ((1, 192, 14), (3, 64, 14))


def probes(dtype: str = "float32", layout: str = "contiguous") -> dict[Signature, tuple[int, int]]:
    """Convolutions from whose times the step is read: signature -> (layer, output channels)."""
    return {
        Signature(
            kind="conv2d",
            batch=1,
            in_channels=channels,
            out_channels=count,
            height=size,
            width=size,
            kernel=(kernel, kernel),
            stride=(1, 1),
            dtype=dtype,
            layout=layout,
            detail=canonical({"bias": True, "dilation": [1, 1], "padding": [kernel // 2] * 2}),
        ): (layer, count)
        for layer, (kernel, channels, size) in enumerate(_LAYERS)
        for count in _COUNTS
    }


def device_step(times_us: Mapping[Signature, float]) -> int:
    """The coarsest step to which counts can be rounded up at no cost.

    Args:
        times_us: Times of the :func:`probes`.
    """
    by_layer: dict[int, dict[int, float]] = {}
    for signature, (layer, count) in _places(times_us).items():
        by_layer.setdefault(layer, {})[count] = times_us[signature]
    free = [step for step in STEPS if all(_is_free(t, step) for t in by_layer.values())]
    return max(free, default=1)


def _places(times_us: Mapping[Signature, float]) -> dict[Signature, tuple[int, int]]:
    first = next(iter(times_us))
    return probes(first.dtype, first.layout)


def _is_free(times: Mapping[int, float], step: int) -> bool:
    """Whether a rounded-up count is no slower, in the mean over the counts between."""
    up = {count: -(-count // step) * step for count in times}
    cost = [times[up[count]] / times[count] for count in times if up[count] in times]
    return float(np.mean(cost)) <= 1 + _TOLERANCE
