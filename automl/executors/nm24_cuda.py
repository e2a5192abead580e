"""2:4 on NVIDIA GPUs, through torch's semi-structured tensors (CUTLASS or cuSPARSELt).

Fully connected layers multiply by the compressed weight as they are. Convolutions are products
too: of a 1 x 1 kernel with the image's positions as examples, of others with the image unfolded
(im2col), which costs memory traffic of its own and pays for wide layers only. The neighbours of 2:4
are then input channels at one place of the kernel, as ``automl.pruning.granularities`` prunes them.

Written with care, but not yet run on a device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from automl.types import InputError

#: First compute capability with sparse tensor cores (Ampere).
_CAPABILITY = (8, 0)
_DTYPES = (torch.float16, torch.bfloat16)

#: Sizes that the kernels of both libraries take.
_ROWS, _COLUMNS = 32, 64
#: Examples are filled up to a multiple of this.
_EXAMPLES = 8


def unsupported(device: torch.device | None = None) -> str | None:
    """Why 2:4 products cannot run on CUDA here, one phrase; None where they can."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    capability = torch.cuda.get_device_capability(device)
    if capability < _CAPABILITY:
        return f"compute capability {capability[0]}.{capability[1]} is below 8.0"
    if not hasattr(torch.sparse, "to_sparse_semi_structured"):
        return "this torch has no semi-structured tensors"
    return None


def unfit(layer: nn.Module) -> str | None:
    """Why a layer cannot be compressed; None where it can.

    Looks at the weight alone, on any device.
    """
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        return f"it is a {type(layer).__name__}"
    if layer.weight.dtype not in _DTYPES:
        return f"it is {layer.weight.dtype}; give float16 or bfloat16"
    if isinstance(layer, nn.Conv2d) and (layer.groups > 1 or layer.padding_mode != "zeros"):
        return "it has groups, or padding other than zeros"
    matrix = _matrix(layer)
    rows, columns = matrix.shape
    if rows % _ROWS or columns % _COLUMNS:
        return f"its {rows} x {columns} weight is no multiple of {_ROWS} x {_COLUMNS}"
    most = int((matrix.reshape(rows, -1, 4) != 0).sum(-1).max())
    return None if most <= 2 else f"it has {most} of 4 neighbours that are not zero"


def _matrix(layer: nn.Linear | nn.Conv2d) -> Tensor:
    """The weight with input channels side by side: (outputs, places of the kernel x inputs)."""
    weight = layer.weight.detach()
    return weight if weight.dim() == 2 else weight.permute(0, 2, 3, 1).reshape(len(weight), -1)


class SemiStructuredLinear(nn.Module):
    """A fully connected layer with a compressed weight, for inference."""

    def __init__(self, layer: nn.Linear) -> None:
        """Compresses.

        Raises:
            InputError: The layer does not fit, or there is no device for it.
        """
        super().__init__()
        self.weight, self.bias = _compress(layer), layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output; x has shape (..., in_features)."""
        flat = x.reshape(-1, x.shape[-1])
        return _product(flat, self.weight, self.bias).reshape(*x.shape[:-1], -1)


class SemiStructuredConv2d(nn.Module):
    """A convolution as a product with a compressed weight, for inference."""

    def __init__(self, layer: nn.Conv2d) -> None:
        """Compresses.

        Raises:
            InputError: The layer does not fit, or there is no device for it.
        """
        super().__init__()
        self.weight, self.bias = _compress(layer), layer.bias
        self._kernel, self._stride = layer.kernel_size, layer.stride
        self._padding, self._dilation = layer.padding, layer.dilation

    def forward(self, x: Tensor) -> Tensor:
        """The convolution's output, channels last in memory; x has shape (batch, C, H, W)."""
        columns, height, width = unfolded(
            x, self._kernel, self._stride, self._padding, self._dilation
        )
        y = _product(columns, self.weight, self.bias)
        return y.reshape(len(x), height, width, -1).permute(0, 3, 1, 2)


def unfolded(
    x: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any
) -> tuple[Tensor, int, int]:
    """im2col with input channels innermost.

    Args:
        x: Images, shape (batch, channels, height, width).
        kernel: Of the convolution, as ``nn.Conv2d`` has it; likewise the next three.
        stride: See ``kernel``.
        padding: See ``kernel``; numbers, no word.
        dilation: See ``kernel``.

    Returns:
        Shape (batch x height x width of the output, places x channels), and that height and width.
    """
    if kernel == (1, 1) and padding == (0, 0):
        taken = x[:, :, :: stride[0], :: stride[1]]
        return taken.permute(0, 2, 3, 1).reshape(-1, x.shape[1]), taken.shape[2], taken.shape[3]
    sizes = zip(x.shape[2:], kernel, stride, padding, dilation, strict=True)
    height, width = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes)
    columns = F.unfold(x, kernel, dilation, padding, stride)
    columns = columns.reshape(len(x), x.shape[1], kernel[0] * kernel[1], -1)
    return columns.permute(0, 3, 2, 1).reshape(len(x) * height * width, -1), height, width


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows = len(x)
    filled = F.pad(x, (0, 0, 0, -rows % _EXAMPLES)).contiguous()
    return F.linear(filled, weight, bias)[:rows]


def _compress(layer: nn.Linear | nn.Conv2d) -> Tensor:
    reason = unfit(layer) or unsupported(layer.weight.device)
    if reason is None and not layer.weight.is_cuda:
        reason = f"it is on {layer.weight.device}; model.cuda()"
    if reason is None and isinstance(layer, nn.Conv2d) and isinstance(layer.padding, str):
        reason = f"its padding is {layer.padding!r}; give numbers"
    if reason:
        raise InputError(f"this layer cannot run in 2:4 on CUDA: {reason}")
    compressed: Tensor = torch.sparse.to_sparse_semi_structured(_matrix(layer).contiguous())
    return compressed


def compress(model: nn.Module) -> dict[str, str]:
    """Replaces the layers of a network on CUDA that fit, in place.

    Returns:
        Name of every fully connected layer and convolution -> ``2:4``, or why it stays dense.
    """
    said: dict[str, str] = {}
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    for name, layer in layers:
        made = SemiStructuredLinear if isinstance(layer, nn.Linear) else SemiStructuredConv2d
        try:
            packed = made(layer)  # type: ignore[arg-type]
        except InputError as error:
            said[name] = str(error).partition(": ")[2]
            continue
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, packed)
        said[name] = "2:4"
    return said
