"""Calls of layers that can be refitted, and what their outputs run into."""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from automl.graph.fold import writes_dimension_one
from automl.graph.interpret import consumers
from automl.graph.program import references
from automl.plan import IndexPlan, Instruction, LayerPlan
from automl.pruning.geometry import Geometry, geometry_of
from automl.types import LayerSpec

_LAYERS = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d,
    nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
#: Operators of layers whose padding is an operator of its own: circular, reflected, replicated.
_CONVOLUTIONS = {f"aten.conv{dims}d.default": getattr(F, f"conv{dims}d") for dims in (1, 2, 3)}
_LINEAR = "aten.linear.default"
#: Names of a weight and its bias, None where there is none.
_Leaves = tuple[str, str | None]
_PASSING = ("aten.dropout.default", "aten.contiguous.default", "aten.alias.default")


@dataclass(frozen=True, eq=False)
class Site:
    """A call of a layer that can be refitted, and what its output runs into.

    Attributes:
        layer: The layer, at this call.
        path: Of the module that holds its weight.
        call: The instruction that calls it.
        padded: Whether what it reads has been padded already, by an operator of its own.
        leaves: The module's names of weight and bias where the module is not the layer itself but
            a function reads them, as attention does its ``in_proj_weight``; None where it is.
        norm: Batch norm right behind it, by path.
        sum_name: Instruction that adds a shortcut, None if there is none.
        shortcut: Name of the other operand.
        shortcut_needs: All steps the other operand depends on.
    """

    layer: LayerPlan
    path: str
    call: Instruction
    padded: bool
    leaves: _Leaves | None = None
    norm: str | None = None
    sum_name: str | None = None
    shortcut: str | None = None
    shortcut_needs: frozenset[str] = frozenset()

    @property
    def leaf(self) -> str:
        """The module's name of the weight."""
        return "weight" if self.leaves is None else self.leaves[0]

    @property
    def weight(self) -> str:
        """Name of the weight in the network."""
        return f"{self.path}.{self.leaf}" if self.path else self.leaf

    def module(self, network: nn.Module) -> Any:
        """The layer; where a function is, a linear layer over the network's own tensors."""
        holder = network.get_submodule(self.path)
        return holder if self.leaves is None else _linear_over(holder, *self.leaves)

    def modules(self, network: nn.Module) -> tuple[Any, Any]:
        """The layer and the batch norm behind it, None if there is none."""
        norm = None if self.norm is None else network.get_submodule(self.norm)
        return self.module(network), norm

    def outputs(self, layer: Any, inputs: Tensor) -> Tensor:
        """What the layer makes of the value that it reads in the program."""
        if not self.padded:
            found: Tensor = layer(inputs)
        else:
            settings = (layer.stride, 0, layer.dilation, layer.groups)
            convolve = _CONVOLUTIONS[self.call.target]
            found = convolve(inputs, layer.weight, layer.bias, *settings)
        return found


def find_sites(model: nn.Module, plan: IndexPlan) -> list[Site]:
    """The calls of convolutions and linear layers of a program, in execution order."""
    calls = _calls(model, plan)
    users = consumers(plan)
    steps = {i.name: i for i in plan.program}
    once = {path for path, found in calls.items() if len(found) == 1}
    sites = []
    for path, layers in _layers_by_path(plan).items():
        found = calls.get(path, [])
        if len(found) == len(layers) and isinstance(model.get_submodule(path), _LAYERS):
            sites += [
                Site(layer, path, call, padded=call.op == "call_function")
                for layer, call in zip(layers, found, strict=True)
            ]
    # A layer's own weight is fitted for the layer: fitted for a function too, by what the pruned
    # network reads, a small tied network came out a third worse.
    weights = {site.weight for site in sites}
    sites += [site for site in _functions(model, plan) if site.weight not in weights]
    order = {name: position for position, name in enumerate(steps)}
    followed = [_with_what_follows(model, site, users, steps, once) for site in sites]
    return sorted(followed, key=lambda site: order[site.call.name])


