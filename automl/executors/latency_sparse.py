"""Formats in latency tables: which are offered, and how one is timed.

Weights are random: the number of zeros matters, hardly their places. Activations are dense, so that
formats that skip zero activations are not flattered.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from automl.cost.lut.signature import Signature, canonical
from automl.executors import formats
from automl.executors.kernels_version import kernels_version
from automl.executors.latency_record import details
from automl.types import InputError

#: Where times are measured; between, they are nearly straight.
_DENSITIES = (0.015, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
_ONE, _MANY, _CONVOLUTION = ("pell", "csc", "bitmap"), ("spmm",), ("conv",)
NM24 = "nm24"


class ExactFormats:
    """The exact formats, on the CPU in float32."""

    @property
    def version(self) -> str:
        """See ``automl.cost.sparse_latency.Offers``."""
        return kernels_version()

    def __call__(self, operator: Signature, grain: str) -> Mapping[str, Sequence[float]]:
        """See ``automl.cost.sparse_latency.Offers``."""
        densities = _densities(grain)
        forms = {form: densities for form in _forms(operator)}
        if grain == "nm:4" and operator.kind == "linear" and _rows(operator) == 1:
            forms[NM24] = densities
        return forms if densities else {}

    def signature(self, operator: Signature, form: str, density: float) -> Signature:
        """See ``automl.cost.sparse_latency.Offers``; times of other kernels have another one."""
        detail = canonical({**details(operator), "kernels": self.version})
        return replace(operator, format=form, density=density, detail=detail)


def _densities(grain: str) -> tuple[float, ...]:
    kind, _, size = grain.partition(":")
    if kind == "nm":
        most = int(size or 4)
        return tuple(kept / most for kept in range(1, most // 2 + 1))
    return _DENSITIES


def _forms(operator: Signature) -> tuple[str, ...]:
    if operator.dtype != "float32":
        return ()
    if operator.kind == "linear":
        return _ONE if _rows(operator) == 1 else _MANY
    if operator.kind == "conv2d" and operator.layout == "contiguous":
        return () if isinstance(details(operator)["padding"], str) else _CONVOLUTION
    return ()


def _rows(operator: Signature) -> int:
    return operator.batch * int(np.prod(details(operator)["lead"], dtype=np.int64))


def packed_call(signature: Signature, tail: Callable[[Tensor], Tensor]) -> tuple[Any, int]:
    """A call of an operator in a format, and the bytes that it reads.

    Args:
        signature: What a table knows it by.
        tail: The activations behind it.

    Raises:
        InputError: No executor runs this format.
    """
    # Imported here: the kernels' compiler takes a quarter of a second of every start.
    from automl.executors.autotune import pack

    form = signature.format
    if form not in (*_CONVOLUTION, *formats.names()):
        raise InputError(f"cannot measure {signature}: format {form!r} has no executor")
    layer, x = _layer(signature)
    generator = np.random.default_rng(zlib.crc32(str(signature).encode()))
    weight = layer.weight.detach().numpy()
    thin(weight, signature.density, form == NM24, generator)
    try:
        packed = pack(layer, form)
    except (InputError, ValueError) as error:
        raise InputError(f"cannot measure {signature}: {error}") from error
    return partial(_call, packed, x, tail), packed.packed.nbytes + x.nbytes


def _call(packed: nn.Module, x: Tensor, tail: Callable[[Tensor], Tensor]) -> Tensor:
    return tail(packed(x))


def _layer(signature: Signature) -> tuple[nn.Linear | nn.Conv2d, Tensor]:
    s, detail = signature, details(signature)
    generator = torch.Generator().manual_seed(0)
    if s.kind not in ("linear", "conv2d"):
        raise InputError(f"cannot measure {s}: executors run linear layers and convolutions")
    if s.kind == "linear":
        linear = nn.Linear(s.in_channels, s.out_channels, bias=detail["bias"])
        shape = [s.batch, *detail["lead"], s.in_channels]
        return linear, torch.rand(shape, generator=generator)
    convolution = nn.Conv2d(
        s.in_channels, s.out_channels, _pair(s.kernel), _pair(s.stride), _pair(detail["padding"]),
        _pair(detail["dilation"]), s.groups, bias=detail["bias"],
    )  # fmt: skip
    shape = [s.batch, s.in_channels, s.height, s.width]
    return convolution, torch.rand(shape, generator=generator)


def _pair(values: Sequence[int]) -> tuple[int, int]:
    first, second = values
    return first, second


def thin(
    weight: NDArray[np.float32], density: float, by_fours: bool, rng: np.random.Generator
) -> None:
    """Sets weights to zero at random, in place.

    Args:
        weight: Any shape.
        density: Fraction that stays, in expectation.
        by_fours: Whether of every four neighbours in a row the same number stays.
        rng: Decides.
    """
    if by_fours:
        rows = len(weight)
        fours = -(-weight.shape[1] // 4)
        order = rng.random((rows, fours, 4)).argsort(-1) < max(1, round(4 * density))
        mask = order.reshape(rows, -1)[:, : weight.shape[1]]
    else:
        mask = rng.random(weight.shape, dtype=np.float32) < density
    weight *= mask
