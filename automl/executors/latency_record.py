"""Which operators a network executes, seen from outside: no tracing, whatever its forward does.

Every torch function that a forward calls is intercepted as it is called, so what is recorded (and
later measured) is what is deployed: batch norms folded away, activations in place or not, in the
user's own classes or in a graph module.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from automl.cost.lut.signature import Signature, canonical
from automl.types import InputError

#: Element-wise operators that belong to the convolution or linear layer whose result they read.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "relu_": torch.relu_,
    "relu6": lambda x: nn.functional.hardtanh(x, 0.0, 6.0),
    "relu6_": lambda x: nn.functional.hardtanh(x, 0.0, 6.0, inplace=True),
    "silu": nn.functional.silu,
    "silu_": lambda x: nn.functional.silu(x, inplace=True),
    "gelu": nn.functional.gelu,
    "hardswish": nn.functional.hardswish,
    "hardswish_": lambda x: nn.functional.hardswish(x, inplace=True),
    "hardsigmoid": nn.functional.hardsigmoid,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}
#: Convolutions and linear layers, and the order of their arguments.
_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = (
    "input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation",
)  # fmt: skip
_HEADS = {
    "linear": ("input", "weight", "bias"),
    **{f"conv{dims}d": _CONVOLUTION for dims in (1, 2, 3)},
    **{f"conv_transpose{dims}d": _TRANSPOSED for dims in (1, 2, 3)},
}
#: Calls that make or look at tensors without work of their own.
_IGNORED = frozenset({"sym_size", "size", "dim", "requires_grad_", "is_floating_point", "stride"})


class Unrecordable(ValueError):
    """A call that cannot be written down as plain data."""


@dataclass(eq=False)
class _Call:
    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    out: Any
    tail: list[str] = field(default_factory=list)


def record(network: nn.Module, inputs: Sequence[Tensor]) -> tuple[Signature, ...]:
    """The operators of one forward pass, in order.

    Args:
        network: In eval mode; run once.
        inputs: Arguments of its forward.

    Raises:
        InputError: It convolves point clouds.
        Unrecordable: An operator takes something that is neither tensor, number, text nor a
            container of these.
    """
    recorder = _Recorder()
    with torch.inference_mode(), recorder:
        network(*inputs)
    if any("sparse_conv3d" in call.name for call in recorder.calls):
        raise InputError(
            "latency tables cannot hold convolutions on point clouds, whose time depends on the "
            "cloud and not on its sizes; search with budget.macs or budget.params instead"
        )
    return tuple(_signature(call) for call in _fused(recorder.calls))


def weights_of(network: nn.Module, inputs: Sequence[Tensor]) -> tuple[tuple[str, ...], ...]:
    """All names of the parameter that each operator of :func:`record` multiplies by, if any."""
    names: dict[int, tuple[str, ...]] = {}
    for name, value in network.named_parameters(remove_duplicate=False):
        names[id(value)] = (*names.get(id(value), ()), name)
    recorder = _Recorder()
    with torch.inference_mode(), recorder:
        network(*inputs)
    found = []
    for call in _fused(recorder.calls):
        is_layer = kind_of(call.name) in _HEADS
        found.append(names.get(id(_given(call).get("weight")), ()) if is_layer else ())
    return tuple(found)


class _Recorder(TorchFunctionMode):
    """Notes every call that returns tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if any(True for _ in _tensors(out)):
            name = resolve_name(func) or str(func)
            self.calls.append(_Call(name, args, kwargs, out))
        return out


def _fused(calls: Sequence[_Call]) -> list[_Call]:
    """Calls with activations put to the convolution or linear layer right before them."""
    kept: list[_Call] = []
    for call in calls:
        kind = kind_of(call.name)
        if kind in _IGNORED:
            continue
        label = _activation(call)
        before = kept[-1] if kept else None
        if (
            label is not None
            and before is not None
            and kind_of(before.name) in _HEADS
            and call.args
            and call.args[0] is before.out
        ):
            before.tail.append(label)
            before.out = call.out
        else:
            kept.append(call)
    return kept


def kind_of(name: str) -> str:
    """``torch.nn.functional.conv2d`` and ``aten.conv2d.default`` are both conv2d."""
    parts = name.split(".")
    return parts[1] if parts[0] == "aten" else parts[-1]


def _activation(call: _Call) -> str | None:
    """The label of an activation, None for anything else."""
    kind, rest = kind_of(call.name), [*call.args[1:], *call.kwargs.values()]
    inplace = kind.endswith("_") or call.kwargs.get("inplace") is True
    settings = {key: value for key, value in call.kwargs.items() if key != "inplace"}
    kind = kind.rstrip("_")
    if kind == "hardtanh":
        numbers = [value for value in rest if isinstance(value, int | float)][:2]
        if [float(value) for value in numbers] != [0.0, 6.0]:
            return None
        kind, settings = "relu6", {}
    if settings.get("approximate") == "none":
        del settings["approximate"]
    label = f"{kind}_" if inplace else kind
    return label if label in ACTIVATIONS and not settings and len(call.args) <= 3 else None


# ---- signatures


def _signature(call: _Call) -> Signature:
    kind = kind_of(call.name)
    if kind in _HEADS:
        return _layer(kind, call)
    return _other(kind, call)


