"""Chooses the fastest way to run one layer, by measuring; see ``automl.executors.compiler``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from automl.cost.lut.signature import Signature, canonical
from automl.executors import formats
from automl.executors.baselines import ONEDNN, prepack
from automl.executors.conv import SparseConv2d, pack_conv2d
from automl.executors.kernels_version import kernels_version
from automl.executors.memory import Memory
from automl.executors.packed import Format, PackedLinear
from automl.executors.threads import clock, torch_threads

Layer = nn.Linear | nn.Conv2d
Packed = PackedLinear | SparseConv2d
DENSE = "dense"
#: Layers on point clouds, which have a kernel of their own.
SPCONV3D = "spconv3d"

#: Convolutions with more of their weights are left dense without trying.
_DENSEST = 0.5

#: A format must be faster than dense by this factor.
GAIN = 1.05
_ROUNDS = 9


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen for one layer, and why.

    Attributes:
        layer: Name of the module.
        shape: Of the weight.
        batch: Examples (and places) of a fully connected layer, images of a convolution, that it
            was measured with.
        density: Fraction of the weights that are not zero.
        format: The format chosen: ``dense``, ``onednn`` (dense, with the weight in oneDNN's
            order), a sparse one, or ``spconv3d`` for convolutions on point clouds, which are left.
        reason: One phrase.
        median_us: Format -> median time of one call, microseconds, ``dense`` included; empty
            where nothing was measured.
        dense_bytes: What the weight and bias take as they are.
        packed_bytes: What they take in the format chosen.
    """

    layer: str
    shape: tuple[int, ...]
    batch: int
    density: float
    format: str
    reason: str
    median_us: Mapping[str, float]
    dense_bytes: int
    packed_bytes: int

    @property
    def is_sparse(self) -> bool:
        """Whether it was packed, and zeros left out."""
        return self.format not in (DENSE, ONEDNN, SPCONV3D)

    @property
    def dense_us(self) -> float:
        """The fastest dense way; NaN where nothing was measured."""
        return min((t for f, t in self.median_us.items() if f in (DENSE, ONEDNN)), default=math.nan)

    @property
    def gain(self) -> float:
        """How many times as fast as the fastest dense way it runs; 1 where it is dense."""
        return self.dense_us / self.median_us[self.format] if self.is_sparse else 1.0


