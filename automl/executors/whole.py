"""Compares whole networks: sparse ones with the best dense one, in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from automl.cost.lut.signature import Signature, canonical
from automl.executors.autotune import GAIN
from automl.executors.latency import measure_latency
from automl.executors.memory import Memory
from automl.executors.threads import clock

#: Seconds for the first look at all, and for a second one at the two that matter.
_FIRST_S, _SECOND_S = 1.0, 1.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of it.

    Attributes:
        dense: Name of the fastest dense form.
        sparse: Name of the sparse network to use; None where dense is as fast.
        candidate: Name of the fastest sparse network, used or not; None where there is none.
        reason: One phrase.
        median_ms: Name -> median milliseconds of one pass; sparse ones as ``sparse:NAME``.
    """

    dense: str
    sparse: str | None
    candidate: str | None
    reason: str
    median_ms: Mapping[str, float]


def judge(
    dense: Mapping[str, nn.Module],
    sparse: Mapping[str, nn.Module],
    inputs: Sequence[Any],
    memory: Memory,
    key: str,
) -> Verdict:
    """Which network to use.

    The fastest of each kind are timed a second time, beside each other alone: the fastest of many
    was partly lucky, and the second look is not chosen by its result.

    Args:
        dense: Dense forms by name.
        sparse: Sparse networks by name; may be empty.
        inputs: What they are run on.
        memory: Times that are known, and where new ones go.
        key: What the network is known by.
    """
    names = [*dense, *(f"sparse:{name}" for name in sparse)]
    if len(names) == 1:
        return Verdict(names[0], None, None, "there is nothing to choose from", {})
    networks = dict(zip(names, [*dense.values(), *sparse.values()], strict=True))
    first = _timed(networks, inputs, memory, _signature(key, names), _FIRST_S)
    best = min(dense, key=lambda name: first[name])
    if not sparse:
        return Verdict(best, None, None, "no layer gains by being sparse", first)
    candidate = min((name for name in names if name not in dense), key=lambda name: first[name])
    two = {name: networks[name] for name in (best, candidate)}
    second = _timed(two, inputs, memory, _signature(key, [*names, "second look"]), _SECOND_S)
    gain = second[best] / second[candidate]
    times, own = {**first, **second}, candidate.removeprefix("sparse:")
    if gain < GAIN:
        text = f"the whole network is {gain:.2f} times as fast as the best dense one ({best})"
        return Verdict(best, None, own, text, times)
    text = f"{gain:.2f} times as fast as the best dense network ({best})"
    return Verdict(best, own, own, text, times)


def _signature(key: str, names: Sequence[str]) -> Signature:
    """What the times of whole networks are remembered by."""
    detail = canonical({"network": key, "beside": list(names)})
    return Signature("network", 1, 0, 0, 1, 1, detail=detail)


def _timed(
    networks: Mapping[str, nn.Module],
    inputs: Sequence[Any],
    memory: Memory,
    signature: Signature,
    budget_s: float,
) -> dict[str, float]:
    """Milliseconds by name, scaled so that quotients to the first are those within rounds."""
    known = memory.times_us(signature, list(networks))
    if known is not None:
        return {name: us / 1e3 for name, us in known.items()}
    found = measure_latency(networks, inputs, budget_s=budget_s, clock=clock(1))
    base = next(iter(found.values())).median_ms
    memory.add(signature, {name: [1e3 * base * own.ratio] for name, own in found.items()})
    return {
        name: us / 1e3 for name, us in (memory.times_us(signature, list(networks)) or {}).items()
    }
