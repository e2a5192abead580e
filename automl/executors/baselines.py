"""The ways to run a dense network: what a sparse one has to beat.

``eager`` is torch as it is, ``channels_last`` the same with images and weights channels last,
``onednn`` has the weights of convolutions and fully connected layers in oneDNN's own order from
the start, and ``onnxruntime`` is another engine, where it is installed. In all of them batch norms
are folded away beforehand. The best of these on a network is the honest baseline.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from automl.executors import onnx_runtime
from automl.graph.fold import batchnorm_pairs, fold_batchnorm
from automl.graph.trace import trace
from automl.hints import did_you_mean
from automl.types import InputError

EAGER, CHANNELS_LAST, ONEDNN, ONNX_RUNTIME = "eager", "channels_last", "onednn", "onnxruntime"

#: All ways, the plainest first.
NAMES = (EAGER, CHANNELS_LAST, ONEDNN, ONNX_RUNTIME)

_FOLD_S = 60.0


def dense_forms(
    network: nn.Module, inputs: Sequence[Any], names: Sequence[str] = NAMES
) -> dict[str, nn.Module]:
    """A network in every way that fits it, ``eager`` always among them.

    Args:
        network: In eval mode, batch norms folded; left as it is.
        inputs: Arguments of its forward.
        names: Which ways to try.

    Returns:
        Name -> a module with the same outputs; ways that this network or installation does not
        allow are missing.

    Raises:
        InputError: A name is not known.
    """
    for name in names:
        if name not in NAMES:
            raise InputError(f"no baseline is called {name!r}; {did_you_mean(name, NAMES)}")
    forms: dict[str, nn.Module] = {EAGER: network}
    with torch.inference_mode():
        for name in names:
            made = _MAKERS[name](network, inputs) if name != EAGER else None
            if made is not None:
                forms[name] = made
    return forms


def fold(network: nn.Module, inputs: Sequence[Any]) -> nn.Module:
    """The network with batch norms folded into the layers before them, where it can be traced."""
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    if not any(isinstance(module, norms) for module in network.modules()):
        return network
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # About pruning it, which nobody will.
            plan = trace(network, inputs, deadline_s=_FOLD_S).plan
    except InputError:
        return network
    return fold_batchnorm(network, batchnorm_pairs(plan))


class PrepackedConv2d(nn.Module):
    """A convolution whose weight lies as oneDNN wants it."""

    def __init__(self, layer: nn.Conv2d, example: Tensor) -> None:
        """Reorders the weight for inputs like the example."""
        super().__init__()
        padding = (0, 0) if isinstance(layer.padding, str) else layer.padding
        self._geometry = (list(padding), list(layer.stride), list(layer.dilation), layer.groups)
        self._bias = None if layer.bias is None else layer.bias.detach()
        self._weight = torch.ops.mkldnn._reorder_convolution_weight(
            layer.weight.detach(), *self._geometry, list(example.shape)
        )

    def forward(self, x: Tensor) -> Tensor:
        """The convolution's output."""
        out: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self._weight, self._bias, *self._geometry, "none", [], ""
        )
        return out


class PrepackedLinear(nn.Module):
    """A fully connected layer whose weight lies as oneDNN wants it."""

    def __init__(self, layer: nn.Linear, example: Tensor) -> None:
        """Reorders the weight for as many examples as the example has."""
        super().__init__()
        rows = max(example.numel() // max(layer.in_features, 1), 1)
        self._bias = None if layer.bias is None else layer.bias.detach()
        weight = layer.weight.detach()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, rows)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._weight, self._bias, "none", [], ""
        )
        return out


def prepack(layer: nn.Module, example: Tensor) -> nn.Module | None:
    """A layer with its weight in oneDNN's order; None where oneDNN does not take it.

    Args:
        layer: The layer, left as it is.
        example: What it is given.
    """
    if not torch._C._has_mkldnn or example.dtype != torch.float32:
        return None
    try:
        with torch.inference_mode():
            made = _prepacked(layer, example)
            if made is not None:
                made(example)
    except (RuntimeError, AttributeError):  # This build of torch lacks an operator.
        return None
    return made


def _prepacked(layer: nn.Module, example: Tensor) -> nn.Module | None:
    if type(layer) is nn.Linear:
        return PrepackedLinear(layer, example)
    if type(layer) is not nn.Conv2d or example.dim() != 4:
        return None
    plain = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return PrepackedConv2d(layer, example) if plain else None