def _functions(model: nn.Module, plan: IndexPlan) -> list[Site]:
    """Linear layers that functions compute from parameters of any module."""
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    attributes = (i for i in plan.program if i.op == "get_attr")
    parameters = {i.name: i.target for i in attributes if i.target in names}
    calls: dict[str, list[tuple[Instruction, str | None]]] = {}
    for step in plan.program:
        if step.target == _LINEAR and not step.kwargs:
            read = [a["ref"] if isinstance(a, dict) else None for a in step.args[1:]]
            weight, bias = (*(parameters.get(name or "") for name in read), None)[:2]
            # Both of one module: a layer has its bias beside its weight.
            if weight is None or (bias is None) != (len(read) < 2 or read[1] is None):
                continue
            if bias is None or _holder(bias) == _holder(weight):
                calls.setdefault(weight, []).append((step, bias))
    sites = []
    layers = _layers_by_weight(plan)
    for weight, found in calls.items():
        if len(found) == len(layers.get(weight, ())):
            for layer, (step, bias) in zip(layers[weight], found, strict=True):
                leaves = (_leaf(weight), None if bias is None else _leaf(bias))
                sites.append(Site(layer, _holder(weight), step, padded=False, leaves=leaves))
    return sites


def _linear_over(holder: nn.Module, weight: str, bias: str | None) -> nn.Linear:
    """A linear layer whose parameters are those of another module, not copies."""
    tensor: Any = getattr(holder, weight)
    outputs, inputs = tensor.shape
    layer = nn.Linear(inputs, outputs, bias=False, device="meta")
    layer.weight = tensor
    if bias is not None:
        layer.bias = getattr(holder, bias)
    return layer


def _holder(name: str) -> str:
    """Path of the module that has a tensor."""
    return name.rpartition(".")[0]


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _layers_by_path(plan: IndexPlan) -> dict[str, list[LayerPlan]]:
    """Path of a convolution or linear layer -> it, once for every call, in execution order."""
    found: dict[str, list[LayerPlan]] = {}
    for layer in plan.layers_plan:
        if layer.spec.kind in ("conv", "linear"):
            found.setdefault(_path(layer), []).append(layer)
    return found


def _layers_by_weight(plan: IndexPlan) -> dict[str, list[LayerPlan]]:
    """Name of a linear layer's weight -> it, once for every call, in execution order."""
    found: dict[str, list[LayerPlan]] = {}
    for layer in plan.layers_plan:
        if layer.spec.kind == "linear" and layer.tensors:
            found.setdefault(layer.tensors[0], []).append(layer)
    return found


def _path(layer: LayerPlan) -> str:
    """Of the module: later calls of a layer are told apart by a number."""
    return layer.spec.name.partition("#")[0]


def not_refitted(model: nn.Module, plan: IndexPlan) -> list[str]:
    """Layers that may read pruned channels and are no sites, as functions call them."""
    sites = {site.layer.spec.name for site in find_sites(model, plan)}
    names = [
        _path(layer)
        for layer in plan.layers_plan
        if layer.spec.kind in ("conv", "linear")
        and layer.in_axis is not None
        and layer.spec.name not in sites
    ]
    return list(dict.fromkeys(names))


def _calls(model: nn.Module, plan: IndexPlan) -> dict[str, list[Instruction]]:
    """Path of a module -> the instructions that call it, or that convolve by its weight."""
    tensors = {i.name: i.target for i in plan.program if i.op == "get_attr"}
    calls: dict[str, list[Instruction]] = {}
    for step in plan.program:
        if step.op == "call_module":
            calls.setdefault(step.target, []).append(step)
        elif step.target in _CONVOLUTIONS and isinstance(step.args[1], dict):
            path, _, leaf = tensors.get(step.args[1].get("ref", ""), "").rpartition(".")
            if leaf == "weight" and path and _convolves_as(model.get_submodule(path), step):
                calls.setdefault(path, []).append(step)
    return calls


def _convolves_as(module: Any, step: Instruction) -> bool:
    """Whether an operator does what a module does, once its inputs are padded."""
    if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return False
    unpadded = (0,) * (2 * len(module.kernel_size))
    form = (module.kernel_size, module.stride, unpadded, module.dilation, module.groups)
    return geometry_of(step, module.kernel_size) == Geometry(*form)


