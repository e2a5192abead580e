"""``automl.compile``: a network whose layers run in the format that is fastest.

Every ``nn.Linear`` and ``nn.Conv2d`` is packed into the formats that can hold it, and all are run
in turn on the layer's own activations, torch's dense product among them, plain and with weights in
oneDNN's order. The fastest stays; a format that is not faster than dense by more than noise is not
worth having. Formats that round (bfloat16, int8, shared weights) are only tried when they are asked
for.

Layers that gain alone need not gain together: what is around them may want its data in another
order, and a small network is mostly calls. So the network made of the choices, the one made of the
clear gains alone, and one of fused steps (``automl.executors.fused``: sparse convolutions with the
depthwise convolutions, sums and ReLUs around them, in buffers that are kept) are timed beside the
best dense network there is (``baselines``), in turn. If none is faster by more than noise, that
dense network is the result, and the table says so.

Times are remembered by the layers' signatures, so that the same choice on the same machine is made
without measuring.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from automl.executors import baselines as dense_ways
from automl.executors import formats
from automl.executors.autotune import (
    DENSE,
    GAIN,
    SPCONV3D,
    Choice,
    PackedModule,
    Tuner,
    density_of,
)
from automl.executors.baselines import EAGER, NAMES, ONEDNN
from automl.executors.cache import evictor, last_level_cache
from automl.executors.latency import Latency, measure_latency
from automl.executors.memory import Memory
from automl.executors.spconv3d import SparseConv3d, SubmanifoldConv3d
from automl.executors.threads import torch_threads
from automl.executors.whole import Verdict, judge
from automl.hashing import digest
from automl.paths import cache_dir
from automl.types import InputError, is_whole

if TYPE_CHECKING:
    import pandas as pd

    from automl.executors.fused.network import FusedNetwork

__all__ = ["EXACT", "Choice", "CompiledModel", "PackedModule", "compile"]

#: Formats whose results differ from dense by the order of additions only.
EXACT = ("pell", "csc", "bitmap", "nm24", "spmm")

#: The network, and the layers in it, that run as fused steps.
FUSED = "fused"

#: Seconds to find out whether more threads help.
_THREADS_S = 1.0

#: A layer that gains this much is kept sparse even where others are not.
_CLEAR_GAIN = 1.5


class CompiledModel(nn.Module):
    """A network with packed layers; same inputs and outputs as the network it was made of.

    Attributes:
        network: What is run.
        dense: The fastest dense form of the network, to compare with; ``network`` itself where no
            sparse one is faster.
        choices: What was chosen for every layer.
        verdict: How whole networks compared.
        tried: What would have been chosen for every layer by itself.
        threads: CPU threads that torch's own operators take in it; packed layers take one.
    """

    def __init__(
        self,
        network: nn.Module,
        dense: nn.Module,
        example_inputs: tuple[Any, ...],
        choices: Sequence[Choice],
        verdict: Verdict,
        tried: Sequence[Choice],
        sparse: nn.Module | None,
        threads: int = 1,
    ) -> None:
        """Keeps the dense network beside it, to compare with."""
        super().__init__()
        self.network = network
        self.choices, self.tried = tuple(choices), tuple(tried)
        self.verdict, self.threads = verdict, threads
        # In a tuple: the weights of other networks are not this one's parameters.
        self._others = (dense, sparse)
        self._example_inputs = example_inputs

    @property
    def dense(self) -> nn.Module:
        """See the class."""
        return self._others[0]

    @property
    def sparse(self) -> nn.Module | None:
        """The fastest sparse network, used or not; None where no layer gains."""
        return self._others[1]

    def forward(self, *inputs: Any) -> Any:
        """Runs the network without recording gradients."""
        with torch.inference_mode(), torch_threads(self.threads):
            return self.network(*inputs)

    def latency(self, *, budget_s: float = 3.0, threads: int = 1) -> dict[str, Latency]:
        """Times the best dense and the compiled network in turn; ratios refer to the dense one.

        Raises:
            InputError: The network takes other than one tensor.
        """
        if len(self._example_inputs) != 1 or not isinstance(self._example_inputs[0], Tensor):
            raise InputError("latency() times networks of one input; time this one yourself")
        networks = {"dense": self.dense, "compiled": self.network}
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
                "dense_us": choice.dense_us,
                "us": choice.median_us.get(choice.format, float("nan")),
                "reason": choice.reason,
            }
            for choice in self.choices
        ]
        return pd.DataFrame(rows)


def compile(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Any],
    *,
    executors: Sequence[str] = EXACT,
    baselines: Sequence[str] = NAMES,
    threads: int = 1,
    remember: bool | str | os.PathLike[str] = True,
) -> CompiledModel:
    """Packs the layers of a network into the formats that run fastest here.

    Weights must be zero already (``automl.prune``, masks, or anyone's pruning). The choice is
    measured for the batch of the example, on one thread, with weights put out of the cache before
    each call if those of the whole network do not fit into it. The result is never slower than the
    best dense form of the network by more than noise.

    Args:
        model: A network on the CPU, left as it is.
        example_inputs: A tensor or the positional arguments of ``forward``.
        executors: Names from conf/executor to choose from for fully connected layers, beside
            dense; those that round are ``pell_bf16``, ``pell_int8``, ``pell_codebook``,
            ``pell_codebook_int8``, ``eie``, ``nm24_bf16`` and ``nm24_int8``. Convolutions have one
            sparse form, which is exact.
        baselines: Dense ways to compare with: ``eager``, ``channels_last``, ``onednn`` and, where
            it is installed, ``onnxruntime``.
        threads: CPU threads that torch's own operators may take: all of them, if that is measured
            to be faster than one, else one. Layers are chosen on one.
        remember: Whether to keep what is measured for the next time, in the user's cache; or the
            folder to keep it in.

    Returns:
        A module with the same inputs and outputs, for inference.

    Raises:
        InputError: An executor or a baseline is not known, a weight is not on the CPU, or
            ``threads`` is no number from 1 on.
    """
    if not is_whole(threads, 1):
        raise InputError(f"compile.threads must be >= 1, got {threads}")
    threads = int(threads)
    candidates = [formats.load(name) for name in executors if name != DENSE]
    _check_device(model)
    single = isinstance(example_inputs, Tensor)
    inputs = (example_inputs,) if single else tuple(example_inputs)
    memory = Memory(_folder(remember))
    folded = dense_ways.fold(copy.deepcopy(model).eval(), inputs)
    dense = dense_ways.dense_forms(folded, inputs, [EAGER, *baselines])
    prepare, is_cold = _preparation(folded)
    tuner = Tuner(candidates, prepare, is_cold, ONEDNN in dense, memory)
    choices, ways = _choose(tuner, folded, inputs)
    sparse = _sparse_networks(folded, choices, ways)
    fused = _fused(folded, inputs, choices, ways)
    if fused is not None:
        sparse[FUSED] = fused
    verdict = judge(dense, sparse, inputs, memory, _key(tuner, folded, inputs))
    best, candidate = dense[verdict.dense], sparse.get(verdict.candidate or "")
    if verdict.sparse is None:
        network, chosen = best, _reverted(choices, verdict)
    else:
        network, chosen = sparse[verdict.sparse], choices
    if verdict.sparse == "clear":
        chosen = [c if not c.is_sparse or _is_clear(c) else _left(c) for c in choices]
    if verdict.sparse == FUSED and fused is not None:
        chosen = [_in_fused(choice, fused) for choice in choices]
    clouds = _clouds(folded)
    chosen, tried = [*chosen, *clouds], [*choices, *clouds]
    count = _worthwhile_threads(network, inputs, threads)
    return CompiledModel(network, best, inputs, chosen, verdict, tried, candidate, count)


class _OnThreads(nn.Module):
    """A network with its own number of threads."""

    def __init__(self, network: nn.Module, count: int) -> None:
        super().__init__()
        self._network, self._count = network, count

    def forward(self, *inputs: Any) -> Any:
        with torch_threads(self._count):
            return self._network(*inputs)


def _worthwhile_threads(network: nn.Module, inputs: tuple[Any, ...], threads: int) -> int:
    """So many threads, or one if they are not faster by more than noise."""
    if threads == 1:
        return 1
    ways = {str(count): _OnThreads(network, count) for count in (1, threads)}
    found = measure_latency(ways, inputs, budget_s=_THREADS_S)
    return threads if found[str(threads)].ratio * GAIN <= 1 else 1


def _folder(remember: bool | str | os.PathLike[str]) -> str | os.PathLike[str] | None:
    if isinstance(remember, bool):
        return cache_dir() / "lut" if remember else None
    return remember


def _check_device(model: nn.Module) -> None:
    for name, weight in model.named_parameters():
        if weight.device.type != "cpu":
            raise InputError(f"{name} is on {weight.device}; executors run on the CPU: model.cpu()")


def _layers(network: nn.Module, inputs: tuple[Any, ...]) -> dict[str, tuple[Any, Tensor]]:
    return dense_ways.inputs_of_layers(network, inputs)


def _preparation(network: nn.Module) -> tuple[Callable[[], None], bool]:
    """What to do before each timed call: nothing, if the network's weights stay in the cache."""
    size = sum(weight.nbytes for weight in network.parameters())
    return (evictor(), True) if size > last_level_cache() else (_nothing, False)


def _nothing() -> None:
    pass


def _choose(
    tuner: Tuner, network: nn.Module, inputs: tuple[Any, ...]
) -> tuple[list[Choice], dict[str, nn.Module]]:
    """The choice of every layer, and the modules that replace layers, by name."""
    choices, ways = [], {}
    layers = _layers(network, inputs)
    needed = dense_ways.read_elsewhere(network, inputs, list(layers))
    for name, (module, x) in layers.items():
        choice, way = tuner.choose(name, module, x)
        if name in needed:
            choice, way = _needed(choice), None
        choices.append(choice)
        if way is not None:
            ways[name] = way
    return choices, ways


def _needed(choice: Choice) -> Choice:
    text = "the network reads its weight outside of the layer"
    return replace(choice, format=DENSE, reason=text, packed_bytes=choice.dense_bytes)


def _clouds(network: nn.Module) -> list[Choice]:
    """What is said of convolutions on point clouds: they are left as they are."""
    text = "runs on its own kernel, which skips offsets and channels without weights"
    found = []
    for name, module in network.named_modules():
        if isinstance(module, SubmanifoldConv3d | SparseConv3d):
            weight = module.weight.detach().numpy()
            size = sum(parameter.nbytes for parameter in module.parameters())
            about = (name, weight.shape, 1, density_of(weight))
            found.append(Choice(*about, SPCONV3D, text, {}, size, size))
    return found


def _key(tuner: Tuner, network: nn.Module, inputs: tuple[Any, ...]) -> str:
    """What the times of the whole network are remembered by."""
    shapes = [str(getattr(value, "shape", type(value))) for value in inputs]
    found = _layers(network, inputs).values()
    layers = [list(astuple(tuner.signature(m, x))) for m, x in found]
    return digest([repr(network), shapes, layers])


def _is_clear(choice: Choice) -> bool:
    return choice.is_sparse and choice.gain >= _CLEAR_GAIN


def _sparse_networks(
    network: nn.Module, choices: Sequence[Choice], ways: Mapping[str, nn.Module]
) -> dict[str, nn.Module]:
    """The networks to try: all choices, and clear gains alone where that is another one."""
    gaining = [choice.layer for choice in choices if choice.is_sparse]
    clear = [choice.layer for choice in choices if _is_clear(choice)]
    if not gaining:
        return {}
    sets = {"all": set(ways)}
    if clear and len(clear) < len(gaining):
        sets["clear"] = set(clear)
    return {
        name: dense_ways.with_replaced(network, {layer: ways[layer] for layer in chosen})
        for name, chosen in sets.items()
    }


def _fused(
    network: nn.Module,
    inputs: tuple[Any, ...],
    choices: Sequence[Choice],
    ways: Mapping[str, nn.Module],
) -> FusedNetwork | None:
    """The network with its convolutions fused with what is around them."""
    from automl.executors.fused.fuse import fuse

    linear = [c.layer for c in choices if c.is_sparse and len(c.shape) == 2]
    gaining = [c.layer for c in choices if c.is_sparse and len(c.shape) == 4]
    packed = {name: ways[name] for name in linear}
    try:
        return fuse(network, inputs, packed, gaining)
    except InputError:
        raise
    except Exception as error:  # one way fewer to run it, of several
        warnings.warn(
            f"the network is not run as fused steps: {type(error).__name__}: {error}", stacklevel=2
        )
        return None


def _in_fused(choice: Choice, fused: FusedNetwork) -> Choice:
    """The choice of a layer where the fused network is used."""
    size = fused.layers.get(choice.layer)
    if size is not None:
        reason = "fused with its neighbours"
        if choice.is_sparse:
            reason += f"; {choice.reason} alone"
        return replace(choice, format=FUSED, reason=reason, packed_bytes=size)
    if choice.is_sparse and len(choice.shape) != 2:
        return replace(choice, format=DENSE, packed_bytes=choice.dense_bytes)
    return choice


def _left(choice: Choice) -> Choice:
    text = f"the whole network is faster without: {choice.reason} alone"
    return replace(choice, format=DENSE, reason=text, packed_bytes=choice.dense_bytes)


def _reverted(choices: Sequence[Choice], verdict: Verdict) -> list[Choice]:
    """The choices where the whole is dense."""
    return [
        replace(c, format=DENSE, reason=verdict.reason, packed_bytes=c.dense_bytes)
        if c.is_sparse
        else replace(c, format=DENSE)
        for c in choices
    ]
