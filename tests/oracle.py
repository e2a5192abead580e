"""What a pruned network has to compute, found without the code under test.

A network from which units were removed must equal the dense network in which everything that
*writes* those units is zero: output rows of weights, biases, affine parameters of norms. Nothing
that *reads* them is touched, so a reader that is aligned wrongly shows. Statistics over channels
(LayerNorm and its kin) are the one exception: they are taken over the channels that remain, which
:class:`RemainingStatistics` does by hand. All comparisons are made in float64.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from automl.plan import IndexPlan, TensorPlan

Units = list[list[int]]


# ---- networks worth comparing


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in float64 with weights that hide nothing.

    Freshly made networks have heads, last norms of blocks and layer scales of (nearly) zero, which
    would make any two networks agree.
    """
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("running_var"):
                tensor.copy_(
                    torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) + 0.5
                )
            elif name.endswith("running_mean") or isinstance(tensor, nn.Parameter):
                tensor.copy_(_random_like(name, tensor, generator))
    return model


def _random_like(name: str, tensor: Tensor, generator: torch.Generator) -> Tensor:
    if tensor.dim() < 2 and (name.endswith("weight") or "gamma" in name or "scale" in name):
        return _uniform(tensor, generator)
    fan_in = tensor.numel() / tensor.shape[0] if tensor.dim() > 1 else 25.0
    normal = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
    return normal * max(fan_in, 1.0) ** -0.5


def _uniform(tensor: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) + 0.5


def doubled(inputs: Any) -> Any:
    """Inputs with floating-point tensors in float64."""
    return tree_map(lambda x: x.double() if _is_float(x) else x, inputs)


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def random_units(plan: IndexPlan, seed: int, low: float = 0.3, high: float = 0.9) -> Units:
    """Scattered units of every target, a share between ``low`` and ``high`` of them."""
    random = np.random.default_rng(seed)
    kept = []
    for target in plan.targets:
        count = max(1, int(target.units * random.uniform(low, high)))
        kept.append(sorted(random.choice(target.units, count, replace=False).tolist()))
    return kept


# ---- the masked dense network


