"""Convolutions on point clouds, computed at occupied voxels only.

A submanifold convolution (Graham et al., 2018, arXiv 1711.10275) has its outputs where its inputs
are, so that depth does not thicken the cloud; a strided one has them wherever its kernel reaches
an input. Weights are those of ``nn.Conv3d``, and so are the results, wherever there is an output:
everything that is not occupied is zero.

    x = SparseTensor(coordinates, features)
    y = SparseConv3d(32, 64, 2, stride=2)(SubmanifoldConv3d(4, 32)(x))
    y = y.with_features(torch.relu(y.features))

The kernel map is made when a tensor of coordinates is first convolved, and found again by all
layers with the same kernel until that tensor is gone (``kernel_map.py``). The arithmetic is in
``spconv3d_product.py``. All are operators of torch, ``prunepilot::sparse_conv3d``,
``strided_coordinates`` and ``cloud_mean``, so that networks train, export and trace.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from automl.executors.kernel_map import KernelMap, Triple, strided_map, submanifold_map
from automl.executors.spconv3d_product import multiply, weight_gradient


@dataclass(frozen=True, eq=False)
class SparseTensor:
    """Features of occupied voxels.

    Attributes:
        coordinates: int32, shape (voxels, 4): the cloud's number, x, y, z. In any order (sorted
            ones are read fastest), no two rows alike, and not to be changed in place.
        features: float32 or float64, shape (voxels, channels).
    """

    coordinates: Tensor
    features: Tensor

    def with_features(self, features: Tensor) -> SparseTensor:
        """Other features at the same voxels."""
        return replace(self, features=features)


# ---- operators


@torch.library.custom_op(
    "prunepilot::strided_coordinates",
    mutates_args=(),
    schema="(Tensor coordinates, int[] kernel, int[] stride, int[] padding) -> Tensor",
)
def strided_coordinates(
    coordinates: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """Where a strided convolution has outputs; see :func:`~.kernel_map.strided_map`."""
    return strided_map(coordinates, _triple(kernel), _triple(stride), _triple(padding))[1]


@strided_coordinates.register_fake
def _(coordinates: Tensor, kernel: Any, stride: Any, padding: Any) -> Tensor:
    count = torch.library.get_ctx().new_dynamic_size(min=1)
    return coordinates.new_empty((count, 4))


@torch.library.custom_op(
    "prunepilot::sparse_conv3d",
    mutates_args=(),
    schema="(Tensor features, Tensor coordinates, Tensor targets, Tensor weight, Tensor? bias, "
    "int[] stride, int[] padding, Tensor? pairs=None) -> Tensor",
)
def sparse_conv3d(
    features: Tensor,
    coordinates: Tensor,
    targets: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    pairs: Tensor | None = None,
) -> Tensor:
    """Convolves features of occupied voxels.

    Args:
        features: float32 or float64, shape (voxels, in_channels).
        coordinates: Their voxels, int32, shape (voxels, 4).
        targets: The outputs' voxels: ``coordinates`` themselves for a submanifold convolution
            (an empty ``stride``), else what :func:`strided_coordinates` gave.
        weight: Of the features' type, shape (out_channels, in_channels, x, y, z).
        bias: Likewise, shape (out_channels).
        stride: In x, y and z.
        padding: Likewise.
        pairs: Pairs of voxels of a cloud, by which MACs are counted; not used here.

    Raises:
        InputError: Two rows have the same coordinates, or they span too much.
        TypeError: Types are not as above.
        ValueError: Shapes are not.
    """
    _check(features, coordinates, weight, bias)
    found = _map(coordinates, targets, weight, stride, padding)
    return multiply(features, found, weight, bias)


@sparse_conv3d.register_fake
def _(
    features: Tensor, coordinates: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None,
    stride: Any, padding: Any, pairs: Tensor | None = None,
) -> Tensor:  # fmt: skip
    # Batch norm asks; an exported network therefore takes no empty cloud.
    torch._check(targets.shape[0] >= 1)  # type: ignore[no-untyped-call]
    return features.new_empty((targets.shape[0], weight.shape[0]))


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, coordinates, targets, weight, bias, stride, padding, _ = inputs
    ctx.save_for_backward(features, weight)
    ctx.has_bias = bias is not None
    ctx.geometry = coordinates, targets, stride, padding


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    features, weight = ctx.saved_tensors
    coordinates, targets, stride, padding = ctx.geometry
    found = _map(coordinates, targets, weight, stride, padding)
    wanted = ctx.needs_input_grad
    to_features = to_weight = to_bias = None
    if wanted[0]:
        transposed = weight.detach().transpose(0, 1)
        to_features = multiply(gradient, found.transposed, transposed, None)
    if wanted[3]:
        to_weight = weight_gradient(features.detach(), gradient, found, weight.shape)
    if ctx.has_bias and wanted[4]:
        to_bias = gradient.sum(0)
    return to_features, None, None, to_weight, to_bias, None, None, None


sparse_conv3d.register_autograd(_backward, setup_context=_remember)


def _check(features: Tensor, coordinates: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if features.dtype not in (torch.float32, torch.float64) or features.device.type != "cpu":
        found = f"{features.dtype} on {features.device}"
        raise TypeError(f"SparseTensor.features must be float32 or float64 on the CPU, got {found}")
    if any(one is not None and one.dtype != features.dtype for one in (weight, bias)):
        raise TypeError(f"SparseTensor.features must be {weight.dtype}, got {features.dtype}")
    if features.dim() != 2 or features.shape[1] != weight.shape[1]:
        shape = tuple(features.shape)
        raise ValueError(f"SparseTensor.features must be (voxels, {weight.shape[1]}), got {shape}")
    if len(features) != len(coordinates):
        rows = len(coordinates)
        raise ValueError(f"SparseTensor.features must have {rows} rows, got {len(features)}")


def _map(
    coordinates: Tensor, targets: Tensor, weight: Tensor, stride: Sequence[int],
    padding: Sequence[int],
) -> KernelMap:  # fmt: skip
    kernel = _triple(weight.shape[2:])
    if not stride:
        return submanifold_map(coordinates, kernel)
    found, made = strided_map(coordinates, kernel, _triple(stride), _triple(padding))
    if len(made) != len(targets):
        raise ValueError("sparse_conv3d.targets must be strided_coordinates of the same settings")
    return found


def _triple(values: int | Sequence[int]) -> Triple:
    x, y, z = (values,) * 3 if isinstance(values, int) else values
    return x, y, z


@torch.library.custom_op(
    "prunepilot::cloud_mean",
    mutates_args=(),
    schema="(Tensor features, Tensor coordinates, SymInt clouds) -> Tensor",
)
def cloud_mean(features: Tensor, coordinates: Tensor, clouds: int) -> Tensor:
    """The mean of the features of every cloud.

    Args:
        features: Shape (voxels, channels).
        coordinates: Their voxels, int32, shape (voxels, 4).
        clouds: How many clouds there are; those without voxels get zeros.

    Returns:
        Shape (clouds, channels).
    """
    cloud = coordinates[:, 0]
    sums = features.new_zeros((clouds, features.shape[1])).index_add_(0, cloud, features)
    return sums / _voxels(coordinates, clouds).to(sums)


@cloud_mean.register_fake
def _(features: Tensor, coordinates: Tensor, clouds: int) -> Tensor:
    return features.new_empty((clouds, features.shape[1]))


def _remember_clouds(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.coordinates, ctx.clouds = inputs[1:]


def _spread(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    each = gradient / _voxels(ctx.coordinates, ctx.clouds).to(gradient)
    return each.index_select(0, ctx.coordinates[:, 0]), None, None


cloud_mean.register_autograd(_spread, setup_context=_remember_clouds)


def _voxels(coordinates: Tensor, clouds: int) -> Tensor:
    """Voxels of every cloud, at least 1; shape (clouds, 1)."""
    return torch.bincount(coordinates[:, 0], minlength=clouds).clamp_min(1)[:, None]


# ---- layers


class _Conv3d(nn.Module):
    """What both convolutions share: the parameters of ``nn.Conv3d``.

    Attributes:
        weight: Shape (out_channels, in_channels, x, y, z).
        bias: Shape (out_channels), or None.
        pairs: Pairs of a read and a written voxel in a cloud, those of the first call and then a
            running mean over training, momentum 0.1: MACs of a cloud are so many matrix products.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int | Sequence[int], bias: bool
    ) -> None:
        super().__init__()
        self.kernel_size = _positive(type(self).__name__, "kernel_size", kernel_size)
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels < 1:
                raise ValueError(f"{type(self).__name__}.{name} must be >= 1, got {channels}")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, *self.kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.pairs: Tensor
        self.register_buffer("pairs", torch.zeros((), dtype=torch.float32))
        self.reset_parameters()

    def _convolve(
        self, x: SparseTensor, targets: Tensor, stride: Sequence[int], padding: Sequence[int]
    ) -> Tensor:
        """Features at the targets; counts pairs."""
        features: Tensor = sparse_conv3d(
            x.features, x.coordinates, targets, self.weight, self.bias, stride, padding, self.pairs
        )
        if not torch.compiler.is_compiling() and len(targets):
            self._count(_map(x.coordinates, targets, self.weight, stride, padding), x.coordinates)
        return features

    @torch.no_grad()
    def _count(self, found: KernelMap, coordinates: Tensor) -> None:
        known = float(self.pairs)
        if known and not self.training:
            return
        clouds = int(coordinates[:, 0].max()) + 1
        now = float(found.sizes.sum()) / clouds
        self.pairs.fill_(0.9 * known + 0.1 * now if known else now)

    def reset_parameters(self) -> None:
        """As ``nn.Conv3d`` does."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = (self.in_channels * math.prod(self.kernel_size)) ** -0.5
            nn.init.uniform_(self.bias, -bound, bound)

    def extra_repr(self) -> str:
        """Channels and kernel."""
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"


class SubmanifoldConv3d(_Conv3d):
    """A convolution whose outputs are at the voxels of its inputs.

    Equals ``nn.Conv3d(..., padding="same")`` of the dense grid at those voxels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int] = 3,
        bias: bool = True,
    ) -> None:
        """Makes the parameters; ``kernel_size`` is one number, or three for x, y and z."""
        super().__init__(in_channels, out_channels, kernel_size, bias)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Features (voxels, in_channels) to (voxels, out_channels), at the same coordinates."""
        return x.with_features(self._convolve(x, x.coordinates, [], []))


class SparseConv3d(_Conv3d):
    """A convolution with outputs wherever its kernel reaches an input.

    Equals ``nn.Conv3d`` of the dense grid, which has no border here: outputs may have negative
    coordinates, and ``padding`` only moves them.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int] = 2,
        stride: int | Sequence[int] = 2,
        padding: int | Sequence[int] = 0,
        bias: bool = True,
    ) -> None:
        """Makes the parameters; sizes are one number, or three for x, y and z."""
        super().__init__(in_channels, out_channels, kernel_size, bias)
        self.stride = _positive(type(self).__name__, "stride", stride)
        self.padding = _positive(type(self).__name__, "padding", padding, least=0)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Features (voxels, in_channels) to (outputs, out_channels), at the outputs' places."""
        stride, padding = list(self.stride), list(self.padding)
        targets = strided_coordinates(x.coordinates, list(self.kernel_size), stride, padding)
        return SparseTensor(targets, self._convolve(x, targets, stride, padding))

    def extra_repr(self) -> str:
        """Channels, kernel, stride and padding."""
        return f"{super().extra_repr()}, stride={self.stride}, padding={self.padding}"


def _positive(owner: str, name: str, value: int | Sequence[int], least: int = 1) -> Triple:
    sizes = [value] * 3 if isinstance(value, int) else list(value)
    if len(sizes) != 3 or any(type(size) is not int or size < least for size in sizes):
        raise ValueError(f"{owner}.{name} must be one or three numbers >= {least}, got {value}")
    return _triple(sizes)
