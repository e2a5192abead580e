"""The matrix that blocks and N:M patterns lie in: one row per output, inputs innermost.

A convolution's weight (out, into, *kernel) is seen as (out, taps, into): for every output and
every position of the kernel, the input channels side by side. That is the row of the matrix
product which a convolution becomes when images lie channels last, and what the executors read; a
group of neighbours never crosses from one position of the kernel to the next. Linear layers have
one tap.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def as_rows(weight: Tensor) -> Tensor:
    """(out, into, *kernel) to (out, taps, into)."""
    return weight.flatten(2).transpose(1, 2) if weight.dim() > 2 else weight[:, None]


def from_rows(rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Undoes :func:`as_rows`."""
    return rows.transpose(1, 2).reshape(shape).contiguous()


def padded(rows: Tensor, out: int, into: int, value: float) -> Tensor:
    """Rows with ``out`` and ``into`` filled up to multiples of these."""
    more = (-rows.shape[2] % into, -rows.shape[0] % out)
    return F.pad(rows, (0, more[0], 0, 0, 0, more[1]), value=value) if any(more) else rows
