"""Energy of one example: arithmetic, and data movement per level of memory.

The model of reuse, in the terms of V. Sze et al. (Proceedings of the IEEE 105(12), 2017, section
V) but far simpler than a simulation of one accelerator:

* Arithmetic: every multiply-accumulate is one multiplication and one addition.
* Registers: every multiply-accumulate accesses them ``register_accesses`` times.
* Operands come into the registers from the smallest SRAM. Sums are computed in tiles of ``tile``
  output channels by ``tile`` output positions, so that an activation that was loaded serves up to
  ``tile`` channels and a weight up to ``tile`` positions. A depthwise convolution has one channel
  to serve (or its multiplier), and a linear layer on one example has one position: both pay for it.
* Weights are fetched once per batch from the smallest memory that holds the weights of ALL layers
  beside the largest layer's activations; from DRAM where none does. What several layers share is
  held once, and fetched by each.
* A layer's activations are read once and written once, in the smallest memory that holds input and
  output together.
* An access pays for the level it goes to, alone; reading and writing cost the same.

Energy never falls when a target keeps more units. It jumps where something no longer fits a
memory: pruning a network so far that its weights stay on the chip is worth more than its MACs say.
Element-wise work, pooling and batch norm are taken to be fused into the layers and are not counted;
neither is leakage.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Real
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from automl.cost.energy_tables import (
    ADD_PJ,
    BITS,
    DRAM_PJ,
    MULTIPLY_PJ,
    REGISTER_ACCESSES,
    REGISTER_PJ,
    SRAM_BYTES,
    SRAM_PJ,
)
from automl.hints import did_you_mean
from automl.plan import IndexPlan
from automl.types import InputError, Kept, LayerSpec, Resource, is_whole

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]

#: What the energy of a layer is made of, in the order of ``EnergyCost.parts``.
PARTS = ("arithmetic", "registers", "operands", "weights", "activations")

_MJ_PER_PJ = 1e-9


@dataclass(frozen=True)
class EnergyModel:
    """Energy per operation, and how often data are used once they are there.

    Attributes:
        dtype: ``float32``, ``float16`` or ``int8``: of weights and activations.
        batch: Examples that share one fetch of the weights.
        tile: Side of a tile of partial sums in registers.
        multiply_pj: One multiplication, by dtype.
        add_pj: One addition, by dtype.
        register_pj: One register access of 32 bits.
        register_accesses: Of one multiply-accumulate.
        sram_bytes: What the on-chip memories hold, ascending.
        sram_pj: One access of 64 bits to each of them.
        dram_pj: One access of 64 bits.

    Raises:
        InputError: A value is out of range.
    """

    dtype: str = "float32"
    batch: int = 1
    tile: int = 8
    multiply_pj: Mapping[str, float] = field(default_factory=lambda: dict(MULTIPLY_PJ))
    add_pj: Mapping[str, float] = field(default_factory=lambda: dict(ADD_PJ))
    register_pj: float = REGISTER_PJ
    register_accesses: int = REGISTER_ACCESSES
    sram_bytes: tuple[int, ...] = SRAM_BYTES
    sram_pj: tuple[float, ...] = SRAM_PJ
    dram_pj: float = DRAM_PJ

    def __post_init__(self) -> None:
        """Checks every value."""
        if self.dtype not in BITS:
            hint = did_you_mean(str(self.dtype), list(BITS))
            raise InputError(f"energy.dtype {self.dtype!r} is not known; {hint}")
        for name in ("batch", "tile"):
            value = getattr(self, name)
            _require(name, is_whole(value, 1), "a whole number >= 1", value)
        for name in ("multiply_pj", "add_pj"):
            value = getattr(self, name).get(self.dtype)
            _require(f"{name}.{self.dtype}", _energy(value), "a number >= 0", value)
        for name in ("register_pj", "register_accesses", "dram_pj"):
            _require(name, _energy(getattr(self, name)), "a number >= 0", getattr(self, name))
        self._check_memories()

    def _check_memories(self) -> None:
        for name in ("sram_bytes", "sram_pj"):
            value = getattr(self, name)
            is_list = isinstance(value, Iterable) and not isinstance(value, str)
            _require(name, is_list, "a list of numbers", value)
        sizes, costs = tuple(self.sram_bytes), tuple(self.sram_pj)
        _require("sram_pj", len(costs) == len(sizes) > 0, "one number per sram_bytes", costs)
        rising = all(is_whole(size, 1) for size in sizes) and list(sizes) == sorted(set(sizes))
        _require("sram_bytes", rising, "ascending whole numbers", sizes)
        # Were a larger memory cheaper, a larger network could be: no budget could be searched.
        steps = [*costs, self.dram_pj]
        rising = all(map(_energy, costs)) and steps == sorted(steps)
        _require("sram_pj", rising, "numbers >= 0 that rise up to dram_pj", costs)

    @property
    def bits(self) -> int:
        """Bits of a weight or an activation."""
        return BITS[self.dtype]

    @property
    def word_pj(self) -> Floats:
        """One access to each memory for one weight or activation; shape (srams + 1,), DRAM last."""
        return np.array([*self.sram_pj, self.dram_pj]) * (self.bits / 64)

    @property
    def memories(self) -> tuple[str, ...]:
        """Names of the memories, DRAM last."""
        return (*(f"SRAM {size / 1024:g} KiB" for size in self.sram_bytes), "DRAM")

    def level(self, words: Floats) -> NDArray[np.int64]:
        """Position in ``memories`` of the smallest that holds so many words; any shape."""
        size = words * (self.bits / 8)
        return np.asarray(np.searchsorted(np.asarray(self.sram_bytes), size), np.int64)


@dataclass(frozen=True)
class EnergyCost:
    """Energy of one example in mJ as a function of kept counts; see the module's docstring.

    Attributes:
        plan: The network's plan.
        model: Energy per operation.
    """

    plan: IndexPlan
    model: EnergyModel = field(default_factory=EnergyModel)
    resource: ClassVar[Resource] = "energy_mj"

    def __call__(self, kept: Kept) -> Floats:
        """mJ; batched: (..., targets) gives (...)."""
        return np.asarray(self.parts(kept).sum((-1, -2)))

    def parts(self, kept: Kept) -> Floats:
        """Energy in mJ by layer and ``PARTS``; (..., targets) gives (..., layers, 5)."""
        model, words = self.model, self._words(kept)
        macs, operand_pj = words.macs, model.word_pj[0]
        per_mac = model.multiply_pj[model.dtype] + model.add_pj[model.dtype]
        registers = model.register_accesses * model.register_pj * model.bits / 32
        fetch_pj = model.word_pj[model.level(words.held)][..., None]
        weights = words.fetched * fetch_pj / model.batch
        moved = words.activations * model.word_pj[model.level(words.activations)]
        loads = macs / np.minimum(model.tile, words.channels_served)
        loads = loads + macs / np.minimum(model.tile, words.positions_served)
        columns = [macs * per_mac, macs * registers, loads * operand_pj, weights, moved]
        return np.stack(columns, axis=-1) * _MJ_PER_PJ

    def table(self, kept: Kept | None = None) -> pd.DataFrame:
        """One row per layer: mJ by part, and where its activations lie.

        Args:
            kept: Counts of shape (targets,); None for the dense network.
        """
        import pandas as pd

        kept = self.plan.dense if kept is None else kept
        words = self._words(kept)
        frame = pd.DataFrame(self.parts(kept), columns=list(PARTS))
        frame.insert(0, "layer", [layer.name for layer in self.plan.layers])
        levels = self.model.level(words.activations)
        frame["total"] = frame[list(PARTS)].sum(axis=1)
        frame["activations_in"] = [self.model.memories[level] for level in levels]
        return frame

    def weights_in(self, kept: Kept) -> str:
        """The memory that the weights are fetched from; kept counts of shape (targets,)."""
        return self.model.memories[int(self.model.level(self._words(kept).held))]

    def _words(self, kept: Kept) -> _Words:
        lengths = self.plan.lengths(kept).astype(np.float64)
        macs = self.plan.layer_macs(kept).astype(np.float64)
        geometry = self._geometry
        reads, writes = geometry.reads(lengths), geometry.writes(lengths)
        groups = np.where(geometry.depthwise, reads, geometry.groups)
        served = np.maximum(writes / groups, 1.0)
        # A product of two activations reads both: macs / columns and macs / rows words.
        both = macs / writes + macs / geometry.out_positions
        inputs = np.where(geometry.is_matmul, both, reads * geometry.in_positions)
        # An embedding reads one index and one row of its table per position.
        inputs = np.where(geometry.is_embedding, geometry.in_positions, inputs)
        # Heads are not among a matmul's channels; its output is one word per ``depth`` MACs.
        outputs = np.where(geometry.is_matmul, macs / reads, writes * geometry.out_positions)
        fixed, varying = self._weight_terms
        sizes = self.plan.tensor_sizes(kept).astype(np.float64)
        weights = np.asarray(fixed + sizes @ varying)
        shared = self._shared_fixed + sizes @ np.maximum(varying.sum(1) - 1, 0)
        activations = inputs + outputs
        return _Words(
            macs=macs,
            held=weights.sum(-1) - shared + activations.max(-1, initial=0),
            fetched=np.where(geometry.is_embedding, outputs * self.model.batch, weights),
            activations=activations,
            channels_served=served,
            positions_served=geometry.out_positions * self._positions_per_fetch,
        )

    @cached_property
    def _positions_per_fetch(self) -> Floats:
        """Examples whose positions follow each other under one weight; shape (layers,)."""
        return np.where(self._geometry.is_matmul, 1.0, float(self.model.batch))

    @cached_property
    def _weight_terms(self) -> tuple[Floats, Floats]:
        """Parameters that never change, (layers,), and which tensors a layer has."""
        plan = self.plan
        place = {tensor.name: i for i, tensor in enumerate(plan.tensors)}
        dense = plan.tensor_sizes(plan.dense)
        fixed = np.array([layer.spec.params for layer in plan.layers_plan], np.float64)
        varying = np.zeros((len(plan.tensors), len(plan.layers_plan)))
        for at, layer in enumerate(plan.layers_plan):
            for name in layer.tensors:
                tensor = place.get(plan.aliases.get(name, name))
                if tensor is not None:
                    varying[tensor, at] = 1
                    fixed[at] -= dense[tensor]
        return fixed, varying

    @cached_property
    def _shared_fixed(self) -> float:
        """Words of weights that never change, once for every layer that has them but the first."""
        plan = self.plan
        changing = {tensor.name for tensor in plan.tensors}
        seen: set[str] = set()
        again = 0.0
        for layer in plan.layers_plan:
            for name in layer.tensors[:1]:  # the weight: shared biases are too small to matter
                if name in seen and plan.aliases.get(name, name) not in changing:
                    spec = layer.spec
                    per_output = spec.in_channels // spec.groups * math.prod(spec.kernel_size)
                    again += spec.out_channels * per_output
                seen.add(name)
        return again

    @cached_property
    def _geometry(self) -> _Geometry:
        return _Geometry.of(self.plan)


@dataclass(frozen=True, eq=False)
class _Words:
    """What layers compute and move for one example, each of shape (..., layers).

    Attributes:
        macs: Multiply-accumulates.
        held: Weights and biases of all layers and the largest activations; of shape (...).
        fetched: Weights and biases that one batch fetches; 0 where another call of the layer has.
        activations: Words read plus words written.
        channels_served: Output channels that use an input word.
        positions_served: Output positions that use a weight.
    """

    macs: Floats
    held: Floats
    fetched: Floats
    activations: Floats
    channels_served: Floats
    positions_served: Floats


@dataclass(frozen=True, eq=False)
class _Geometry:
    """The part of the layers' shapes that pruning leaves, each of shape (layers,)."""

    in_axis: NDArray[np.int64]  # -1: ``in_channels`` never change
    out_axis: NDArray[np.int64]
    in_channels: Floats
    out_channels: Floats
    in_positions: Floats
    out_positions: Floats
    groups: Floats
    depthwise: NDArray[np.bool_]
    is_matmul: NDArray[np.bool_]
    is_embedding: NDArray[np.bool_]

    @classmethod
    def of(cls, plan: IndexPlan) -> _Geometry:
        layers = plan.layers_plan
        specs = [layer.spec for layer in layers]

        def axes(name: str) -> NDArray[np.int64]:
            found = [getattr(layer, name) for layer in layers]
            return np.array([-1 if axis is None else axis for axis in found], np.int64)

        def floats(values: list[int] | list[float]) -> Floats:
            return np.array(values, np.float64)

        return cls(
            in_axis=axes("in_axis"),
            out_axis=axes("out_axis"),
            in_channels=floats([spec.in_channels for spec in specs]),
            out_channels=floats([spec.out_channels for spec in specs]),
            in_positions=floats([_positions_read(spec) for spec in specs]),
            out_positions=floats([spec.positions for spec in specs]),
            groups=floats([spec.groups for spec in specs]),
            depthwise=np.array([layer.depthwise for layer in layers], bool),
            is_matmul=np.array([spec.kind == "matmul" for spec in specs], bool),
            is_embedding=np.array([spec.kind == "embedding" for spec in specs], bool),
        )

    def reads(self, lengths: Floats) -> Floats:
        """Channels read, (..., axes) gives (..., layers)."""
        return _follow(lengths, self.in_axis, self.in_channels)

    def writes(self, lengths: Floats) -> Floats:
        """Channels written, (..., axes) gives (..., layers)."""
        return _follow(lengths, self.out_axis, self.out_channels)


def _positions_read(spec: LayerSpec) -> float:
    """Places of the input for one example: as many maps as there are of the output."""
    maps = spec.positions / max(spec.out_height * spec.out_width, 1)
    return spec.in_height * spec.in_width * maps


def _follow(lengths: Floats, axis: NDArray[np.int64], fixed: Floats) -> Floats:
    if lengths.shape[-1] == 0:
        return np.broadcast_to(fixed, (*lengths.shape[:-1], len(fixed)))
    return np.where(axis >= 0, lengths[..., axis], fixed)


def _require(name: str, holds: bool, rule: str, value: object) -> None:
    if not holds:
        raise InputError(f"energy.{name} must be {rule}, got {value!r}")


def _energy(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    return 0 <= float(value) < float("inf")