def replace(network: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """The network with one module replaced in place, which may be the whole of it."""
    if not name:
        return module
    parent, _, own = name.rpartition(".")
    setattr(network.get_submodule(parent), own, module)
    return network


def with_replaced(network: nn.Module, ways: Mapping[str, nn.Module]) -> nn.Module:
    """A copy of the network with modules replaced by name; it shares all other weights."""
    shared = {id(tensor): tensor for tensor in [*network.parameters(), *network.buffers()]}
    copied = copy.deepcopy(network, shared)
    for name, module in ways.items():
        copied = replace(copied, name, module)
    return copied


Seen = dict[str, tuple[nn.Module, Tensor]]


def inputs_of_layers(network: nn.Module, inputs: Sequence[Any]) -> Seen:
    """Fully connected layers and convolutions that the example reaches, in that order.

    Returns:
        Name -> the module and what it is given.
    """
    seen: Seen = {}
    names = {m: n for n, m in network.named_modules() if is_plain(m)}

    def note(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if arguments:
            seen[names[module]] = module, arguments[0].detach()

    hooks = [module.register_forward_pre_hook(note) for module in names]
    with torch.inference_mode():
        network(*inputs)
    for hook in hooks:
        hook.remove()
    return seen


def is_plain(module: nn.Module) -> bool:
    """Whether a module is a layer and no more: something else in its place would drop the rest."""
    if type(module) not in (nn.Linear, nn.Conv2d) or "forward" in vars(module):
        return False
    # Those of torch's own make the weight, and change nothing else.
    before = module._forward_pre_hooks.values()
    own = all(type(hook).__module__.startswith("torch.nn.utils.") for hook in before)
    return own and not module._forward_hooks


class _Opaque(nn.Module):
    """A layer that does what it did and shows nothing of itself, as packed ones do."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self._layer = (layer,)

    def forward(self, *inputs: Any) -> Any:
        return self._layer[0](*inputs)


def read_elsewhere(
    network: nn.Module, inputs: Sequence[Any], names: Sequence[str]
) -> frozenset[str]:
    """Layers that the network needs for more than to call them, as ``self.head.weight.new_ones``.

    Args:
        network: The network; left as it is.
        inputs: Arguments of its forward.
        names: Layers that something else is to stand for.

    Returns:
        Those among them without which the network does not run.
    """

    def runs(chosen: Sequence[str]) -> bool:
        opaque = {name: _Opaque(network.get_submodule(name)) for name in chosen}
        try:
            with torch.inference_mode():
                with_replaced(network, opaque)(*inputs)
        except AttributeError:
            return False
        return True

    return frozenset() if runs(names) else frozenset(n for n in names if not runs([n]))


class _ChannelsLast(nn.Module):
    """A network whose images and weights lie channels last."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, *inputs: Any) -> Any:
        return self.network(*(_channels_last(value) for value in inputs))


def _channels_last(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dim() == 4:
        return value.contiguous(memory_format=torch.channels_last)
    return value


def _as_channels_last(network: nn.Module, inputs: Sequence[Any]) -> nn.Module | None:
    images = any(isinstance(value, Tensor) and value.dim() == 4 for value in inputs)
    return _ChannelsLast(copy.deepcopy(network)) if images else None


def _as_onednn(network: nn.Module, inputs: Sequence[Any]) -> nn.Module | None:
    copied = copy.deepcopy(network)
    found = 0
    layers = inputs_of_layers(copied, inputs)
    needed = read_elsewhere(copied, inputs, list(layers))
    for name, (module, x) in layers.items():
        packed = None if name in needed else prepack(module, x)
        if packed is not None:
            copied, found = replace(copied, name, packed), found + 1
    return copied if found else None


def _as_onnx_runtime(network: nn.Module, inputs: Sequence[Any]) -> nn.Module | None:
    single = len(inputs) == 1 and isinstance(inputs[0], Tensor)
    if not single or inputs[0].dtype != torch.float32 or not onnx_runtime.installed():
        return None
    try:
        # Exporting does not work on inference tensors.
        with torch.inference_mode(False), torch.no_grad():
            made = onnx_runtime.OnnxRuntime(network, inputs[0].detach().clone())
        same = torch.allclose(made(inputs[0]), network(inputs[0]), rtol=1e-2, atol=1e-3)
    except Exception:  # Of its many kinds, all mean that it does not take this network.
        return None
    return made if same else None


_MAKERS: dict[str, Callable[[nn.Module, Sequence[Any]], nn.Module | None]] = {
    CHANNELS_LAST: _as_channels_last,
    ONEDNN: _as_onednn,
    ONNX_RUNTIME: _as_onnx_runtime,
}
