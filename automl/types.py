"""The nouns that every other module speaks in: plain, frozen data and narrow protocols.

Nothing here imports torch or another module of the package, so that workers, tables and tests
can use these types alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

#: How many units of each target stay, in the order of ``IndexPlan.targets``; shape (targets,).
#: Functions that say "batched" also take shape (..., targets).
Kept = NDArray[np.int64]

Resource = Literal["macs", "params", "latency_ms", "energy_mj", "size_bytes"]
RESOURCES: tuple[Resource, ...] = ("macs", "params", "latency_ms", "energy_mj", "size_bytes")


#: Sign with which a metric becomes one of which more is better. Of others nobody knows.
SIGNS: Mapping[str, float] = {"top1": 1.0, "top5": 1.0, "loss": -1.0, "kl": -1.0}


class InputError(ValueError):
    """Bad input from a person: the message is one line that says what to do.

    The command line prints it without a traceback and exits with code 2.
    """


def is_whole(value: object, least: int) -> bool:
    """Whether it is a whole number, NumPy's among them, from ``least`` on; yes and no are none."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        return False
    return int(value) >= least


def one_or_more(names: str | Sequence[str]) -> tuple[str, ...]:
    """Names as they are; a text alone is one name, and not its letters."""
    return (names,) if isinstance(names, str) else tuple(names)


class FailedError(RuntimeError):
    """What was asked for ran and failed: the message is one line that says why.

    The command line prints it without a traceback and exits with code 1.
    """


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One layer as cost models and agents see it.

    Attributes:
        name: Path of the module or operator in the dense network, unique.
        index: Position in execution order, from 0.
        kind: ``conv``, ``linear``, ``matmul`` (attention and friends) or ``embedding``.
        in_channels: Channels or features read, over all groups.
        out_channels: Channels or features written.
        kernel_size: Spatial kernel, () for linear and matmul.
        stride: Spatial stride, () for linear and matmul.
        groups: Convolution groups, 1 elsewhere.
        in_height: Rows of the input map (tokens for sequences, 1 where there is none).
        in_width: Columns of the input map (1 where there is none).
        out_height: Rows of the output map.
        out_width: Columns of the output map.
        macs: Multiply-accumulates for ONE example.
        params: Parameters, bias included.
    """

    name: str
    index: int
    kind: str
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    groups: int
    in_height: int
    in_width: int
    out_height: int
    out_width: int
    macs: int
    params: int

    @property
    def positions(self) -> float:
        """Places of the output for one example.

        Counted by their arithmetic, for maps are those of one entry of the batch, into which
        attention lays its tokens, and others their frames.
        """
        mapped = self.out_height * self.out_width
        each = self.in_channels // self.groups * self.out_channels * math.prod(self.kernel_size)
        if self.kind not in ("conv", "linear") or each * self.macs == 0:
            return mapped
        # Transposed convolutions compute at the places of their input, which are fewer.
        return max(self.macs / each, 1 if self.kind == "linear" else mapped)


@dataclass(frozen=True, slots=True)
class Target:
    """One decision target: units (channels, heads, ...) that are pruned together everywhere.

    Attributes:
        name: Name of the first layer that produces the units (with a suffix where one layer
            feeds several targets), unique; what policies and ratios are keyed by.
        index: Position in network order, from 0.
        kind: ``channel``, ``head`` or ``head_dim``.
        units: How many units the dense network has.
        producers: Layers that write the units, in network order.
        readers: Layers that read the units, in network order.
    """

    name: str
    index: int
    kind: str
    units: int
    producers: tuple[str, ...]
    readers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Frozen:
    """A part of the network that cannot be pruned, and why.

    Attributes:
        name: Layer or parameter.
        reason: One phrase, for example ``"written to the network's output"``.
    """

    name: str
    reason: str


class CostModel(Protocol):
    """A resource as a function of how many units each target keeps."""

    @property
    def resource(self) -> Resource:
        """Which resource this counts; its unit is the suffix of the name."""

    def __call__(self, kept: Kept) -> NDArray[np.float64]:
        """Cost of one example at ``kept``; batched: shape (..., targets) gives (...)."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was measured of one network.

    Attributes:
        score: What the search maximises (higher is better), from the Problem's scorer.
        metrics: Everything the scorer reported, for example top1 in [0, 1], loss, kl.
        costs: Resource -> value of the network, in the resource's unit.
    """

    score: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    costs: Mapping[str, float] = field(default_factory=dict)


class Scorer(Protocol):
    """Scores a network on held-out data."""

    #: Identifies data, metric and settings; part of the journal's key.
    fingerprint: str

    def __call__(self, model: Any) -> tuple[float, Mapping[str, float]]:
        """Returns (score, metrics); higher scores are better."""


class Strategy(Protocol):
    """Searches policies. Owns its loop; knows nothing of modules, files or processes."""

    def search(self, problem: Any, trials: int, seed: int) -> SearchResult:
        """Runs at most ``trials`` evaluations and returns the best policy found."""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What a strategy returns.

    Attributes:
        policy: The policy chosen (``automl.policy.Policy``).
        trials: Every trial of this search in order (``automl.problem.Trial``).
        exhausted: Whether it ended before its trials because it found no policy that was new.
    """

    policy: Any
    trials: Sequence[Any]
    exhausted: bool = False
