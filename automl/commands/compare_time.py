"""Networks of several runs timed side by side, now and here.

The ratios that runs hold were measured when each of them ended, beside what else the machine did.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from automl.executors.latency import measure_latency
from automl.executors.quiet import MOST_CORES, busy_cores
from automl.graph.fold import batchnorm_pairs, fold_batchnorm
from automl.model_folder import Rebuild, load_structure
from automl.pruning.grains import is_inside
from automl.runs import POLICY, POLICY_UNIFORM, REBUILD
from automl.types import InputError

if TYPE_CHECKING:
    import pandas as pd

#: Network of a run -> the file that says how it was pruned.
_POLICIES = {"found": POLICY, "uniform": POLICY_UNIFORM}
_TIMES = ["measured_latency_ms", "latency_ratio"]
_DENSE = "dense"


@dataclass(eq=False)
class _Family:
    """What one dense network was pruned to; equal networks are timed once."""

    networks: dict[str, nn.Module] = field(default_factory=dict)
    rows: dict[int, str] = field(default_factory=dict)
    example: tuple[Any, ...] = ()


def timed(runs: pd.DataFrame, seconds: float, trust: Sequence[str] = ()) -> pd.DataFrame:
    """Runs with latencies that were all measured in one go.

    Dense, found and uniform networks, one example, one thread of this CPU, batch norms folded,
    ratios to the dense network in the same round. Networks with zeros inside layers and other
    baselines, whose policies runs do not keep, are left without.

    Args:
        runs: As from ``automl.load_runs``.
        seconds: For the networks of one dense network together (15 rounds at least).
        trust: Factories that rebuild.json may name beside PrunePilot's own.

    Returns:
        A copy with other ``measured_latency_ms`` and ``latency_ratio``.
    """
    result = runs.copy()
    result[_TIMES] = float("nan")
    for family in _families(runs, trust).values():
        print(
            f"timing {len(family.networks)} networks side by side for {seconds:g} s",
            file=sys.stderr,
            flush=True,
        )
        _warn_if_busy()
        latencies = measure_latency(family.networks, family.example, budget_s=seconds)
        for index, name in family.rows.items():
            found = latencies[name]
            result.loc[index, _TIMES] = [found.median_ms, found.ratio]
    return result


def _warn_if_busy() -> None:
    busy = busy_cores()
    if busy is not None and busy > MOST_CORES:
        line = f"warning: other work keeps {busy:.1f} cores of this machine busy; times will be off"
        print(line, file=sys.stderr, flush=True)


def _families(runs: pd.DataFrame, trust: Sequence[str]) -> dict[str, _Family]:
    families: dict[str, _Family] = {}
    refused = set()
    for index, row in enumerate(runs.itertuples()):
        known = row.network in (_DENSE, *_POLICIES)
        if row.status != "done" or not known or row.run in refused:
            continue
        try:
            _add(families, runs.index[index], Path(str(row.run)), str(row.network), trust)
        except InputError as error:
            refused.add(row.run)
            print(f"{row.run} is not timed: {error}", file=sys.stderr)
    return families


def _add(
    families: dict[str, _Family], index: int, folder: Path, network: str, trust: Sequence[str]
) -> None:
    rebuild = Rebuild.load(folder / REBUILD)
    about = [rebuild.factory, dict(rebuild.kwargs), rebuild.input_shape]
    # load_structure checks whether the factory may be called: before anything is made by it.
    slim, plan, policy = load_structure(folder, trust, _POLICIES.get(network, POLICY))
    family = families.setdefault(json.dumps(about, sort_keys=True, default=str), _Family())
    pairs = batchnorm_pairs(plan)
    if not family.networks:
        dense = rebuild.dense()
        family.networks[_DENSE] = fold_batchnorm(dense.model, pairs).eval()
        family.example = tuple(x[:1] if isinstance(x, Tensor) else x for x in dense.example_inputs)
    if network == _DENSE:
        family.rows[index] = _DENSE
        return
    if any(is_inside(one.granularity) and one.kept < one.units for one in policy.decisions):
        return
    cut = sorted((one.target, one.kept) for one in policy.decisions if one.kept < one.units)
    name = json.dumps(cut)
    family.networks.setdefault(name, fold_batchnorm(slim.eval(), pairs))
    family.rows[index] = name
