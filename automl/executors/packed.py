"""What all packed layers share: the checks of a call, exactness about NaN, sizes.

A packed layer is a fully connected layer whose weight was brought into a format once. It is a
frozen data class of numpy arrays; calling it multiplies. A format is a small frozen data class of
settings with ``pack``; ``conf/executor`` has one YAML for each.

Zero weights are skipped, which differs from a dense product where an activation is NaN or
infinite, because 0 times those is NaN. Such inputs are rare and wrong, so they take the slow road:
the weight is unpacked and multiplied densely, and NaN comes out wherever dense would have it.
"""

from __future__ import annotations

import mmap
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, ClassVar, Protocol, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from automl.executors.rows import Float32

#: Comparing with this is much faster than with ``np.float32``.
FLOAT32 = np.dtype(np.float32)

_LINE, _HUGE_PAGE = 64, 2**21


@dataclass(frozen=True, eq=False)
class PackedLinear(ABC):
    """A fully connected layer in some format.

    Attributes:
        in_features: Columns of the weight.
        bias: Added to the products, shape (out_features).
    """

    #: What packed files call the class; classes without one are not packed layers by themselves.
    kind: ClassVar[str]

    in_features: int
    bias: Float32

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the format, as in ``conf/executor``."""

    @property
    def out_features(self) -> int:
        """Rows of the weight."""
        return len(self.bias)

    @property
    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """All arrays by the name of their field."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays.values())

    @abstractmethod
    def to_dense(self) -> Float32:
        """The weight that is multiplied with, shape (out_features, in_features)."""

    @abstractmethod
    def multiply_into(self, x: Float32, y: Float32) -> bool:
        """Fills y with the layer's output for one contiguous example.

        Args:
            x: Shape (in_features).
            y: Shape (out_features).

        Returns:
            Whether it could: not where an activation is NaN or infinite.
        """

    def multiply_batch_into(self, x: Float32, y: Float32) -> bool:
        """The same for contiguous examples, shapes (batch, in_features) and (.., out_features)."""
        return all(
            self.multiply_into(example, output) for example, output in zip(x, y, strict=True)
        )

    def __call__(self, x: Float32) -> Float32:
        """Multiplies, as ``torch.nn.functional.linear`` does.

        Args:
            x: Activations, float32, shape (..., in_features), in any memory order.

        Returns:
            New array of shape (..., out_features).

        Raises:
            TypeError: The activations are not float32.
            ValueError: Their last dimension is not ``in_features``.
        """
        if x.dtype != FLOAT32:
            raise TypeError(f"PackedLinear.x must be float32, got {x.dtype}")
        shape = x.shape
        if not shape or shape[-1] != self.in_features:
            raise ValueError(f"PackedLinear.x must be (..., {self.in_features}), got {shape}")
        # Little Python: after a layer that filled the caches, each line of it takes 5 to 10 us.
        if len(shape) == 1:
            y = np.empty(len(self.bias), FLOAT32)
            return y if self.multiply_into(x, y) else self._multiply_densely(x)
        if x.size == self.in_features:
            y = np.empty(len(self.bias), FLOAT32)
            done = self.multiply_into(x.reshape(-1), y)
        else:
            flat = np.ascontiguousarray(x).reshape(-1, self.in_features)
            y = np.empty((len(flat), len(self.bias)), FLOAT32)
            done = self.multiply_batch_into(flat, y)
        if not done:
            y = self._multiply_densely(x)
        return y.reshape(*shape[:-1], len(self.bias))

    def _multiply_densely(self, x: Float32) -> Float32:
        with np.errstate(invalid="ignore", over="ignore"):
            return np.asarray(x @ self.to_dense().T + self.bias, np.float32)


class FiniteLinear(PackedLinear):
    """A layer whose kernels take finite activations only, which are checked beforehand."""

    @abstractmethod
    def multiply(self, x: Float32) -> Float32:
        """The layer's output for one finite, contiguous example.

        Args:
            x: Shape (in_features).

        Returns:
            Shape (out_features).
        """

    def multiply_batch(self, x: Float32) -> Float32:
        """The layer's outputs for finite, contiguous examples, shape (batch, in_features)."""
        y = np.empty((len(x), self.out_features), np.float32)
        for example, output in zip(x, y, strict=True):
            output[:] = self.multiply(example)
        return y

    def multiply_into(self, x: Float32, y: Float32) -> bool:
        """See ``PackedLinear``."""
        finite = all_finite(x)
        if finite:
            y[:] = self.multiply(x)
        return finite

    def multiply_batch_into(self, x: Float32, y: Float32) -> bool:
        """See ``PackedLinear``."""
        finite = all_finite(x)
        if finite:
            y[:] = self.multiply_batch(x)
        return finite


class Format(Protocol):
    """A way to pack fully connected layers."""

    @property
    def name(self) -> str:
        """Name of the format, as in ``conf/executor``."""

    def unfit(self, weight: ArrayLike) -> str | None:
        """Why a weight cannot be packed, as one phrase; None where it can."""

    def pack(self, weight: ArrayLike, bias: ArrayLike | None = None) -> PackedLinear:
        """Packs a layer.

        Args:
            weight: Shape (out_features, in_features), floating point; zeros are left out.
            bias: Shape (out_features).

        Raises:
            TypeError: An argument does not hold floating-point numbers.
            ValueError: Shapes are wrong, or the format cannot hold this weight.
        """


def all_finite(x: Float32) -> bool:
    """Whether a contiguous array holds neither NaN nor infinities."""
    return bool(_checker()(x.reshape(-1).view(np.uint32)))


@cache
def _checker() -> Callable[[NDArray[np.uint32]], bool]:
    """Imported on first use: names of formats are known without Numba."""
    from automl.executors.kernels import checks

    return cast("Callable[[NDArray[np.uint32]], bool]", checks.all_finite)


def aligned_zeros(count: int, dtype: type[np.generic]) -> NDArray[Any]:
    """Zeros that start at a cache line, large arrays in huge pages where the system has them.

    A kernel that reads weights once from front to back meets a page every 150 ns; with pages of
    4 KiB it would often wait for the table that says where they are.
    """
    size = np.dtype(dtype).itemsize * count
    if size < _HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        memory, align = np.zeros(size + _LINE, np.uint8), _LINE
    else:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        pages = mmap.mmap(-1, size + _HUGE_PAGE, flags=flags)
        with suppress(OSError):
            pages.madvise(mmap.MADV_HUGEPAGE)
        memory, align = np.frombuffer(pages, np.uint8), _HUGE_PAGE
    first = -memory.ctypes.data % align
    return memory[first : first + size].view(dtype)


def working_memory(count: int) -> Float32:
    """Room for at least ``count`` floats in huge pages, where the system has them.

    At least one page of them: a kernel that jumps between the rows of a panel would else wait for
    the table of small pages, and take half as long again.
    """
    return aligned_zeros(max(count, _HUGE_PAGE // 4), np.float32)


_memory = threading.local()


def scratch(count: int) -> Float32:
    """Room for at least ``count`` floats of any value, from the start of a cache line on.

    Kept by its thread, which may use it until it asks again: fresh memory costs a page fault for
    every 4 KiB of it.
    """
    held: Float32 | None = getattr(_memory, "floats", None)
    if held is None or len(held) < count:
        held = _memory.floats = working_memory(count)
    return held