def fitted_together(model: nn.Module, plan: IndexPlan) -> list[tuple[str, str]]:
    """Pairs of a program's instructions that are only fitted together.

    Layers, and the sums with shortcuts they repay; and layers, and whatever else reads a tensor
    that their refit writes: the batch norm that takes the intercept, layers with tied weights.
    """
    readers, pairs = _readers(model, plan), []
    for site in find_sites(model, plan):
        layer, norm = site.modules(model)
        written = [layer.weight, layer.bias, getattr(norm, "running_mean", None)]
        others = [name for tensor in written for name in readers.get(id(tensor), ())]
        others += [] if site.sum_name is None else [site.sum_name]
        pairs += [(site.call.name, name) for name in others if name != site.call.name]
    return pairs


def shared_tensors(model: nn.Module, plan: IndexPlan) -> dict[str, frozenset[str]]:
    """Weights and biases of sites that something else reads too, as tied ones.

    Returns:
        The site's call -> ``weight``, ``bias`` or both; sites that share nothing are left out.
    """
    readers, shared = _readers(model, plan), dict[str, frozenset[str]]()
    for site in find_sites(model, plan):
        layer = site.module(model)
        found = {
            leaf
            for leaf in ("weight", "bias")
            if set(readers.get(id(getattr(layer, leaf)), ())) - {site.call.name}
        }
        if found:
            shared[site.call.name] = frozenset(found)
    return shared


def _readers(model: nn.Module, plan: IndexPlan) -> dict[int, list[str]]:
    """Instructions that read each of a network's tensors, by its id."""
    users, found = consumers(plan), dict[int, list[str]]()
    for step in plan.program:
        if step.op == "call_module":
            module = model.get_submodule(step.target)
            tensors, names = [*module.parameters(), *module.buffers()], [step.name]
        elif step.op == "get_attr" and step.target not in plan.constants:
            tensors = [operator.attrgetter(step.target)(model)]
            names = [user.name for user in users[step.name]]
        else:
            continue
        for tensor in tensors:
            found.setdefault(id(tensor), []).extend(names)
    return found


def _with_what_follows(
    model: nn.Module,
    site: Site,
    users: dict[str, list[Instruction]],
    steps: dict[str, Instruction],
    once: set[str],
) -> Site:
    """The site with the norm and the sum that its output runs into."""
    last, norm = site.call, None
    while len(users[last.name]) == 1:
        user = users[last.name][0]
        # A norm that is called more than once cannot take an intercept of this layer's.
        if norm is None and user.target in once and _is_batchnorm(model, user, site.layer.spec):
            last, norm = user, user.target
        elif user.target in _PASSING or _is_dropout(model, user):
            last = user
        elif user.target in ("aten.add.Tensor", "aten.add_.Tensor") and not user.kwargs:
            other = [a["ref"] for a in user.args if isinstance(a, dict) and a != {"ref": last.name}]
            if len(other) == 1:
                needs = frozenset(_ancestors(steps, other[0]))
                found = replace(site, norm=norm, sum_name=user.name)
                return replace(found, shortcut=other[0], shortcut_needs=needs)
            break
        else:
            break
    return replace(site, norm=norm)


def _is_batchnorm(model: nn.Module, step: Instruction, layer: LayerSpec) -> bool:
    """Whether it is a batch norm over the layer's outputs that has a mean to write to."""
    if step.op != "call_module" or not writes_dimension_one(layer):
        return False
    statistics = getattr(model.get_submodule(step.target), "running_var", None)
    return statistics is not None and len(statistics) == layer.out_channels


def _is_dropout(model: nn.Module, step: Instruction) -> bool:
    return step.op == "call_module" and "Dropout" in type(model.get_submodule(step.target)).__name__


def _ancestors(steps: dict[str, Instruction], name: str) -> set[str]:
    """Everything a value depends on, itself included."""
    found: set[str] = set()
    queue = [name]
    while queue:
        current = queue.pop()
        if current not in found:
            found.add(current)
            queue += references([steps[current].args, steps[current].kwargs])
    return found
