"""``automl.compile``: a network whose layers run in the format that is fastest.

Every ``nn.Linear`` and ``nn.Conv2d`` is packed into the formats that can hold it, and all are run
in turn on the layer's own activations, torch's dense product among them. The fastest stays; a
format that is not faster than dense by more than noise is not worth having. Formats that round
(bfloat16, int8, shared weights) are only tried when they are asked for. The rest of the network
stays as it is.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from automl.executors import formats
from automl.executors.cache import evictor, last_level_cache
from automl.executors.conv import SparseConv2d, pack_conv2d
from automl.executors.latency import Latency, measure_latency
from automl.executors.packed import Format, PackedLinear
from automl.types import InputError

if TYPE_CHECKING:
    import pandas as pd

#: Formats whose results differ from dense by the order of additions only.
EXACT = ("pell", "csc", "bitmap", "nm24", "spmm")

#: Convolutions with more of their weights are left dense without trying.
_DENSEST = 0.5

#: A format must be faster than dense by this factor.
_GAIN = 1.05
_ROUNDS = 9


Layer = nn.Linear | nn.Conv2d
Packed = PackedLinear | SparseConv2d


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen for one layer, and why.

    Attributes:
        layer: Name of the module.
        shape: Of the weight.
        batch: Examples (and places) of a fully connected layer, images of a convolution, that it
            was measured with.
        density: Fraction of the weights that are not zero.
        format: The format chosen.
        reason: One phrase.
        median_us: Format -> median time of one call, microseconds, ``dense`` included; empty
            where nothing was measured.
    """

    layer: str
    shape: tuple[int, ...]
    batch: int
    density: float
    format: str
    reason: str
    median_us: Mapping[str, float]


