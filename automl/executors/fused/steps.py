"""The steps of a fused network; each reads and writes values by their number."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from automl.executors.conv import SparseConv2d
from automl.executors.conv_plan import Pair
from automl.executors.depthwise import Depthwise
from automl.executors.kernels import conv, pool
from automl.executors.packed import PackedLinear
from automl.executors.rows import Float32

#: Tensors by the number of their value.
Values = list[Any]
#: Computes a value; returns whether it could: not where a number is NaN or infinite.
Call = Callable[[Values], bool]

_NOTHING = np.zeros(0, np.float32)


class Step(Protocol):
    """Something that is done with values.

    Attributes:
        reads: Numbers of values.
        writes: Number of its own.
    """

    reads: tuple[int, ...]
    writes: int

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of the buffer it fills; None where it makes a tensor of its own."""

    @property
    def floats(self) -> int:
        """Of working memory that it needs."""

    def bind(self, buffers: Mapping[int, Float32], memory: Float32) -> Call | None:
        """The step as a function, None where there is nothing to do.

        Args:
            buffers: Values that lie in buffers, which are looked up now.
            memory: Working memory.
        """


@dataclass(eq=False)
class Convolve:
    """A sparse convolution, with what stands before and behind it.

    Attributes:
        packed: The convolution.
        before: A depthwise convolution whose output it reads, or None.
        bounds: Least and largest number of the output, shape (2).
        reads: The images, and what is added to the output if anything is.
        writes: The output.
        batch: Images.
        size: Height and width of an image.
    """

    packed: SparseConv2d
    before: Depthwise | None
    bounds: Float32
    reads: tuple[int, ...]
    writes: int
    batch: int
    size: Pair

    def __post_init__(self) -> None:
        """Plans the convolution."""
        self._plan, self._arguments = self.packed.bind(self.size, self.before)

    @property
    def shape(self) -> tuple[int, ...]:
        """See ``Step``."""
        return (self.batch, self.packed.shape[0], *self._plan.output)

    @property
    def floats(self) -> int:
        """See ``Step``."""
        return self._plan.floats

    def bind(self, buffers: Mapping[int, Float32], memory: Float32) -> Call:
        """See ``Step``."""
        y, rest = buffers[self.writes], (self.bounds, memory, *self._arguments)
        if all(number in buffers for number in self.reads):
            x, other = _with_other([buffers[number] for number in self.reads])
            return _bound(conv.convolve, x, y, other, *rest)

        def run(values: Values) -> bool:
            x, other = _with_other([_array(values[number]) for number in self.reads])
            return bool(conv.convolve(x, y, other, *rest))

        return run


@dataclass(eq=False)
class _Buffered:
    """A step without working memory that fills a buffer from one.

    Attributes:
        reads: The value it reads, which must lie in a buffer.
        writes: The output.
        shape: Of the output.
    """

    reads: tuple[int, ...]
    writes: int
    shape: tuple[int, ...]
    floats = 0


@dataclass(eq=False)
class MaxPool(_Buffered):
    """Maxima of finite numbers.

    Attributes:
        window: Heights and widths of the window, its steps, and what is outside at first.
    """

    window: tuple[int, ...]

    def bind(self, buffers: Mapping[int, Float32], memory: Float32) -> Call:
        """See ``Step``."""
        return _bound(pool.max_pool, buffers[self.reads[0]], buffers[self.writes], *self.window)


@dataclass(eq=False)
class MeanPool(_Buffered):
    """Means of whole images."""

    def bind(self, buffers: Mapping[int, Float32], memory: Float32) -> Call:
        """See ``Step``."""
        y = buffers[self.writes].reshape(-1)
        return _bound(pool.mean_pool, buffers[self.reads[0]].reshape(len(y), -1), y)


@dataclass(eq=False)
class Multiply(_Buffered):
    """A fully connected layer.

    Attributes:
        layer: It, packed.
    """

    layer: PackedLinear

    def bind(self, buffers: Mapping[int, Float32], memory: Float32) -> Call:
        """See ``Step``."""
        x = buffers[self.reads[0]].reshape(-1, self.layer.in_features)
        y = buffers[self.writes].reshape(-1, self.layer.out_features)
        if len(x) == 1:
            return _bound(self.layer.multiply_into, x[0], y[0])
        return _bound(self.layer.multiply_batch_into, x, y)


@dataclass(eq=False)
class View(_Buffered):
    """The same numbers in another shape."""

    def bind(self, buffers: Mapping[int, Float32], memory: Float32) -> None:
        """See ``Step``; there is nothing to do."""


@dataclass(eq=False)
class Operate:
    """Anything else: a function of tensors.

    Attributes:
        function: What is called, with the values read.
        reads: Its arguments.
        writes: Its result.
    """

    function: Callable[..., Any]
    reads: tuple[int, ...]
    writes: int
    shape = None
    floats = 0

    def bind(self, buffers: Mapping[int, Float32], memory: Float32) -> Call:
        """See ``Step``."""

        def run(values: Values) -> bool:
            values[self.writes] = self.function(*(values[number] for number in self.reads))
            return True

        return run


def _bound(function: Callable[..., Any], *arguments: Any) -> Call:
    """One call with nothing to look up: a line of Python costs 10 us on cold caches."""
    return lambda values: function(*arguments) is not False


def _with_other(arrays: list[Any]) -> tuple[Any, Any]:
    """The images, and the numbers added to the output, flat; there may be none."""
    return arrays[0], arrays[1].reshape(-1) if len(arrays) > 1 else _NOTHING


def _array(value: Any) -> Any:
    return np.ascontiguousarray(value.numpy())