def masked_dense(
    model: nn.Module, plan: IndexPlan, kept_units: Sequence[Sequence[int]]
) -> nn.Module:
    """A copy of the dense network in which everything that writes a removed unit is zero."""
    masked = copy.deepcopy(model)
    alive = plan.alive(kept_units)
    state = dict(masked.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for tensor in plan.tensors:
            if tensor.name not in state:  # running statistics are not written by anything
                continue
            for dim in _written_dims(masked, plan, tensor, state[tensor.name]):
                axis = tensor.axes[dim]
                if axis is not None:
                    keep = torch.from_numpy(plan.axes[axis].mask(alive))
                    shape = [1] * len(tensor.shape)
                    shape[dim] = -1
                    state[tensor.name].mul_(keep.view(shape))
    return masked


def _written_dims(
    model: nn.Module, plan: IndexPlan, plan_of: TensorPlan, tensor: Tensor
) -> set[int]:
    """Dimensions of a parameter that its layers write; tied ones have several layers."""
    if tensor.dim() == 1:
        return {0}
    found: set[int] = set()
    for module in model.modules():
        for leaf, held in module._parameters.items():
            if held is tensor:
                found |= _written_by_class(module, leaf)
    if found:
        return found
    for layer in plan.layers_plan:  # x @ W with a parameter of the user's own
        if plan_of.name in layer.tensors and layer.spec.kind == "linear":
            return {dim for dim, axis in enumerate(plan_of.axes) if axis == layer.out_axis}
    return set(range(tensor.dim()))


def _written_by_class(module: nn.Module, leaf: str) -> set[int]:
    """What modules of PyTorch's own write, nothing if the class is not known."""
    if leaf == "in_proj_weight":
        return {0}
    if leaf != "weight":
        return set()
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return {0} if module.groups == module.in_channels else {1}
    if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
        return {0}
    return {1} if isinstance(module, nn.Embedding) else set()


class RemainingStatistics(TorchFunctionMode):
    """Takes statistics over channels from the channels that are not masked.

    A channel is masked if it is zero everywhere; the plan is not asked.
    """

    def __init__(self) -> None:
        super().__init__()
        self.used = False

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        by_hand = _BY_HAND.get(function)
        if by_hand is not None:
            result = by_hand(*args, **(kwargs or {}))
            if result is not None:
                self.used = True
                return result
        return function(*args, **(kwargs or {}))


def _present(x: Tensor, dim: int) -> Tensor:
    """1.0 for every position of ``dim`` that holds anything but zeros; broadcastable to x."""
    others = [d for d in range(x.dim()) if d != dim % x.dim()]
    return (x != 0).any(dim=tuple(others), keepdim=True).to(x.dtype) if others else (x != 0) * 1.0


def _affine(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor | None:
    if len(normalized_shape) != 1:
        return None
    there = _present(x, -1)
    mean = (x * there).sum(-1, keepdim=True) / there.sum()
    centred = (x - mean) * there
    variance = (centred**2).sum(-1, keepdim=True) / there.sum()
    return _affine(centred / (variance + eps) ** 0.5, weight, bias)


def _rms_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    mean = (x**2).sum(-1, keepdim=True) / _present(x, -1).sum()
    return _affine(x / (mean + eps) ** 0.5, weight, None)


def _group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    there = _present(x, 1).expand(x.shape)
    grouped = [t.reshape(x.shape[0], num_groups, -1) for t in (x, there)]
    values, mask = grouped
    count = mask.sum(-1, keepdim=True)
    mean = (values * mask).sum(-1, keepdim=True) / count
    centred = (values - mean) * mask
    variance = (centred**2).sum(-1, keepdim=True) / count
    y = (centred / (variance + eps) ** 0.5).reshape(x.shape)
    shape = [1, -1] + [1] * (x.dim() - 2)
    return _affine(
        y,
        None if weight is None else weight.view(shape),
        None if bias is None else bias.view(shape),
    )


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    """Where tokens are mixed, a masked channel is a row of zeros, to which no bias is added."""
    return _real_linear(x, weight, bias) * _present(x, -2) if x.dim() == 3 else None


def _softmax(x: Tensor, dim: int = -1, **_: Any) -> Tensor | None:
    """A masked head's attention is not uniform but nothing."""
    return torch.softmax(x, dim) * _present(x, 1) if x.dim() == 4 else None


_real_linear = F.linear


def _mean(x: Tensor, dim: Any = None, keepdim: bool = False, **_: Any) -> Tensor | None:
    """Means over one dimension, as in hand-written norms; only masked channels are all zero."""
    if isinstance(dim, (list, tuple)) and len(dim) == 1:
        dim = dim[0]
    if not isinstance(dim, int):
        return None
    there = _present(x, dim)
    return (x * there).sum(dim, keepdim=keepdim) / there.sum()


_BY_HAND: dict[Any, Callable[..., Tensor | None]] = {
    F.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    torch.rms_norm: _rms_norm,
    F.group_norm: _group_norm,
    torch.group_norm: _group_norm,
    F.linear: _linear,
    F.softmax: _softmax,
    Tensor.softmax: _softmax,
    torch.mean: _mean,
    Tensor.mean: _mean,
}


# ---- comparing


@dataclass(frozen=True)
class Comparison:
    """How a slim network relates to the masked dense one.

    Attributes:
        error: Largest difference of outputs, relative to the largest output.
        effect: The same between masked and dense network: what pruning changed at all.
        by_hand: Whether statistics over channels were taken by hand.
    """

    error: float
    effect: float
    by_hand: bool


def compare(
    slim: nn.Module,
    model: nn.Module,
    plan: IndexPlan,
    kept_units: Sequence[Sequence[int]],
    inputs: tuple[Any, ...],
) -> Comparison:
    """Runs slim, masked and dense network on the same inputs."""
    masked = masked_dense(model, plan, kept_units)
    statistics = RemainingStatistics()
    with torch.no_grad():
        found, dense = slim(*inputs), model(*inputs)
        with statistics:
            expected = masked(*inputs)
    return Comparison(
        relative_error(found, expected), relative_error(dense, expected), statistics.used
    )


def relative_error(found: Any, expected: Any) -> float:
    """Largest absolute difference over all output tensors, relative to the largest entry."""
    pairs = list(zip(_tensors(found), _tensors(expected), strict=True))
    assert pairs, "the network returns no tensors"
    worst = 0.0
    for a, b in pairs:
        assert a.shape == b.shape, f"{tuple(a.shape)} is not {tuple(b.shape)}"
        assert torch.isfinite(a).all() and torch.isfinite(b).all(), "output is not finite"
        worst = max(worst, float((a - b).abs().max()) / max(float(b.abs().max()), 1e-300))
    return worst


def _tensors(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]


def counted_macs(model: nn.Module, inputs: tuple[Any, ...]) -> int:
    """MACs of one example by PyTorch's own counter, which counts two operations each."""
    model = copy.deepcopy(model).requires_grad_(False)  # the counter hooks into gradients
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # fused kernels are not counted
    try:
        plain = sdpa_kernel(SDPBackend.MATH)
        with torch.no_grad(), plain, FlopCounterMode(display=False) as counter:
            model(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    batch = next(x.shape[0] for x in inputs if isinstance(x, Tensor) and x.dim() > 0)
    total, rest = divmod(counter.get_total_flops(), 2 * batch)
    assert rest == 0, "the batch does not divide the count"
    return total