class PackedModule(nn.Module):
    """A packed layer in a network: float32 tensors on the CPU, inference only."""

    def __init__(self, packed: Packed) -> None:
        """Wraps a packed layer."""
        super().__init__()
        self.packed = packed

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output.

        Args:
            x: Shape (..., in_features), or (batch, in_channels, height, width).
        """
        return torch.from_numpy(self.packed(x.detach().numpy()))

    def extra_repr(self) -> str:
        """Format and size."""
        return f"{self.packed.name}, {self.packed.nbytes} bytes"


class CompiledModel(nn.Module):
    """A network with packed layers; same inputs and outputs as the network it was made of.

    Attributes:
        network: The network with its layers replaced.
        choices: What was chosen for every layer.
    """

    def __init__(
        self,
        network: nn.Module,
        dense: nn.Module,
        example_inputs: tuple[Any, ...],
        choices: Sequence[Choice],
    ) -> None:
        """Keeps the dense network beside it, to compare with."""
        super().__init__()
        self.network = network
        self.choices = tuple(choices)
        # In a tuple: the dense network's weights are not this one's parameters.
        self._dense = (dense,)
        self._example_inputs = example_inputs

    def forward(self, *inputs: Any) -> Any:
        """Runs the network without recording gradients."""
        with torch.inference_mode():
            return self.network(*inputs)

    def latency(self, *, budget_s: float = 3.0, threads: int = 1) -> dict[str, Latency]:
        """Times the dense and the compiled network in turn; ratios refer to the dense one.

        Raises:
            InputError: The network takes other than one tensor.
        """
        if len(self._example_inputs) != 1 or not isinstance(self._example_inputs[0], Tensor):
            raise InputError("latency() times networks of one input; time this one yourself")
        networks = {"dense": self._dense[0], "compiled": self.network}
        return measure_latency(
            networks, self._example_inputs[0], budget_s=budget_s, threads=threads
        )

    def table(self) -> pd.DataFrame:
        """One row per layer: sizes, density, format, times and the reason."""
        import pandas as pd

        rows = [
            {
                "layer": choice.layer,
                "shape": " x ".join(map(str, choice.shape)),
                "batch": choice.batch,
                "density": choice.density,
                "format": choice.format,
                "dense_us": choice.median_us.get("dense", float("nan")),
                "us": choice.median_us.get(choice.format, float("nan")),
                "reason": choice.reason,
            }
            for choice in self.choices
        ]
        return pd.DataFrame(rows)


def compile(
    model: nn.Module, example_inputs: Tensor | Sequence[Any], *, executors: Sequence[str] = EXACT
) -> CompiledModel:
    """Packs the layers of a network into the formats that run fastest here.

    Weights must be zero already (``automl.prune``, masks, or anyone's pruning). The choice is
    measured for the batch of the example, on one thread, with weights put out of the cache before
    each call if those of the whole network do not fit into it.

    Args:
        model: A network on the CPU, left as it is.
        example_inputs: A tensor or the positional arguments of ``forward``.
        executors: Names from conf/executor to choose from for fully connected layers, beside
            dense; those that round are ``pell_bf16``, ``pell_int8``, ``pell_codebook``, ``eie``
            and ``nm24_bf16``. Convolutions have one sparse form, which is exact.

    Returns:
        A module with the same inputs and outputs, for inference.

    Raises:
        InputError: An executor is not known, or a weight is not on the CPU.
    """
    candidates = [formats.load(name) for name in executors if name != "dense"]
    _check_device(model)
    single = isinstance(example_inputs, Tensor)
    inputs = (example_inputs,) if single else tuple(example_inputs)
    dense = copy.deepcopy(model).eval()
    network = copy.deepcopy(dense)
    seen = _activations(network, inputs)
    prepare = _preparation(dense)
    choices = []
    for name, (module, x) in seen.items():
        choice, packed = _choose(name, module, x, candidates, prepare)
        choices.append(choice)
        if packed is not None:
            network = _replaced(network, name, PackedModule(packed))
    return CompiledModel(network, dense, inputs, choices)


def _replaced(network: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """The network with one module replaced, which may be the whole of it."""
    if not name:
        return module
    parent, _, own = name.rpartition(".")
    setattr(network.get_submodule(parent), own, module)
    return network


def _check_device(model: nn.Module) -> None:
    for name, weight in model.named_parameters():
        if weight.device.type != "cpu":
            raise InputError(f"{name} is on {weight.device}; executors run on the CPU: model.cpu()")


def _activations(network: nn.Module, inputs: tuple[Any, ...]) -> dict[str, tuple[Layer, Tensor]]:
    """Layers that the example reaches, in that order, with what they are given."""
    seen: dict[str, tuple[Layer, Tensor]] = {}
    names = {m: n for n, m in network.named_modules() if type(m) in (nn.Linear, nn.Conv2d)}

    def note(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if isinstance(module, nn.Linear | nn.Conv2d) and arguments:
            seen[names[module]] = module, arguments[0].detach()

    hooks = [module.register_forward_pre_hook(note) for module in names]
    with torch.inference_mode():
        network(*inputs)
    for hook in hooks:
        hook.remove()
    return seen


def _preparation(network: nn.Module) -> Callable[[], None]:
    """What to do before each timed call: nothing, if the network's weights stay in the cache."""
    size = sum(weight.nbytes for weight in network.parameters())
    return evictor() if size > last_level_cache() else _nothing


def _nothing() -> None:
    pass


def _choose(
    name: str,
    module: Layer,
    x: Tensor,
    candidates: Sequence[Format],
    prepare: Callable[[], None],
) -> tuple[Choice, Packed | None]:
    """The fastest way to run one layer; None where that is torch's."""
    weight = module.weight.detach().numpy()
    density = float(np.count_nonzero(weight)) / weight.size
    batch = x.numel() // max(math.prod(x.shape[-1 if weight.ndim == 2 else -3 :]), 1)

    def choice(form: str, reason: str, times: Mapping[str, float]) -> Choice:
        return Choice(name, weight.shape, batch, density, form, reason, times)

    reason = _unfit(module, x, density)
    if reason:
        return choice("dense", reason, {}), None
    packed = _pack(module, candidates)
    calls: dict[str, Callable[[], object]] = {"dense": partial(module, x)}
    calls |= {form: partial(layer, x.numpy()) for form, layer in packed.items()}
    times = _median_us(calls, prepare)
    best = min(times, key=lambda form: times[form])
    gain = times["dense"] / times[best]
    if gain < _GAIN:
        return choice("dense", f"no format is {_GAIN:.2f} times as fast", times), None
    return choice(best, f"{gain:.1f} times as fast as dense", times), packed[best]


def _unfit(module: Layer, x: Tensor, density: float) -> str | None:
    """Why no format is tried; None where some are."""
    if module.weight.dtype != torch.float32 or x.dtype != torch.float32:
        return f"it is {module.weight.dtype}, not float32"
    if isinstance(module, nn.Linear):
        return None
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        return f"its padding is {module.padding_mode!r}, {module.padding!r}"
    return None if density <= _DENSEST else "more than half of its weights are left"


def _pack(module: Layer, candidates: Sequence[Format]) -> dict[str, Packed]:
    """The layer in every form that can hold it."""
    weight = module.weight.detach().numpy()
    bias = None if module.bias is None else module.bias.detach().numpy()
    if isinstance(module, nn.Linear):
        fitting = [form for form in candidates if form.unfit(weight) is None]
        return {form.name: form.pack(weight, bias) for form in fitting}
    packed = pack_conv2d(
        weight,
        bias,
        stride=_pair(module.stride),
        padding=(0, 0) if isinstance(module.padding, str) else _pair(module.padding),
        dilation=_pair(module.dilation),
        groups=module.groups,
    )
    return {packed.name: packed}


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    first, second = values
    return first, second


def _median_us(
    calls: Mapping[str, Callable[[], object]], prepare: Callable[[], None]
) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            for call in calls.values():
                call()
            for _ in range(_ROUNDS):
                for name, call in calls.items():
                    prepare()
                    start = time.perf_counter()
                    call()
                    times[name].append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return {name: 1e6 * statistics.median(own) for name, own in times.items()}
