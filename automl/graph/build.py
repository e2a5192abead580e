"""From resolved labels to an :class:`automl.plan.IndexPlan`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.fx import Node

from automl.graph.export import Exported, module_path
from automl.graph.form import OpenSize
from automl.graph.lift import owner_of
from automl.graph.ops.step import Layer, Length, Rewrite, bound_arguments
from automl.graph.program import ProgramWriter
from automl.graph.propagate import Propagated
from automl.plan import IndexPlan, LayerPlan, ModulePatch, TensorPlan
from automl.plan_axes import Axis, IntArray, count_axis
from automl.types import Frozen, InputError, LayerSpec, Target


@dataclass(eq=False)
class AtomAxes:
    """Distinct axes in terms of atoms, before atoms are gathered to targets."""

    first: list[IntArray] = field(default_factory=list)
    second: list[IntArray] = field(default_factory=list)
    _known: dict[bytes, int] = field(default_factory=dict)

    def intern(self, first: IntArray, second: IntArray) -> int | None:
        """Number of an axis; None if nothing about it can change."""
        if (first < 0).all() and (second < 0).all():
            return None
        low, high = np.minimum(first, second), np.maximum(first, second)
        key = np.stack([low, high]).tobytes()
        if key not in self._known:
            self._known[key] = len(self.first)
            self.first.append(high)  # a single atom is always ``first``
            self.second.append(low)
        return self._known[key]

    def without(self, atoms: set[int]) -> AtomAxes:
        """The same axes, in the same order, with some atoms always there."""
        gone = np.array(sorted(atoms), dtype=np.int64)
        clean = AtomAxes()
        for first, second in zip(self.first, self.second, strict=True):
            a, b = (np.where(np.isin(x, gone), -1, x) for x in (first, second))
            clean.first.append(np.maximum(a, b))
            clean.second.append(np.minimum(a, b))
        return clean


class PlanBuilder:
    """Collects axes from everything that follows channels, then groups their atoms."""

    def __init__(self, model: nn.Module, exported: Exported, propagated: Propagated) -> None:
        """Names every axis."""
        self._model, self._exported, self._found = model, exported, propagated
        self._axes = AtomAxes()
        self._known_lengths: dict[tuple[int, int], int | None] = {}
        self._state = _state(model)
        self._tensor_axes = self._label_tensors()
        self._patches, self._open = self._sort_rewrites()
        self._layers = [self._layer(i, layer) for i, layer in enumerate(self._unique_layers())]

    # ---- axes

    def _length(self, length: Length) -> int | None:
        key = (id(length.labels), length.dim)  # the record keeps the labels alive
        if key not in self._known_lengths:
            atoms = self._found.atoms.along(length.labels, length.dim)
            self._known_lengths[key] = self._axes.intern(*atoms)
        return self._known_lengths[key]

    def _label_tensors(self) -> dict[str, tuple[int | None, ...]]:
        axes: dict[str, tuple[int | None, ...]] = {}
        parameters = self._found.parameters
        for name, vectors in parameters.vectors.items():
            rank = self._state[name].dim()
            lengths = [Length(vectors[d], 0) if d in vectors else None for d in range(rank)]
            axes[name] = tuple(None if one is None else self._length(one) for one in lengths)
        for name, labels in parameters.elements.items():
            axes[name] = tuple(self._length(Length(labels, d)) for d in range(labels.dim()))
        return axes

    @property
    def open_sizes(self) -> list[OpenSize]:
        """Integer arguments that no patch of a layer's attribute looks after."""
        return self._open

    def _sort_rewrites(self) -> tuple[list[ModulePatch], list[OpenSize]]:
        """Module attributes that cover an integer argument, and the arguments left over."""
        patches: dict[tuple[str, str], int] = {}
        left = []
        for rewrite in self._found.record.rewrites:
            patch = self._patch_for(rewrite)
            axis = self._length(rewrite.length)
            if axis is None:
                continue
            if patch is None:
                left.append(OpenSize(module_path(rewrite.node), axis))
            else:
                patches[patch] = axis
        for size in self._found.record.sizes:
            axis = self._length(size.length)
            if axis is not None and hasattr(self._model.get_submodule(size.module), size.attribute):
                patches[size.module, size.attribute] = axis
        for layer in self._found.record.layers:
            patches.update(self._layer_patches(layer))
        for name, axes in self._tensor_axes.items():
            patches.update(self._size_patches(name, axes))
        return [ModulePatch(m, a, axis) for (m, a), axis in patches.items()], left

    def _patch_for(self, rewrite: Rewrite) -> tuple[str, str] | None:
        owner = owner_of(rewrite.node, self._exported, self._model)
        attribute = str(rewrite.path[0])
        if owner is None or attribute not in ("groups", "normalized_shape"):
            return None
        return (owner[0], attribute) if hasattr(owner[1], attribute) else None

    def _size_patches(
        self, tensor: str, axes: tuple[int | None, ...]
    ) -> dict[tuple[str, str], int]:
        path, _, leaf = tensor.rpartition(".")
        module = self._model.get_submodule(path)
        names = _size_attributes(module, leaf)
        pairs = zip(names, axes, strict=False)
        return {(path, n): a for n, a in pairs if n and a is not None and hasattr(module, n)}

    def _layer_patches(self, layer: Layer) -> dict[tuple[str, str], int]:
        if layer.weight is None or not layer.weight.endswith(".weight"):
            return {}
        path = self._exported.home(layer.weight, layer.node)
        module = self._model.get_submodule(path)
        sides = {
            ("in_channels", "in_features"): self._length(layer.reads),
            ("out_channels", "out_features", "embedding_dim"): self._length(layer.writes),
        }
        return {
            (path, name): axis
            for names, axis in sides.items()
            for name in names
            if axis is not None and hasattr(module, name)
        }

    def _resolve(self, rewrite: Rewrite, axes: Sequence[Axis]) -> Any:
        axis = self._length(rewrite.length)
        if axis is None or not axes[axis].can_change:
            return self._counted_from_start(rewrite)
        argument: Any = bound_arguments(rewrite.node).get(str(rewrite.path[0]))
        if len(rewrite.path) == 2 and isinstance(argument, (list, tuple)):
            argument = argument[int(rewrite.path[1])]
        if isinstance(argument, Node):  # a symbolic size: a multiple of the batch
            if not self._exported.follows_batch_alone(argument):
                raise InputError(f"size {argument} follows channels and the inputs' sizes at once")
            return {"batch": axis, "per": self._exported.batch}
        return {"axis": axis}

    def _counted_from_start(self, rewrite: Rewrite) -> int | None:
        """What a number of positions that all stay is, where it was counted from the end."""
        if rewrite.whole is None:
            return None
        atoms = self._found.atoms.along(rewrite.whole.labels, rewrite.whole.dim)
        shrinks = any(bool((part >= 0).any()) for part in atoms)
        return rewrite.length.labels.shape[rewrite.length.dim] if shrinks else None

    # ---- layers

    def _unique_layers(self) -> list[tuple[str, Layer]]:
        seen: Counter[str] = Counter()
        named = []
        for layer in self._found.record.layers:
            seen[layer.name] += 1
            times = seen[layer.name]
            named.append((layer.name if times == 1 else f"{layer.name}#{times}", layer))
        return named

    def _layer(self, index: int, named: tuple[str, Layer]) -> LayerPlan:
        name, layer = named
        geometry = layer.geometry
        tensors = tuple(n for n in (layer.weight, layer.bias) if n is not None)
        first = "#" not in name  # a shared weight counts once
        params = sum(self._state[n].numel() for n in tensors) if first else 0
        into, out = _map(geometry["in_map"]), _map(geometry["out_map"])
        reads, writes = self._length(layer.reads), self._length(layer.writes)
        size = [length.labels.shape[length.dim] for length in (layer.reads, layer.writes)]
        factors = [axis for f in layer.factors if (axis := self._length(f)) is not None]
        varying = int(np.prod([len(self._axes.first[a]) for a in factors], dtype=np.int64))
        batch = self._exported.batch
        # What does not depend on the inputs is computed once, however large the batch.
        macs = layer.macs * (1 if layer.node in self._exported.per_input else batch)
        spec = LayerSpec(
            name, index, layer.kind, size[0], size[1], geometry["kernel_size"],
            geometry["stride"], geometry["groups"], *into, *out, macs=macs // batch, params=params,
        )  # fmt: skip
        depthwise = layer.kind == "conv" and geometry["groups"] == size[0] > 1
        return LayerPlan(
            spec, macs // varying, tuple(factors), reads, writes,
            tensors if first else (), depthwise,
        )  # fmt: skip

    # ---- targets

    def build(self) -> IndexPlan:
        """Groups atoms to targets; which form slim networks take is left open (``choose_form``)."""
        axes, removed = self._axes, self._unproduced()
        while True:
            axes = self._axes.without(removed)
            groups = self._groups(axes)
            single = {atom for group in groups for atom in group if len(group) == 1}
            uneven = set() if single else _uneven(axes, groups)
            if not single and not uneven:
                break
            removed |= single | uneven
        targets = self._targets(axes, groups)
        return self._assemble(axes, groups, targets)

    def _unproduced(self) -> set[int]:
        """Atoms no layer writes: nothing would be saved in removing them."""
        produced: set[int] = set()
        for layer in self._layers:
            if layer.spec.kind != "matmul" and layer.out_axis is not None:
                produced |= self._atoms_in(layer.out_axis)
        everything = {a for axis in range(len(self._axes.first)) for a in self._atoms_in(axis)}
        return everything - produced

    def _atoms_in(self, axis: int) -> set[int]:
        both = np.concatenate([self._axes.first[axis], self._axes.second[axis]])
        return set(both[both >= 0].tolist())

    def _groups(self, axes: AtomAxes) -> list[list[int]]:
        """Atoms that occur equally often in every axis are units of one target."""
        signature: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for number, (first, second) in enumerate(zip(axes.first, axes.second, strict=True)):
            both = np.concatenate([first, second])
            atoms, times = np.unique(both[both >= 0], return_counts=True)
            for atom, count in zip(atoms.tolist(), times.tolist(), strict=True):
                signature[atom].append((number, count))
        groups: dict[tuple[tuple[int, int], ...], list[int]] = defaultdict(list)
        for atom in sorted(signature):
            groups[tuple(signature[atom])].append(atom)
        return self._by_position(axes, list(groups.values()))

    def _by_position(self, axes: AtomAxes, groups: list[list[int]]) -> list[list[int]]:
        """Groups in network order, their atoms in the order of the producing layer."""
        place: dict[int, tuple[int, int]] = {}
        for number, layer in enumerate(self._layers):
            if layer.spec.kind == "matmul" or layer.out_axis is None:
                continue
            for part in (axes.first, axes.second):
                for position, atom in enumerate(part[layer.out_axis].tolist()):
                    place.setdefault(atom, (number, position))
        ordered = [sorted(group, key=lambda a: place[a]) for group in groups]
        return sorted(ordered, key=lambda group: place[group[0]])

    def _targets(self, axes: AtomAxes, groups: list[list[int]]) -> tuple[Target, ...]:
        target_of = {atom: t for t, group in enumerate(groups) for atom in group}
        writes, reads = self._members(axes, target_of)
        names: Counter[str] = Counter()
        owners = Counter(writes[t][0] for t in range(len(groups)))
        targets = []
        for index, group in enumerate(groups):
            kind = self._kind(axes, group[0])
            name = writes[index][0]
            if owners[name] > 1 and kind != "channel":
                name = f"{name}.{kind}"
            names[name] += 1
            if names[name] > 1:
                name = f"{name}#{names[name]}"
            targets.append(
                Target(name, index, kind, len(group), writes[index], reads.get(index, ()))
            )
        return tuple(targets)

    def _members(
        self, axes: AtomAxes, target_of: dict[int, int]
    ) -> tuple[dict[int, tuple[str, ...]], dict[int, tuple[str, ...]]]:
        writes: dict[int, list[str]] = defaultdict(list)
        reads: dict[int, list[str]] = defaultdict(list)
        for layer in self._layers:
            if layer.spec.kind == "matmul":
                continue
            for axis, members in ((layer.out_axis, writes), (layer.in_axis, reads)):
                if axis is None:
                    continue
                atoms = np.unique(np.concatenate([axes.first[axis], axes.second[axis]])).tolist()
                for target in sorted({target_of[a] for a in atoms if a >= 0}):
                    members[target].append(layer.spec.name)
        freeze = [{t: tuple(dict.fromkeys(n)) for t, n in m.items()} for m in (writes, reads)]
        return freeze[0], freeze[1]

    def _kind(self, axes: AtomAxes, atom: int) -> str:
        """Rows of cells that a layer writes in bundles are heads, their columns head_dims."""
        role = int(self._found.atoms.roles[atom])
        written = [
            layer.out_axis
            for layer in self._layers
            if layer.out_axis is not None and layer.spec.kind != "matmul"
        ]
        bundled = any(
            ((axes.first[axis] == atom) | (axes.second[axis] == atom)).sum() > 1 for axis in written
        )
        return ("channel", "head", "head_dim")[role] if role and bundled else "channel"

    # ---- the plan

    def _assemble(
        self,
        axes: AtomAxes,
        groups: list[list[int]],
        targets: tuple[Target, ...],
    ) -> IndexPlan:
        unit = np.full(len(self._found.atoms.first) + 1, -1, dtype=np.int64)
        for number, atom in enumerate(a for group in groups for a in group):
            unit[atom] = number
        plan_axes = tuple(
            Axis(np.maximum(unit[a], unit[b]), np.minimum(unit[a], unit[b]))
            for a, b in zip(axes.first, axes.second, strict=True)
        )
        tensors = self._tensors()
        resolve = partial(self._resolve, axes=plan_axes)
        rewrites = self._found.record.rewrites
        writer = ProgramWriter(self._exported, self._model, rewrites, resolve)
        return IndexPlan(
            targets=targets,
            layers_plan=tuple(self._layers),
            frozen=self._frozen(targets),
            axes=plan_axes,
            tensors=tensors,
            aliases=_aliases(self._model, {t.name for t in tensors}),
            patches=tuple(self._patches),
            program=writer.write(),
            graph_targets=frozenset(),
            fixed_params=self._fixed_params(tensors),
            constants={name: write_constant(t) for name, t in writer.constants.items()},
            batch=self._exported.batch,
            dynamic_batch=self._exported.dynamic_batch,
        )

    def _tensors(self) -> tuple[TensorPlan, ...]:
        parameters = {id(p) for p in self._model.parameters()}
        plans = []
        for name, axes in self._tensor_axes.items():
            tensor = self._state[name]
            if any(axis is not None for axis in axes):
                shape = tuple(tensor.shape)
                plans.append(TensorPlan(name, shape, axes, id(tensor) in parameters))
        return tuple(plans)

    def _fixed_params(self, tensors: Sequence[TensorPlan]) -> int:
        total = sum(p.numel() for p in self._model.parameters())
        return total - sum(int(np.prod(t.shape)) for t in tensors if t.trainable)

    def _frozen(self, targets: tuple[Target, ...]) -> tuple[Frozen, ...]:
        """Layers that write no prunable channel, and unknown operators, with the reasons."""
        prunable = {name for target in targets for name in target.producers}
        frozen = [
            Frozen(layer.spec.name, self._reason(name, found))
            for (name, found), layer in zip(self._unique_layers(), self._layers, strict=True)
            if layer.spec.kind != "matmul" and name not in prunable
        ]
        unknown = [
            Frozen(where, f"unknown operator {operator}: what it reads stays, MACs not counted")
            for where, operator in dict.fromkeys(self._found.unknown)
        ]
        return (*frozen, *unknown, *self._unused())

    def _unused(self) -> list[Frozen]:
        """Layers that training may use (auxiliary heads) but the traced forward does not."""
        used = {
            id(self._exported.tensors[node.name][1])
            for node in self._exported.graph.find_nodes(op="placeholder")
            if node.users and node.name in self._exported.tensors
        }
        names = []
        for name, parameter in self._model.named_parameters():
            if id(parameter) not in used:
                owner, _, leaf = name.rpartition(".")
                names.append(owner if owner and leaf in ("weight", "bias") else name)
        return [
            Frozen(name, "not used by the forward in eval mode") for name in dict.fromkeys(names)
        ]

    def _reason(self, name: str, layer: Layer) -> str:
        if layer.opaque is not None:
            return layer.opaque
        atoms = self._found.atoms
        values = layer.writes.labels.numpy().reshape(-1)
        classes = np.unique(atoms.component[values[values >= 0]])
        for number in classes.tolist():
            if number in atoms.reasons:
                where, reason = atoms.reasons[number]
                return reason if where in (name, "output") else f"{reason} ({where})"
        if len(classes) <= 1:
            return "its channels only exist all together"
        return "its channels cannot be counted apart"