def _given(call: _Call) -> dict[str, Any]:
    """The arguments of a convolution or a linear layer, by name."""
    order = _HEADS[kind_of(call.name)]
    return dict(zip(order, call.args, strict=False)) | dict(call.kwargs)


def _layer(kind: str, call: _Call) -> Signature:
    """A convolution or a linear layer."""
    given = _given(call)
    data, weight = given["input"], given["weight"]
    spatial = weight.dim() - 2
    detail: dict[str, Any] = {"bias": given.get("bias") is not None}
    stride: tuple[int, ...] = ()
    if spatial:
        stride = _per_dim(given.get("stride", 1), spatial)
        padding = given.get("padding", 0)
        detail["padding"] = padding if isinstance(padding, str) else _per_dim(padding, spatial)
        detail["dilation"] = _per_dim(given.get("dilation", 1), spatial)
    else:
        detail["lead"] = list(data.shape[1:-1])  # between batch and features
    if spatial == 3:
        detail["depth"] = int(data.shape[2])
    groups = int(given.get("groups", 1))
    out, into = int(weight.shape[0]), int(weight.shape[1]) * groups
    if kind.startswith("conv_transpose"):
        out, into = into, out
        detail["output_padding"] = _per_dim(given.get("output_padding", 0), spatial)
    height, width = _extent(data, spatial)
    return Signature(
        kind=kind,
        batch=int(data.shape[0]) if data.dim() > 1 else 1,  # one row alone has no batch
        in_channels=into,
        out_channels=out,
        height=height,
        width=width,
        kernel=tuple(weight.shape[2:]),
        stride=stride,
        groups=groups,
        fused=tuple(call.tail),
        dtype=_plain_dtype(data.dtype),
        layout=_layout(data),
        detail=canonical(detail),
    )


def _per_dim(value: Any, dims: int) -> tuple[int, ...]:
    values = [int(v) for v in value] if isinstance(value, list | tuple) else [int(value)]
    return tuple(values * dims if len(values) == 1 else values)


def _extent(data: Tensor, spatial: int) -> tuple[int, int]:
    if spatial == 0:
        return int(data.shape[1:-1].numel()), 1
    sizes = [int(size) for size in data.shape[2:]]
    return (sizes[0], 1) if spatial == 1 else (sizes[-2], sizes[-1])


def _other(kind: str, call: _Call) -> Signature:
    """Any other operator, with all that it takes to call it again."""
    out = next(_tensors(call.out))
    reads = next(_tensors([list(call.args), list(call.kwargs.values())]), out)
    encoded = {
        "call": call.name,
        "args": [encode(value) for value in call.args],
        "kwargs": {name: encode(value) for name, value in call.kwargs.items()},
    }
    first = reads[0] if reads.dim() else reads  # a scalar, as the parameter of a layer scale
    height, width = _extent(reads, 2) if reads.dim() == 4 else (int(first.numel()), 1)
    if reads.dim() not in (0, 4) and reads.shape[-1:].numel():
        height //= max(1, int(reads.shape[-1]))
    return Signature(
        kind=kind,
        batch=int(reads.shape[0]) if reads.dim() else 1,
        in_channels=_channels(reads),
        out_channels=_channels(out),
        height=height,
        width=width,
        dtype=_plain_dtype(reads.dtype),
        layout=_layout(reads),
        detail=canonical(encoded),
    )


def _channels(tensor: Tensor) -> int:
    if tensor.dim() == 0:
        return 1
    return int(tensor.shape[1] if tensor.dim() == 4 else tensor.shape[-1])


def _plain_dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _layout(tensor: Tensor) -> str:
    if tensor.is_contiguous():
        return "contiguous"
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return "channels_last"
    return "strided"


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


# ---- calls as plain data


def encode(value: Any) -> Any:
    """An argument as JSON; :func:`decode` makes one like it.

    Raises:
        Unrecordable: It is of a kind that cannot be written down.
    """
    if isinstance(value, Tensor):
        return _encode_tensor(value)
    if isinstance(value, torch.Size | tuple):
        return {"tuple": [encode(item) for item in value]}
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, slice):
        return {"slice": [value.start, value.stop, value.step]}
    if value is Ellipsis:
        return {"ellipsis": True}
    if isinstance(value, torch.dtype | torch.memory_format | torch.layout):
        return {"torch": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": True}
    if isinstance(value, float) and not math.isfinite(value):  # what masks are filled with
        return {"float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise Unrecordable(f"an argument of type {type(value).__name__} cannot be written down")


def _encode_tensor(tensor: Tensor) -> dict[str, Any]:
    layout = _layout(tensor)
    encoded: dict[str, Any] = {"tensor": list(tensor.shape), "dtype": _plain_dtype(tensor.dtype)}
    if layout == "strided":
        # The stride of a dimension of one element means nothing, and would look like a size.
        pairs = zip(tensor.shape, tensor.stride(), strict=True)
        encoded["strides"] = [0 if size == 1 else stride for size, stride in pairs]
    else:
        encoded["layout"] = layout
    return encoded


def details(signature: Signature) -> dict[str, Any]:
    """What ``Signature.detail`` holds."""
    document: dict[str, Any] = json.loads(signature.detail)
    return document
