"""From a signature back to a call that can be timed, on tensors of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from automl.cost.lut.signature import Signature
from automl.executors.latency_record import ACTIVATIONS, details
from automl.types import InputError

#: Where a recorded function may come from; nothing else is ever looked up or called.
_SOURCES: dict[str, Any] = {
    "torch.nn.functional": nn.functional,
    "torch.Tensor": Tensor,
    "torch.fft": torch.fft,
    "torch.functional": torch.functional,
    "torch.linalg": torch.linalg,
    "torch.special": torch.special,
    "torch": torch,
}
#: Of ``torch.functional``, which imports more than it defines.
_FUNCTIONAL = frozenset({
    "atleast_1d", "atleast_2d", "atleast_3d", "block_diag", "broadcast_tensors", "cartesian_prod",
    "cdist", "chain_matmul", "einsum", "meshgrid", "norm", "split", "stft", "tensordot", "unique",
})  # fmt: skip


@dataclass(frozen=True, eq=False)
class Replay:
    """An operator ready to run.

    Attributes:
        signature: Which one.
        call: Runs it; the result is dropped.
        size_bytes: What its tensors take.
    """

    signature: Signature
    call: Callable[[], Any]
    size_bytes: int


def replay(signature: Signature, device: torch.device) -> Replay:
    """Makes the operator of a signature, with random weights and inputs.

    Raises:
        InputError: This version cannot execute it.
    """
    if signature.format != "dense":
        if device.type != "cpu":
            raise InputError(f"cannot measure {signature}: executors run on the CPU")
        from automl.executors.latency_sparse import packed_call

        return Replay(signature, *packed_call(signature, _tail(signature)))
    with torch.inference_mode():
        if signature.kind.startswith("conv"):
            return _convolution(signature, device)
        if signature.kind == "linear":
            return _linear(signature, device)
        return _other(signature, device)


def _random(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    if not dtype.is_floating_point:
        return torch.zeros(tuple(shape), dtype=dtype, device=device)
    return torch.rand(tuple(shape), dtype=torch.float32, device=device).to(dtype)


def _convolution(signature: Signature, device: torch.device) -> Replay:
    detail, dtype = details(signature), getattr(torch, signature.dtype)
    into, out, groups = signature.in_channels, signature.out_channels, signature.groups
    weight_shape = [out, into // groups, *signature.kernel]
    after_padding = {"dilation": detail["dilation"], "groups": groups}
    if signature.kind.startswith("conv_transpose"):
        weight_shape = [into, out // groups, *signature.kernel]
        after_padding["output_padding"] = detail["output_padding"]
    data = _random([signature.batch, into, *_sizes(signature, detail)], dtype, device)
    weight = _random(weight_shape, dtype, device) - 0.5
    if signature.layout == "channels_last":
        data, weight = (t.to(memory_format=torch.channels_last) for t in (data, weight))
    bias = _random([out], dtype, device) if detail["bias"] else None
    function = getattr(nn.functional, signature.kind)
    stride, padding, tail = signature.stride, detail["padding"], _tail(signature)

    def call() -> Any:
        return tail(function(data, weight, bias, stride, padding, **after_padding))

    return _replay(signature, call, [data, weight])


def _sizes(signature: Signature, detail: dict[str, Any]) -> list[int]:
    """Depth, height and width of what a convolution reads, those that it has."""
    sizes = [signature.height, signature.width]
    return {1: sizes[:1], 2: sizes, 3: [detail.get("depth", 1), *sizes]}[len(signature.kernel)]


def _linear(signature: Signature, device: torch.device) -> Replay:
    detail, dtype = details(signature), getattr(torch, signature.dtype)
    shape = [signature.batch, *detail["lead"], signature.in_channels]
    data = _random(shape, dtype, device)
    weight = _random([signature.out_channels, signature.in_channels], dtype, device) - 0.5
    bias = _random([signature.out_channels], dtype, device) if detail["bias"] else None
    tail = _tail(signature)

    def call() -> Any:
        return tail(nn.functional.linear(data, weight, bias))

    return _replay(signature, call, [data, weight])


def _tail(signature: Signature) -> Callable[[Tensor], Tensor]:
    steps = []
    for label in signature.fused:
        if label not in ACTIVATIONS:
            raise InputError(f"cannot measure {signature}: unknown activation {label!r}")
        steps.append(ACTIVATIONS[label])
    if not steps:
        return lambda x: x
    if len(steps) == 1:
        return steps[0]

    def several(x: Tensor) -> Tensor:
        for step in steps:
            x = step(x)
        return x

    return several


def _other(signature: Signature, device: torch.device) -> Replay:
    detail = details(signature)
    made: list[Tensor] = []
    args = [_decode(value, device, made) for value in detail["args"]]
    kwargs = {name: _decode(value, device, made) for name, value in detail["kwargs"].items()}
    function = find_function(detail["call"])

    def call() -> Any:
        return function(*args, **kwargs)

    return _replay(signature, call, made)


def _replay(signature: Signature, call: Callable[[], Any], tensors: list[Tensor]) -> Replay:
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return Replay(signature, call, size)


#: Tensors' own operators, by which Python calls them.
_OPERATORS = frozenset(
    f"__{name}__"
    for base in (
        "add",
        "sub",
        "mul",
        "matmul",
        "truediv",
        "floordiv",
        "mod",
        "pow",
        "and",
        "or",
        "xor",
    )
    for name in (base, f"r{base}", f"i{base}")
) | {f"__{name}__" for name in ("getitem", "neg", "invert", "eq", "ne", "lt", "le", "gt", "ge")}


def find_function(name: str) -> Callable[..., Any]:
    """The torch function of a recorded name.

    Raises:
        InputError: It is not one of torch's.
    """
    if name.startswith("aten."):
        from automl.graph.program import find_target

        try:
            return find_target(name)
        except InputError as error:
            raise InputError(f"the table names {name!r}, which is no torch operator") from error
    source, _, attribute = name.rpartition(".")
    holder = _SOURCES.get(source)
    function = getattr(holder, attribute, None) if holder is not None else None
    # Of torch itself only what computes on tensors: neither load nor compile, nor files.
    of_tensors = holder is not torch or hasattr(torch._C._VariableFunctions, attribute)
    of_tensors &= holder is not torch.functional or attribute in _FUNCTIONAL
    hidden = attribute.startswith("_") and attribute not in _OPERATORS
    if not (callable(function) and of_tensors) or hidden or "file" in attribute:
        raise InputError(f"the table names {name!r}, which is no torch function")
    return function  # type: ignore[no-any-return]


def _decode(value: Any, device: torch.device, made: list[Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, device, made) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        tensor = _decode_tensor(value, device)
        made.append(tensor)
        return tensor
    if "tuple" in value:
        return tuple(_decode(item, device, made) for item in value["tuple"])
    if "slice" in value:
        return slice(*value["slice"])
    if "ellipsis" in value:
        return Ellipsis
    if "float" in value:
        return float(value["float"])
    return getattr(torch, value["torch"]) if "torch" in value else device


def _decode_tensor(value: dict[str, Any], device: torch.device) -> Tensor:
    shape, dtype = value["tensor"], getattr(torch, value["dtype"])
    strides = value.get("strides")
    if strides is not None:
        pairs = zip(shape, strides, strict=True)
        extent = 1 + sum((size - 1) * stride for size, stride in pairs)
        return _random([extent], dtype, device).as_strided(tuple(shape), tuple(strides))
    tensor = _random(shape, dtype, device)
    if value["layout"] == "channels_last":
        return tensor.to(memory_format=torch.channels_last)
    return tensor
