"""Networks with zeros inside layers as they are deployed: each layer in its fastest format."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from automl.cost.latency import Times
from automl.cost.sparse_latency import DENSE, Executed, MaskedCounts, SparseOperators, SparseSum
from automl.executors.baselines import is_plain, read_elsewhere, with_replaced
from automl.executors.latency_networks import Deployed
from automl.executors.latency_record import weights_of
from automl.executors.latency_sparse import NM24, ExactFormats, thin
from automl.graph.trace import Trace
from automl.types import Kept


class MaskedDeployed:
    """As ``Deployed``, for plans that prune inside layers; on the CPU, in float32.

    Args:
        trace: The traced network.
        plan: What can be pruned.
    """

    def __init__(self, trace: Trace, plan: MaskedCounts) -> None:
        """Makes nothing yet."""
        self.plan = plan
        self._dense = Deployed(trace, torch.device("cpu"))
        self._total: SparseSum | None = None

    @property
    def dense(self) -> Kept:
        """Counts of the dense network."""
        return self.plan.dense

    def inputs(self, batch: int = 1) -> tuple[Tensor, ...]:
        """See ``Deployed``."""
        return self._dense.inputs(batch)

    def operators(self, batch: int = 1) -> SparseOperators:
        """What all networks execute; see ``Deployed``."""
        operators = self._dense.operators(batch)
        network = self._dense.network(self.plan.base.dense)
        place = {name: at for at, name in enumerate(self.plan.grains)}
        inputs = self._dense.inputs(batch)
        names = weights_of(network, inputs)
        packable = _packable(network, inputs, names)
        weights = tuple(
            next((place[name] for name in own if name in place), None) if own in packable else None
            for own in names
        )
        return SparseOperators(self.plan, operators, weights, ExactFormats())

    def total(self, operators: SparseOperators, times: Times) -> SparseSum:
        """Sums over operators, which also say what is executed how."""
        self._total = SparseSum(operators, times)
        return self._total

    def executed(self, kept: Kept) -> dict[str, Executed]:
        """How each weight is executed; after ``total``."""
        return {} if self._total is None else self._total.executed(kept)

    def network(self, kept: Kept) -> nn.Module:
        """The network with these counts, zeros at random places, shape (targets,)."""
        network = self._dense.network(self.plan.split(kept)[0])
        rng = np.random.default_rng(0)
        return self._packed(network, kept, lambda layer, how: _thinned(layer, how, rng))

    def packed(self, network: nn.Module, kept: Kept) -> nn.Module:
        """A pruned network, batch norms folded, with its own weights in their formats."""
        return self._packed(network, kept, lambda layer, how: layer)

    def _packed(
        self, network: nn.Module, kept: Kept, layer_of: Callable[[Any, Executed], Any]
    ) -> nn.Module:
        # Imported here: the kernels' compiler takes a quarter of a second of every start.
        from automl.executors.autotune import pack

        ways: dict[str, nn.Module] = {}
        for name, how in self.executed(kept).items():
            if how.format != DENSE:
                for path in _owners(network, name):
                    ways[path] = pack(layer_of(network.get_submodule(path), how), how.format)
        return with_replaced(network, ways)


def _packable(
    network: nn.Module, inputs: Sequence[Tensor], names: Sequence[tuple[str, ...]]
) -> frozenset[tuple[str, ...]]:
    """Weights, as all their names, that only layers multiply by that packed ones can stand for.

    Others have to stay what they are: attention's own parameters, those that functions are given,
    and layers whose weight something else reads. Embeddings of the same weight look up rows of it.
    """
    layers = {
        own: [path for path in map(_owner, own) if not _is_embedding(network.get_submodule(path))]
        for own in set(names)
    }
    plain = {
        own: paths
        for own, paths in layers.items()
        if paths and all(is_plain(network.get_submodule(path)) for path in paths)
    }
    read = read_elsewhere(network, inputs, [path for paths in plain.values() for path in paths])
    return frozenset(own for own, paths in plain.items() if read.isdisjoint(paths))


def _owners(network: nn.Module, name: str) -> list[str]:
    """The layers that multiply by a parameter, under whichever of its names."""
    weight = network.get_parameter(name)
    everything = network.named_parameters(remove_duplicate=False)
    paths = [_owner(other) for other, value in everything if value is weight]
    return [path for path in paths if is_plain(network.get_submodule(path))]


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _is_embedding(module: nn.Module) -> bool:
    return isinstance(module, nn.Embedding)


def _thinned(layer: Any, how: Executed, rng: np.random.Generator) -> Any:
    """A copy of a layer with random zeros."""
    copied = copy.deepcopy(layer)
    thin(copied.weight.detach().numpy(), how.density, how.format == NM24, rng)
    return copied
