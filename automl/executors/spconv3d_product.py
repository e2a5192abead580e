"""The arithmetic of sparse 3-D convolutions: gathered rows times matrices, added to other rows.

There are two roads:

- *fused*, for float32 with AVX-512: six pairs at a time, the sums of their products stay in
  registers over all input channels, rows are read and written where they are
  (``kernels/spconv3d.py``). Targets are cut into blocks that stay in the cache, so that sums go
  to memory once, and no offset's weights are loaded more often than once a block.
- *grouped*, for everything else: gather, torch's matrix product, add. Offsets with about equally
  many pairs share one batched product, padded to the largest, big ones go alone: the adaptive
  grouping of TorchSparse (Tang et al., 2022, arXiv 2204.10319, section 4.2). Its two thresholds,
  which they search for on the device, are fixed here (:func:`groups`).

Pruned weights: the fused road skips input channels without weights at an offset, one by one for
every panel of 64 output channels; the grouped road skips input channels without any weights. Both
skip offsets without weights and do not compute output channels without. Where features are NaN or
infinite, nothing is skipped, because 0 times those is NaN. Places that are not occupied are never
multiplied, whatever the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from automl.executors.kernel_map import BLOCK, KernelMap
from automl.executors.kernels import cpu
from automl.executors.kernels import spconv3d as kernels
from automl.executors.packed import all_finite
from automl.executors.rows import Float32

#: Columns are computed in panels of so many, and filled up to whole vectors.
_PANEL, _LANES = 64, 16

#: Output channels without weights are left out where so much of the columns is then enough.
_NARROW = 0.75

#: Largest share of a batched product that is padding, and pairs from which a product goes alone.
_PADDING, _ALONE = 0.25, 4096


@dataclass(frozen=True, eq=False)
class PackedKernel:
    """A kernel as the fused road reads it.

    Attributes:
        dense: The weight it was made of, shape (out_channels, in_channels, x, y, z).
        kept: Output channels that are computed.
        weight: See ``kernels.spconv3d.convolve``, with the three that follow.
        starts: See there.
        channels: See there.
        firsts: See there.
    """

    dense: Tensor
    kept: NDArray[np.int64]
    weight: Float32
    starts: NDArray[np.int64]
    channels: NDArray[np.int32]
    firsts: NDArray[np.int64]

    @property
    def columns(self) -> int:
        """Columns that are computed."""
        return -(-len(self.kept) // _LANES) * _LANES

    @property
    def skips(self) -> bool:
        """Whether weights are left out."""
        outputs, inputs = self.dense.shape[:2]
        listed = inputs * (len(self.firsts) - 1)
        return len(self.channels) < listed or len(self.kept) < outputs


def pack(weight: Tensor, *, skip: bool = True) -> PackedKernel:
    """Brings a kernel into the order in which it is read.

    Args:
        weight: float32, shape (out_channels, in_channels, x, y, z).
        skip: Whether zero weights may be left out.
    """
    outputs, inputs = weight.shape[:2]
    matrices = weight.detach().reshape(outputs, inputs, -1).permute(2, 1, 0).numpy()
    kept = np.flatnonzero(matrices.any(axis=(0, 1))) if skip else np.arange(outputs)
    if _vectors(len(kept)) > _NARROW * _vectors(outputs):
        kept = np.arange(outputs)
    wide = np.zeros((*matrices.shape[:2], _LANES * _vectors(len(kept))), np.float32)
    wide[..., : len(kept)] = matrices[..., kept]
    values, lists, starts, counts, base = [], [], [], [], 0
    for column in range(0, wide.shape[2], _PANEL):
        panel = wide[..., column : column + _PANEL]
        used = panel.any(axis=2) if skip else np.ones(panel.shape[:2], bool)
        listed = used.sum(axis=1)
        width = panel.shape[2]
        starts.append(base + width * (np.cumsum(listed) - listed))
        base += width * int(listed.sum())
        values.append(panel[used].ravel())
        lists.append(np.nonzero(used)[1].astype(np.int32))
        counts.append(listed)
    nothing = np.zeros(0, np.float32)
    return PackedKernel(
        dense=weight.detach().clone(),
        kept=kept,
        weight=np.concatenate([nothing, *values]),
        starts=np.array(starts, np.int64).reshape(-1, len(matrices)),
        channels=np.concatenate([nothing.astype(np.int32), *lists]),
        firsts=np.cumsum(np.concatenate([[0], *counts]), dtype=np.int64),
    )


def _vectors(channels: int) -> int:
    return -(-channels // _LANES)


_packed: Any = WeakTensorKeyDictionary()


def packed(weight: Tensor) -> PackedKernel:
    """The packed form of a weight, made again when the weight has changed in any way."""
    known: PackedKernel | None = _packed.get(weight)
    if known is None or not torch.equal(known.dense, weight):
        known = _packed[weight] = pack(weight)
    return known


def multiply(x: Tensor, kernel_map: KernelMap, weight: Tensor, bias: Tensor | None) -> Tensor:
    """y[target] = bias + sum of x[source] times the offset's matrix over all pairs of a map.

    Args:
        x: Features, float32 or float64, shape (rows, in_channels).
        kernel_map: Which rows.
        weight: Of the same type, shape (out_channels, in_channels, x, y, z).
        bias: Likewise, shape (out_channels).

    Returns:
        Shape (targets, out_channels).
    """
    if x.dtype == torch.float32 and cpu.supports(cpu.FLOATS):
        return _fused(x.detach(), kernel_map, packed(weight), bias)
    return multiply_grouped(x.detach(), kernel_map, weight.detach(), bias)


def _fused(x: Tensor, kernel_map: KernelMap, kernel: PackedKernel, bias: Tensor | None) -> Tensor:
    rows = x.contiguous().numpy()
    if kernel.skips and not all_finite(rows):
        kernel = pack(kernel.dense, skip=False)
    outputs, kept = len(kernel.dense), len(kernel.kept)
    start = np.zeros(outputs, np.float32) if bias is None else bias.detach().numpy()
    wide = np.zeros(kernel.columns, np.float32)
    wide[:kept] = start[kernel.kept]
    sums = np.empty((len(kernel_map.target_order), kernel.columns), np.float32)
    kernels.convolve(
        rows, sums, kernel_map.source, kernel_map.target, kernel_map.bounds,
        kernel_map.target_order, BLOCK, wide, kernel.weight, kernel.starts, kernel.channels,
        kernel.firsts,
    )  # fmt: skip
    if kept == outputs:
        return torch.from_numpy(sums[:, :outputs]).contiguous()
    y = np.empty((len(sums), outputs), np.float32)
    y[:] = start
    y[:, kernel.kept] = sums[:, :kept]
    return torch.from_numpy(y)


# ---- the grouped road


def groups(sizes: Sequence[int]) -> Iterator[list[int]]:
    """Offsets whose products are computed together, the largest first; empty ones are left out.

    A product goes alone if it has 4,096 pairs or more: it fills the processor by itself. A smaller
    one joins the larger ones before it as long as at most a quarter of the batch is padding.

    Args:
        sizes: Pairs of every offset.
    """
    order = sorted((o for o, size in enumerate(sizes) if size), key=lambda o: (-sizes[o], o))
    group: list[int] = []
    for offset in order:
        together = [*group, offset]
        room = sizes[together[0]] * len(together)
        filled = sum(sizes[one] for one in together)
        if group and (sizes[group[0]] >= _ALONE or filled < (1 - _PADDING) * room):
            yield group
            together = [offset]
        group = together
    if group:
        yield group


def multiply_grouped(
    x: Tensor, kernel_map: KernelMap, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """As :func:`multiply`, by gather, torch's matrix product, and add."""
    rows = x.contiguous()
    outputs, inputs = weight.shape[:2]
    matrices = weight.reshape(outputs, inputs, -1).permute(2, 1, 0)
    read, written, used = _needed(rows, matrices)
    whole = len(written) == outputs
    if len(read) < inputs:
        rows = rows[:, read].contiguous()
    matrices = matrices[:, read][:, :, written].contiguous()
    sums = x.new_zeros((len(kernel_map.target_order), outputs if whole else len(written)))
    sizes = np.where(used, kernel_map.sizes, 0).tolist()
    for group in groups(sizes):
        _add_products(rows, kernel_map, group, matrices, sums.numpy())
    y = sums
    if not whole:
        y = x.new_zeros((len(sums), outputs))
        y[:, written] = sums
    return y if bias is None else y.add_(bias.detach())


