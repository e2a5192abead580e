"""IndexPlan: which slices of which tensors belong to which prunable units, as plain data.

A plan is made once per network by :func:`automl.trace` and is all that pruning, counting and
workers need afterwards: it is JSON-serialisable, picklable, and imports no torch.

The units of all targets are numbered through: target ``t`` owns units
``offset[t] .. offset[t] + units - 1``. An :class:`Axis` describes one dimension of a tensor: for
every position the one or two units it lives by (attention channels live by their head AND their
place within the head); -1 means "always there". A position is kept iff all its units are.
Because the units of one target occur equally often in every axis, the length of an axis after
pruning is a polynomial in the kept counts, which makes cost arithmetic exact without indices.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import chain, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from automl.plan_axes import (
    Axis,
    Count,
    IntArray,
    Terms,
    count_axis,
    decode_runs,
    encode_runs,
    products,
)
from automl.plan_check import MOST_POSITIONS, check_program, check_runs, check_units
from automl.types import Frozen, InputError, Kept, LayerSpec, Target

PLAN_SCHEMA = "prunepilot/plan"
PLAN_VERSION = 1

#: What damaged JSON makes its reader raise.
_UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """A parameter or buffer: the axis of each dimension, None where it never changes."""

    name: str
    shape: tuple[int, ...]
    axes: tuple[int | None, ...]
    trainable: bool


@dataclass(frozen=True, slots=True)
class ModulePatch:
    """An integer attribute of a module that follows the length of an axis."""

    module: str
    attribute: str
    axis: int


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """A layer with what its cost depends on.

    MACs of a batch of ``IndexPlan.batch`` examples are ``coefficient * prod(lengths of factors)``.

    Attributes:
        spec: The dense layer.
        coefficient: What does not change with pruning.
        factors: Axes whose lengths multiply.
        in_axis: Axis of the channels read (None: never changes).
        out_axis: Axis of the channels written (None: never changes).
        tensors: Names of its parameters.
        depthwise: Whether ``groups`` follows the channels.
    """

    spec: LayerSpec
    coefficient: int
    factors: tuple[int, ...]
    in_axis: int | None
    out_axis: int | None
    tensors: tuple[str, ...]
    depthwise: bool = False


@dataclass(frozen=True, slots=True)
class Instruction:
    """One step of the network's program: a module call or an operator call.

    ``args`` and ``kwargs`` are JSON values in which ``{"ref": name}`` is an earlier result,
    ``{"axis": id, "per": n}`` the length of an axis divided by n, and ``{"batch": id, "per": n}``
    that times the batch size; torch values are written as ``{"torch": "float32"}``, and a number
    that counts in training alone, for which there is 0 otherwise, as ``{"training": number}``.
    """

    name: str
    op: str
    target: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = None  # type: ignore[assignment]


@dataclass(frozen=True, eq=False)
class IndexPlan:
    """Everything known about a network's structure; see the module's docstring.

    Attributes:
        targets: Decision targets in network order.
        layers: Layers in execution order.
        frozen: What cannot be pruned and why.
        axes: Distinct axes, referred to by position.
        tensors: Parameters and buffers that have at least one dimension that can change.
        aliases: Other names under which the same tensor is found -> its name in ``tensors``.
        patches: Module attributes to keep in step.
        program: The network as instructions, for the graph form.
        graph_targets: Indices of targets whose pruning changes constants inside ``forward``, so
            that the slim network must be the graph form.
        fixed_params: Parameters in tensors that never change.
        module_form: Whether the user's own module classes compute the same when slim.
        dynamic_batch: Whether the graph form takes any batch size.
        batch: Batch size at which the MACs' coefficients and lengths were counted.
        constants: Small tensors the program reads that the model does not own.
    """

    targets: tuple[Target, ...]
    layers_plan: tuple[LayerPlan, ...]
    frozen: tuple[Frozen, ...]
    axes: tuple[Axis, ...]
    tensors: tuple[TensorPlan, ...]
    aliases: Mapping[str, str]
    patches: tuple[ModulePatch, ...]
    program: tuple[Instruction, ...]
    graph_targets: frozenset[int]
    fixed_params: int
    module_form: bool = True
    dynamic_batch: bool = True
    batch: int = 1
    constants: Mapping[str, Any] = field(default_factory=dict)

    # ---- names

    @cached_property
    def layers(self) -> tuple[LayerSpec, ...]:
        """Dense layers in execution order."""
        return tuple(layer.spec for layer in self.layers_plan)

    @cached_property
    def offsets(self) -> IntArray:
        """First global unit of each target, and the number of units at the end; (targets+1,)."""
        sizes = [target.units for target in self.targets]
        return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    @cached_property
    def dense(self) -> Kept:
        """Kept counts of the dense network."""
        return np.array([target.units for target in self.targets], dtype=np.int64)

    def target_index(self, name: str) -> int:
        """Index of the target that is called ``name`` or holds a layer of that name.

        Raises:
            InputError: If there is none, naming the nearest.
        """
        if name in self._target_names:
            return self._target_names[name]
        import difflib

        near = difflib.get_close_matches(name, self._target_names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        frozen = next((f for f in self.frozen if f.name == name), None)
        if frozen is not None:
            raise InputError(f"layer {name!r} cannot be pruned: {frozen.reason}")
        raise InputError(f"no prunable group or layer is called {name!r}{hint}")

    @cached_property
    def _target_names(self) -> dict[str, int]:
        names: dict[str, int] = {}
        for target in reversed(self.targets):
            names.update({layer: target.index for layer in target.producers})
        names.update({target.name: target.index for target in self.targets})
        return names

    # ---- lengths and costs

    @cached_property
    def counts(self) -> tuple[Count, ...]:
        """Length of each axis as a polynomial of the kept counts."""
        return tuple(count_axis(axis, self.offsets) for axis in self.axes)

    def lengths(self, kept: Kept) -> IntArray:
        """Length of every axis; batched: (..., targets) gives (..., axes)."""
        kept = np.asarray(kept, dtype=np.int64)
        total = self._linear[0] + kept @ self._linear[1]
        for axis, target, other, times in self._bilinear:
            total[..., axis] += times * kept[..., target] * kept[..., other]
        return np.asarray(total, dtype=np.int64)

    @cached_property
    def _linear(self) -> tuple[IntArray, IntArray]:
        constant = np.array([count.constant for count in self.counts], dtype=np.int64)
        slope = np.zeros((len(self.targets), len(self.axes)), dtype=np.int64)
        for axis, count in enumerate(self.counts):
            for target, times in count.linear:
                slope[target, axis] += times
        return constant, slope

    @cached_property
    def _bilinear(self) -> list[tuple[int, int, int, int]]:
        return [
            (axis, target, other, times)
            for axis, count in enumerate(self.counts)
            for target, other, times in count.bilinear
        ]

    def layer_macs(self, kept: Kept) -> IntArray:
        """MACs of each layer for one example; batched: (..., targets) gives (..., layers)."""
        return products(self.lengths(kept), self._mac_terms) // self.batch

    def tensor_sizes(self, kept: Kept) -> IntArray:
        """Elements of each entry of ``tensors``; batched: (..., targets) gives (..., tensors)."""
        return products(self.lengths(kept), self._size_terms)

    def macs(self, kept: Kept) -> IntArray:
        """Multiply-accumulates of one example, exact; batched."""
        return np.asarray(self.layer_macs(kept).sum(-1))

    def params(self, kept: Kept) -> IntArray:
        """Trainable parameters, exact; batched."""
        sizes = self.tensor_sizes(kept)[..., self._trainable]
        return np.asarray(sizes.sum(-1) + self.fixed_params)

    @cached_property
    def _trainable(self) -> NDArray[np.bool_]:
        return np.array([tensor.trainable for tensor in self.tensors], dtype=bool)

    @cached_property
    def _mac_terms(self) -> Terms:
        return Terms.of([(layer.coefficient, layer.factors) for layer in self.layers_plan])

    @cached_property
    def _size_terms(self) -> Terms:
        def term(tensor: TensorPlan) -> tuple[int, tuple[int, ...]]:
            pairs = list(zip(tensor.shape, tensor.axes, strict=True))
            fixed = int(np.prod([size for size, axis in pairs if axis is None], dtype=np.int64))
            return fixed, tuple(axis for _, axis in pairs if axis is not None)

        return Terms.of([term(tensor) for tensor in self.tensors])

    def layers_at(self, kept: Kept) -> tuple[LayerSpec, ...]:
        """The layers of the pruned network."""
        lengths, macs = self.lengths(kept), self.layer_macs(kept)
        sizes = dict(
            zip([t.name for t in self.tensors], self.tensor_sizes(kept).tolist(), strict=True)
        )
        dense = {tensor.name: int(np.prod(tensor.shape)) for tensor in self.tensors}

        def slim(layer: LayerPlan, layer_macs: int) -> LayerSpec:
            spec = layer.spec
            out = spec.out_channels if layer.out_axis is None else int(lengths[layer.out_axis])
            into = spec.in_channels if layer.in_axis is None else int(lengths[layer.in_axis])
            changed = sum(sizes[n] - dense[n] for n in layer.tensors if n in sizes)
            return replace(
                spec,
                in_channels=into,
                out_channels=out,
                groups=into if layer.depthwise else spec.groups,
                macs=int(layer_macs),
                params=spec.params + changed,
            )

        return tuple(slim(layer, m) for layer, m in zip(self.layers_plan, macs, strict=True))

    # ---- which positions stay

    def alive(self, kept_units: Sequence[Sequence[int]]) -> NDArray[np.bool_]:
        """Marks the units that stay; shape (units + 1,), the last entry stands for "always".

        Args:
            kept_units: For each target the ascending indices of the units that stay.

        Raises:
            InputError: If a target would be empty, or an index is out of range or order.
        """
        if len(kept_units) != len(self.targets):
            raise InputError(
                f"expected kept units for {len(self.targets)} targets, got {len(kept_units)}"
            )
        sizes = [len(units) for units in kept_units]
        numbers = np.fromiter(chain.from_iterable(kept_units), np.int64, sum(sizes))
        numbers += np.repeat(self.offsets[:-1], sizes)
        ends_fit = all(
            len(units) and units[0] >= 0 and units[-1] < target.units
            for units, target in zip(kept_units, self.targets, strict=True)
        )
        if not (ends_fit and (numbers[1:] > numbers[:-1]).all()):
            self._refuse(kept_units)
        alive = np.zeros(int(self.offsets[-1]) + 1, dtype=bool)
        alive[numbers] = alive[-1] = True
        return alive

    def _refuse(self, kept_units: Sequence[Sequence[int]]) -> None:
        for target, units in zip(self.targets, kept_units, strict=True):
            if len(units) == 0:
                raise InputError(f"target {target.name!r} must keep at least one unit")
            if min(units) < 0 or max(units) >= target.units:
                raise InputError(f"target {target.name!r} has units 0 to {target.units - 1}")
            if (np.diff(units) <= 0).any():
                raise InputError(f"kept units of target {target.name!r} must be ascending")

    def positions(self, kept_units: Sequence[Sequence[int]]) -> list[IntArray]:
        """The positions of every axis that stay, ascending.

        Args:
            kept_units: As for :meth:`alive`, which raises the same.
        """
        alive = self.alive(kept_units)
        first, second, ends = self._end_to_end
        stays = alive[first] & alive[second]
        return [stays[a:b].nonzero()[0] for a, b in pairwise(ends)]

    @cached_property
    def _end_to_end(self) -> tuple[IntArray, IntArray, list[int]]:
        """All axes in one row (first, second), and where each ends."""
        none = [np.zeros(0, dtype=np.int64)]
        first = np.concatenate([*none, *(axis.first for axis in self.axes)])
        second = np.concatenate([*none, *(axis.second for axis in self.axes)])
        return first, second, [0, *np.cumsum([len(axis) for axis in self.axes]).tolist()]

    def needs_graph_form(self, kept: Kept) -> bool:
        """Whether ``kept`` changes constants inside the user's ``forward``."""
        if not self.module_form:
            return True
        return any(kept[t] < self.targets[t].units for t in self.graph_targets)

    # ---- JSON

    def to_json(self) -> str:
        """Compact JSON text; :meth:`from_json` reads it back."""
        document = {
            "schema": PLAN_SCHEMA,
            "version": PLAN_VERSION,
            "targets": [asdict(target) for target in self.targets],
            "layers": [asdict(layer) for layer in self.layers_plan],
            "frozen": [asdict(frozen) for frozen in self.frozen],
            "axes": [[encode_runs(axis.first), encode_runs(axis.second)] for axis in self.axes],
            "tensors": [asdict(tensor) for tensor in self.tensors],
            "aliases": dict(self.aliases),
            "patches": [asdict(patch) for patch in self.patches],
            "program": [asdict(instruction) for instruction in self.program],
            "graph_targets": sorted(self.graph_targets),
            "fixed_params": self.fixed_params,
            "module_form": self.module_form,
            "dynamic_batch": self.dynamic_batch,
            "batch": self.batch,
            "constants": dict(self.constants),
        }
        return json.dumps(document, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> IndexPlan:
        """Reads what :meth:`to_json` wrote.

        Raises:
            InputError: If the text is not a plan of this version.
        """
        try:
            document = json.loads(text)
            if document["schema"] != PLAN_SCHEMA or document["version"] != PLAN_VERSION:
                found = f"{document['schema']!r} version {document['version']!r}"
                raise InputError(f"expected {PLAN_SCHEMA!r} version {PLAN_VERSION}, got {found}")
            plan = cls._from_document(document)
            check_program(plan)
            return plan
        except _UNREADABLE as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"not a readable plan: {error!r}; trace the model again") from error

    @classmethod
    def _from_document(cls, document: dict[str, Any]) -> IndexPlan:
        targets = tuple(Target(**_tuples(t)) for t in document["targets"])
        units, spare = check_units([target.units for target in targets]), MOST_POSITIONS
        for axis in document["axes"]:
            spare -= max(check_runs(runs, spare, units) for runs in axis)
        return cls(
            targets=targets,
            layers_plan=tuple(
                LayerPlan(**{**_tuples(layer), "spec": LayerSpec(**_tuples(layer["spec"]))})
                for layer in document["layers"]
            ),
            frozen=tuple(Frozen(**f) for f in document["frozen"]),
            axes=tuple(Axis(decode_runs(a), decode_runs(b)) for a, b in document["axes"]),
            tensors=tuple(TensorPlan(**_tuples(t)) for t in document["tensors"]),
            aliases=document["aliases"],
            patches=tuple(ModulePatch(**p) for p in document["patches"]),
            program=tuple(
                Instruction(**{**i, "args": tuple(i["args"])}) for i in document["program"]
            ),
            graph_targets=frozenset(document["graph_targets"]),
            fixed_params=document["fixed_params"],
            module_form=document["module_form"],
            dynamic_batch=document["dynamic_batch"],
            batch=document["batch"],
            constants=document["constants"],
        )


def _tuples(document: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in document.items()}
