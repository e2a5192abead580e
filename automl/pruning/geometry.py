"""Which inputs the outputs of a convolution see, read off the operator that convolves."""

from __future__ import annotations

from dataclasses import dataclass

from automl.plan import Instruction


@dataclass(frozen=True)
class Geometry:
    """Which inputs a convolution's outputs see, one entry per spatial dimension.

    Attributes:
        kernel: Size.
        stride: Distance of outputs.
        padding: Zeros as ``F.pad`` takes them, last dimension first.
        dilation: Distance of taps.
        groups: Groups of channels.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


def geometry_of(step: Instruction, kernel: tuple[int, ...]) -> Geometry:
    """Of a convolution operator: (data, weight, bias, stride, padding, dilation, groups)."""
    names = ("stride", "padding", "dilation", "groups")
    given = dict(zip(names, step.args[3:], strict=False)) | dict(step.kwargs or {})

    def each(name: str, default: int) -> tuple[int, ...]:
        value = given.get(name, default)
        values = [value] if isinstance(value, int) else list(value)
        return tuple(values * len(kernel) if len(values) == 1 else values)

    padding = tuple(n for n in reversed(each("padding", 0)) for _ in range(2))
    return Geometry(
        kernel, each("stride", 1), padding, each("dilation", 1), int(given.get("groups", 1))
    )
