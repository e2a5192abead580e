"""Folds batch norm into the convolution or linear layer before it, for inference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from automl.graph.interpret import consumers
from automl.plan import IndexPlan
from automl.types import LayerSpec

_FOLDABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def batchnorm_pairs(plan: IndexPlan) -> tuple[tuple[str, str], ...]:
    """Paths of (layer, module right behind it) where nothing else reads the layer's output.

    Modules that run more than once, and those a tensor of which something else reads, are left out:
    folding one call would change the others.
    """
    users = consumers(plan)
    read = _read_by_name(plan)
    layers = {layer.spec.name: layer.spec for layer in plan.layers_plan}
    calls = [step.target for step in plan.program if step.op == "call_module"]
    pairs = []
    for step in plan.program:
        if step.op != "call_module" or calls.count(step.target) > 1:
            continue
        if step.target in layers and not writes_dimension_one(layers[step.target]):
            continue
        following = users[step.name]
        if len(following) == 1 and following[0].op == "call_module":
            behind = following[0].target
            apart = not any(_is_in(name, step.target) or _is_in(name, behind) for name in read)
            once = calls.count(behind) == 1 and apart
            if once and following[0].args[0] == {"ref": step.name}:
                pairs.append((step.target, behind))
    return tuple(pairs)


def _read_by_name(plan: IndexPlan) -> set[str]:
    """Tensors that the program reads itself, under all their names."""
    read = {step.target for step in plan.program if step.op == "get_attr"}
    shared = {plan.aliases.get(name, name) for name in read}
    return read | shared | {name for name, first in plan.aliases.items() if first in shared}


def _is_in(tensor: str, module: str) -> bool:
    """Whether a tensor is found below a module, by path."""
    return tensor.startswith(f"{module}.")


def fold_batchnorm(model: nn.Module, pairs: tuple[tuple[str, str], ...]) -> nn.Module:
    """A network that computes the same in eval mode, without the batch norms that can be folded.

    Modules and tensors that are not folded are shared with ``model``.

    Args:
        model: A dense or slim network whose batch norms are in eval mode.
        pairs: What :func:`batchnorm_pairs` says of its plan.
    """
    replaced: dict[int, nn.Module] = {}
    for layer_path, norm_path in pairs:
        layer, norm = model.get_submodule(layer_path), model.get_submodule(norm_path)
        if _can_fold(layer, norm):
            replaced[id(layer)] = _folded(layer, norm)
            replaced[id(norm)] = nn.Identity()
    return _with(model, replaced, {})


def writes_dimension_one(layer: LayerSpec) -> bool:
    """Whether outputs lie where batch norm has its channels; of linear layers on tokens, not."""
    return layer.kind != "linear" or layer.out_height * layer.out_width == 1


def _can_fold(layer: Any, norm: Any) -> bool:
    if type(layer) not in _FOLDABLE or type(norm) not in _NORMS or norm.running_var is None:
        return False
    return len(norm.running_var) == len(layer.weight)  # else of a linear layer on one token


@torch.no_grad()
def _folded(layer: Any, norm: Any) -> nn.Module:
    """``norm(layer(x))`` as one layer: weights times gamma / sigma, and a bias."""
    scale: Tensor = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    bias = -norm.running_mean if layer.bias is None else layer.bias - norm.running_mean
    bias = bias * scale
    if norm.bias is not None:
        bias = bias + norm.bias
    weight = layer.weight * scale.view(-1, *[1] * (layer.weight.dim() - 1))
    clone: nn.Module = _shallow(layer)
    clone._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
    clone._parameters["bias"] = nn.Parameter(bias, requires_grad=False)
    return clone


def _with(
    module: nn.Module, replaced: dict[int, nn.Module], made: dict[int, nn.Module]
) -> nn.Module:
    """The module tree with some modules replaced; what holds none of them is shared."""
    if id(module) in replaced:
        return replaced[id(module)]
    if id(module) not in made:
        children = {
            name: None if child is None else _with(child, replaced, made)
            for name, child in module._modules.items()
        }
        if all(children[name] is child for name, child in module._modules.items()):
            made[id(module)] = module
        else:
            clone = _shallow(module)
            clone.__dict__["_modules"] = children
            made[id(module)] = clone
    return made[id(module)]


def _shallow(module: Any) -> Any:
    clone = object.__new__(type(module))
    clone.__dict__.update(module.__dict__)
    clone.__dict__["_parameters"] = dict(module._parameters)
    clone.__dict__["_buffers"] = dict(module._buffers)
    return clone