def _uneven(axes: AtomAxes, groups: list[list[int]]) -> set[int]:
    """Atoms of axes whose length is no polynomial in the kept counts."""
    unit = {atom: number for number, atom in enumerate(a for g in groups for a in g)}
    offsets = np.concatenate([[0], np.cumsum([len(g) for g in groups])]).astype(np.int64)
    bad: set[int] = set()
    for first, second in zip(axes.first, axes.second, strict=True):
        renamed = [np.array([unit.get(a, -1) for a in x.tolist()]) for x in (first, second)]
        try:
            count_axis(Axis(renamed[0].astype(np.int64), renamed[1].astype(np.int64)), offsets)
        except ValueError:
            bad |= set(second[second >= 0].tolist()) or set(first[first >= 0].tolist())
    return bad


def _state(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers under all their names."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def _aliases(model: nn.Module, known: set[str]) -> dict[str, str]:
    state = _state(model)
    canonical = {id(state[name]): name for name in known}
    return {
        name: canonical[id(tensor)]
        for name, tensor in state.items()
        if name not in known and id(tensor) in canonical
    }


def _size_attributes(module: nn.Module, leaf: str) -> tuple[str, ...]:
    """Attributes of a module that hold the sizes of a parameter's dimensions."""
    if leaf == "running_mean":
        return ("num_features",)
    if leaf != "weight":
        return ()
    if isinstance(module, nn.GroupNorm):
        return ("num_channels",)
    if isinstance(module, nn.PReLU):
        return ("num_parameters",)
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return ("num_features",)
    return ()


def _map(sizes: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of a feature map; tokens count as height."""
    if not sizes:
        return 1, 1
    if len(sizes) == 1:
        return int(sizes[0]), 1
    return int(np.prod(sizes[:-1])), int(sizes[-1])


def write_constant(tensor: Tensor) -> dict[str, Any]:
    """A small constant tensor as JSON."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    return {"dtype": dtype, "shape": list(tensor.shape), "values": tensor.reshape(-1).tolist()}
