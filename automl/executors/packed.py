"""What all packed layers share: the checks of a call, exactness about NaN, sizes.

A packed layer is a fully connected layer whose weight was brought into a format once. It is a
frozen data class of numpy arrays; calling it multiplies. A format is a small frozen data class of
settings with ``pack``; ``conf/executor`` has one YAML for each.

Zero weights are skipped, which differs from a dense product where an activation is NaN or
infinite, because 0 times those is NaN. Such inputs are rare and wrong, so they take the slow road:
the weight is unpacked and multiplied densely, and NaN comes out wherever dense would have it.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, ClassVar, Protocol, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from automl.executors.rows import Float32

#: Comparing with this is much faster than with ``np.float32``.
FLOAT32 = np.dtype(np.float32)


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
        if x.dtype != np.float32:
            raise TypeError(f"PackedLinear.x must be float32, got {x.dtype}")
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"PackedLinear.x must be (..., {self.in_features}), got {x.shape}")
        flat = np.ascontiguousarray(x).reshape(-1, self.in_features)
        if not all_finite(flat):
            y = self._multiply_densely(flat)
        elif len(flat) == 1:
            y = self.multiply(flat[0])
        else:
            y = self.multiply_batch(flat)
        return y.reshape(*x.shape[:-1], self.out_features)

    def _multiply_densely(self, x: Float32) -> Float32:
        with np.errstate(invalid="ignore", over="ignore"):
            return np.asarray(x @ self.to_dense().T + self.bias, np.float32)


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
    """Zeros that start at a cache line."""
    size = np.dtype(dtype).itemsize * count
    memory = np.zeros(size + 64, np.uint8)
    first = -memory.ctypes.data % 64
    return memory[first : first + size].view(dtype)


_memory = threading.local()


def scratch(count: int) -> Float32:
    """Room for at least ``count`` floats of any value, from the start of a cache line on.

    Kept by its thread, which may use it until it asks again: fresh memory costs a page fault for
    every 4 KiB of it.
    """
    held: Float32 | None = getattr(_memory, "floats", None)
    if held is None or len(held) < count:
        held = _memory.floats = aligned_zeros(count, np.float32)
    return held
