"""What a table is keyed by: an operator's signature, never the name of a layer.

Two layers of equal shape, in one network or in two, share an entry; and what is measured for one
network serves every other that calls the same operator.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Json = Any

#: Stands for a whole number in a skeleton (see :func:`flatten`).
_HOLE = "#"


@dataclass(frozen=True, slots=True, order=True)
class Signature:
    """One operator as it is executed.

    Attributes:
        kind: ``conv2d``, ``linear``, ``add``, ``scaled_dot_product_attention``, ...
        batch: Examples in a pass.
        in_channels: Channels or features read, over all groups.
        out_channels: Channels or features written.
        height: Rows of the input map (tokens for sequences, 1 where there is none).
        width: Columns of the input map (1 where there is none).
        kernel: Spatial kernel, () where there is none.
        stride: Spatial stride, () where there is none.
        groups: Convolution groups, 1 elsewhere.
        fused: Element-wise operators run on the result right away, such as ``("relu",)``; batch
            norms are folded and do not show.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        layout: ``contiguous`` or ``channels_last`` (of the input), else ``strided``.
        format: How the weights are executed: ``dense``, or an executor's name, as ``pell``,
            ``nm24`` or ``conv``.
        density: Fraction of weights stored, 1 for dense.
        detail: What else the call needs, as canonical JSON: padding, dilation and bias of
            convolutions and linears; the whole call of any other operator.
    """

    kind: str
    batch: int
    in_channels: int
    out_channels: int
    height: int
    width: int
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    groups: int = 1
    fused: tuple[str, ...] = ()
    dtype: str = "float32"
    layout: str = "contiguous"
    format: str = "dense"
    density: float = 1.0
    detail: str = "{}"

    def __str__(self) -> str:
        """For example ``conv2d 3x3/2 16->32 @32x32 relu``."""
        kernel = "x".join(map(str, self.kernel))
        stride = f"/{self.stride[0]}" if any(s > 1 for s in self.stride) else ""
        groups = f" groups={self.groups}" if self.groups > 1 else ""
        parts = [self.kind, f"{kernel}{stride}", f"{self.in_channels}->{self.out_channels}{groups}"]
        parts += [f"@{self.height}x{self.width}", *self.fused]
        if self.format != "dense":
            parts.append(f"{self.format} {self.density:g}")
        return " ".join(part for part in parts if part)


def canonical(value: Json) -> str:
    """JSON text that equal values share."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def flatten(signature: Signature) -> tuple[str, tuple[int, ...]]:
    """What stays and what may change with pruning: a skeleton, and the whole numbers in it.

    Returns:
        Canonical JSON with a hole for every whole number, and these numbers in order;
        :func:`fill` undoes it.
    """
    numbers: list[int] = []
    fields = [getattr(signature, name) for name in _FIELDS[:-1]]
    document = [*fields, json.loads(signature.detail)]
    return canonical(_emptied(document, numbers)), tuple(numbers)


def without_layout(skeleton: str) -> str:
    """The skeleton without what it says of how tensors lie in memory."""
    document = json.loads(skeleton)
    document[_FIELDS.index("layout")] = None
    return canonical(_laid_out_anyhow(document))


def _laid_out_anyhow(value: Json) -> Json:
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if not ("tensor" in value and k in _LAYOUTS)}
        return {key: _laid_out_anyhow(child) for key, child in kept.items()}
    return [_laid_out_anyhow(item) for item in value] if isinstance(value, list) else value


def holes_of_layout(skeleton: str) -> tuple[bool, ...]:
    """Whether a hole is of how tensors lie in memory, for each in order; the others are sizes."""
    found: list[bool] = []
    _look_for_layouts(json.loads(skeleton), False, found)
    return tuple(found)


def _look_for_layouts(value: Json, is_layout: bool, found: list[bool]) -> None:
    if value == _HOLE:
        found.append(is_layout)
    elif isinstance(value, dict):
        for key in sorted(value):
            inside = is_layout or ("tensor" in value and key in _LAYOUTS)
            _look_for_layouts(value[key], inside, found)
    elif isinstance(value, list):
        for item in value:
            _look_for_layouts(item, is_layout, found)


def fill(skeleton: str, numbers: Sequence[int]) -> Signature:
    """The signature of a skeleton with its holes filled."""
    source = iter(numbers)
    *fields, detail = _filled(json.loads(skeleton), source)
    values: list[Any] = [tuple(field) if isinstance(field, list) else field for field in fields]
    return Signature(**dict(zip(_FIELDS, [*values, canonical(detail)], strict=True)))


def _emptied(value: Json, numbers: list[int]) -> Json:
    if isinstance(value, bool) or not isinstance(value, int | list | tuple | dict):
        return value
    if isinstance(value, int):
        numbers.append(value)
        return _HOLE
    if isinstance(value, dict):
        return {key: _emptied(value[key], numbers) for key in sorted(value)}
    return [_emptied(item, numbers) for item in value]


def _filled(value: Json, numbers: Iterator[int]) -> Json:
    if value == _HOLE:
        return int(next(numbers))
    if isinstance(value, dict):
        return {key: _filled(value[key], numbers) for key in sorted(value)}
    if isinstance(value, list):
        return [_filled(item, numbers) for item in value]
    return value


#: How a tensor's layout is written down, where it is an argument.
_LAYOUTS = ("layout", "strides")
_FIELDS = tuple(Signature.__dataclass_fields__)