def _needed(x: Tensor, matrices: Tensor) -> tuple[Tensor, Tensor, NDArray[np.bool_]]:
    """Input channels, output channels and offsets that have weights; all where x is not finite."""
    offsets, inputs, outputs = matrices.shape
    if not bool(x.isfinite().all()):
        return torch.arange(inputs), torch.arange(outputs), np.ones(offsets, bool)
    there = matrices != 0
    read, written = there.any(2).any(0).nonzero()[:, 0], there.any(1).any(0).nonzero()[:, 0]
    return read, written, there.flatten(1).any(1).numpy()


def _add_products(
    x: Tensor, kernel_map: KernelMap, group: list[int], matrices: Tensor, y: NDArray[Any]
) -> None:
    """Adds the products of a group of offsets, padded to the largest."""
    pairs = [kernel_map.pairs(offset) for offset in group]
    panel = x.new_empty((len(group), len(pairs[0][0]), x.shape[1]))
    for rows, (source, _) in zip(panel.numpy(), pairs, strict=True):
        kernels.gather(x.numpy(), source, rows)
    products = torch.bmm(panel, matrices[group]).numpy()
    for rows, (_, target) in zip(products, pairs, strict=True):
        kernels.scatter_add(rows, target, y)


def weight_gradient(
    x: Tensor, gradient: Tensor, kernel_map: KernelMap, shape: torch.Size
) -> Tensor:
    """The gradient of a weight of ``shape``: per offset, read rows times gradients of written."""
    outputs, inputs = shape[:2]
    total = x.new_zeros((len(kernel_map.sizes), outputs, inputs))
    for offset, own in enumerate(total):
        source, target = (torch.from_numpy(rows) for rows in kernel_map.pairs(offset))
        if len(source):
            torch.mm(gradient.index_select(0, target).T, x.index_select(0, source), out=own)
    return total.permute(1, 2, 0).reshape(shape)