class PackedModule(nn.Module):
    """A packed layer in a network: float32 tensors on the CPU, inference only."""

    def __init__(self, packed: Packed) -> None:
        """Wraps a packed layer."""
        super().__init__()
        self.packed = packed

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output.

        Args:
            x: Shape (..., in_features), or (batch, in_channels, height, width).
        """
        return torch.from_numpy(self.packed(x.detach().numpy()))

    def extra_repr(self) -> str:
        """Format and size."""
        return f"{self.packed.name}, {self.packed.nbytes} bytes"


@dataclass(frozen=True)
class Tuner:
    """Chooses for layers of one network.

    Attributes:
        candidates: Formats of fully connected layers.
        prepare: Run before each timed call: puts weights out of the cache, or does nothing.
        is_cold: Whether it does.
        onednn: Whether dense layers may have their weights in oneDNN's order.
        memory: What was measured before.
    """

    candidates: Sequence[Format]
    prepare: Callable[[], None]
    is_cold: bool
    onednn: bool = True
    memory: Memory = field(default_factory=lambda: Memory(None))

    def choose(self, name: str, module: Layer, x: Tensor) -> tuple[Choice, nn.Module | None]:
        """The fastest way to run one layer.

        Args:
            name: Of the layer.
            module: The layer.
            x: What it is given.

        Returns:
            The choice, and the module to run it by; None for the layer itself.
        """
        weight = module.weight.detach().numpy()
        size = sum(parameter.nbytes for parameter in module.parameters())
        about = (name, weight.shape, examples(module, x), density_of(weight))
        reason = _unfit(module, x)
        if reason:
            return Choice(*about, DENSE, reason, {}, size, size), None
        sparse, reason = _sparse_ways(module, self.candidates)
        made = self._times(module, x, sparse)
        times = {form: own for form, (own, _) in made.items()}
        form, reason = _best(times, reason)
        way = made[form][1]() if form != DENSE else None
        packed = way.packed.nbytes if isinstance(way, PackedModule) else size
        return Choice(*about, form, reason, times, size, packed), way

    def _times(
        self, module: Layer, x: Tensor, sparse: Mapping[str, Way]
    ) -> dict[str, tuple[float, Way]]:
        """Median microseconds of every way to run a layer, measured unless they are known."""
        ways = dict(sparse)
        if self.onednn:
            ways[ONEDNN] = lambda: prepack(module, x)
        layer = self.signature(module, x)
        known = self.memory.times_us(layer, [DENSE, *ways])
        if known is not None:
            return {form: (own, ways.get(form, _nothing)) for form, own in known.items()}
        made = {form: way() for form, way in ways.items()}
        calls = {form: partial(one, x) for form, one in made.items() if one is not None}
        found = measure_us({DENSE: partial(module, x), **calls}, self.prepare)
        # What oneDNN does not take is as if it gained nothing.
        found |= {form: found[DENSE] for form in ways if form not in found}
        self.memory.add(layer, found)
        times = self.memory.times_us(layer, [DENSE, *ways]) or {}
        return {form: (own, partial(_given, made.get(form))) for form, own in times.items()}

    def signature(self, module: Layer, x: Tensor) -> Signature:
        """What the times of a layer are remembered by, for its dense form."""
        weight = module.weight
        detail = {
            "bias": module.bias is not None,
            "activations": round(float((x != 0).double().mean()), 1),
            "cold": self.is_cold,
            "clock": clock(1).__name__,
            "kernels": kernels_version(),
            "two_of_four": _is_two_of_four(module),
        }
        density = round(density_of(weight.detach().numpy()), 2)
        if isinstance(module, nn.Linear):
            detail["lead"] = list(x.shape[1:-1])
            batch, features = int(x.shape[0]) if x.dim() > 1 else 1, x.shape[-1]
            return Signature(
                "linear", batch, int(features), int(weight.shape[0]), examples(module, x), 1,
                density=density, detail=canonical(detail),
            )  # fmt: skip
        detail |= {"padding": module.padding, "dilation": list(module.dilation)}
        detail |= {"mode": module.padding_mode, "strides": list(x.stride())}
        return Signature(
            "conv2d", examples(module, x), module.in_channels, module.out_channels,
            int(x.shape[-2]), int(x.shape[-1]), tuple(module.kernel_size), tuple(module.stride),
            module.groups, density=density, detail=canonical(detail),
        )  # fmt: skip


Way = Callable[[], nn.Module | None]


def _nothing() -> None:
    return None


def _given(module: nn.Module | None) -> nn.Module | None:
    return module


def _best(times: Mapping[str, float], unfit: str) -> tuple[str, str]:
    """The format to use and why; ``unfit``: why no sparse format was tried, else empty."""
    dense = min((form for form in times if form in (DENSE, ONEDNN)), key=lambda form: times[form])
    best = min(times, key=lambda form: times[form])
    gain = times[dense] / times[best]
    if best != dense and gain >= GAIN:
        return best, f"{gain:.1f} times as fast as dense"
    reason = unfit or f"no format is {GAIN:.2f} times as fast as dense"
    return (dense if times[DENSE] / times[dense] >= GAIN else DENSE), reason


def examples(module: Layer, x: Tensor) -> int:
    """Examples and places of a fully connected layer, images of a convolution."""
    own = x.shape[-1 if isinstance(module, nn.Linear) else -3 :]
    return x.numel() // max(math.prod(own), 1)


def density_of(weight: NDArray[Any]) -> float:
    """Fraction that is not zero."""
    return float(np.count_nonzero(weight)) / max(weight.size, 1)


def _unfit(module: Layer, x: Tensor) -> str | None:
    """Why a layer is left as it is without measuring; None where it is not."""
    if module.weight.dtype != torch.float32 or x.dtype != torch.float32:
        return f"it is {module.weight.dtype}, not float32"
    return "it was given nothing" if x.numel() == 0 else None


def _sparse_ways(module: Layer, candidates: Sequence[Format]) -> tuple[dict[str, Way], str]:
    """How to pack a layer into every form that can hold it, and why into none."""
    weight = module.weight.detach().numpy()
    bias = None if module.bias is None else module.bias.detach().numpy()
    if isinstance(module, nn.Linear):
        reasons = {form: form.unfit(weight) for form in candidates}
        ways: dict[str, Way] = {
            form.name: partial(_pack_linear, form, weight, bias)
            for form, reason in reasons.items()
            if reason is None
        }
        refused = "; ".join(f"{form.name}: {why}" for form, why in reasons.items() if why)
        return ways, "" if ways else refused or "no format was asked for"
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        return {}, f"its padding is {module.padding_mode!r}, {module.padding!r}"
    if density_of(weight) > _DENSEST:
        return {}, "more than half of its weights are left"
    return {"conv": partial(_pack_convolution, module)}, ""


def pack(layer: Layer, form: str) -> PackedModule:
    """A layer in one format.

    Args:
        layer: The layer; zeros are left out.
        form: ``conv``, or the name of a format in conf/executor.

    Raises:
        InputError: There is no such format.
        ValueError: The format cannot hold this weight.
    """
    if isinstance(layer, nn.Conv2d):
        return _pack_convolution(layer)
    bias = None if layer.bias is None else layer.bias.detach().numpy()
    return _pack_linear(formats.load(form), layer.weight.detach().numpy(), bias)


def _pack_linear(form: Format, weight: NDArray[Any], bias: NDArray[Any] | None) -> PackedModule:
    return PackedModule(form.pack(weight, bias))


def _pack_convolution(module: nn.Conv2d) -> PackedModule:
    packed = pack_conv2d(
        module.weight.detach().numpy(),
        None if module.bias is None else module.bias.detach().numpy(),
        stride=_pair(module.stride),
        padding=(0, 0) if isinstance(module.padding, str) else _pair(module.padding),
        dilation=_pair(module.dilation),
        groups=module.groups,
    )
    return PackedModule(packed)


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    first, second = values
    return first, second


def _is_two_of_four(module: Layer) -> bool:
    if not isinstance(module, nn.Linear) or module.in_features % 4:
        return False
    fours = module.weight.detach().reshape(-1, 4)
    return bool(((fours != 0).sum(1) <= 2).all())


def measure_us(
    calls: Mapping[str, Callable[[], object]], prepare: Callable[[], None]
) -> dict[str, list[float]]:
    """Microseconds of calls that take turns, on one thread; one round to warm up.

    Time that other processes take of the core is not counted.
    """
    now = clock(1)
    times: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode(), torch_threads(1):
        for call in calls.values():
            call()
        for _ in range(_ROUNDS):
            for name, call in calls.items():
                prepare()
                start = now()
                call()
                times[name].append(1e6 * (now() - start))
    return times
