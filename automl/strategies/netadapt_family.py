"""The networks on NetAdapt's way from dense to the budget: one run, a whole trade-off curve."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from automl.paths import atomic_write
from automl.problem import Trial

#: The table and the folder of policies that ``save`` writes.
TABLE, POLICIES = "family.csv", "family"


@dataclass(frozen=True, slots=True)
class Member:
    """One network of the family.

    Attributes:
        iteration: After how many iterations it was chosen; 0 is the dense network.
        target: Name of the target that the iteration pruned; None for the dense network and for
            one that was not chosen among candidates.
        candidates: How many networks it was chosen among.
        trial: Its policy, score and costs.
    """

    iteration: int
    target: str | None
    candidates: int
    trial: Trial


def save(folder: Path, members: Sequence[Member], dense_costs: Mapping[Any, float]) -> list[Path]:
    """Writes one policy per network, and a table of all.

    Args:
        folder: A directory that exists.
        members: In the order of the iterations.
        dense_costs: Costs of the dense network, which the table's fractions refer to.

    Returns:
        The files written: the table, then the policies.
    """
    (folder / POLICIES).mkdir(exist_ok=True)
    for old in (folder / POLICIES).glob("*.json"):
        old.unlink()
    rows, files = [], []
    for member in members:
        name = f"{member.iteration:03d}.json"
        files.append(folder / POLICIES / name)
        member.trial.policy.save(files[-1])
        rows.append({"policy": f"{POLICIES}/{name}", **_row(member, dense_costs)})
    text = io.StringIO()
    columns = list(dict.fromkeys(column for row in rows for column in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write(folder / TABLE, text.getvalue())
    return [folder / TABLE, *files]


def _row(member: Member, dense_costs: Mapping[Any, float]) -> dict[str, Any]:
    found = member.trial.measurement
    about = {
        "iteration": member.iteration,
        "target": member.target or "",
        "candidates": member.candidates,
    }
    if found is None:
        return about
    shares = {
        f"{name}_of_dense": cost / dense_costs[name]
        for name, cost in found.costs.items()
        if dense_costs.get(name)
    }
    metrics = {name: value for name, value in found.metrics.items() if name not in found.costs}
    return {**about, "score": found.score, **metrics, **found.costs, **shares}
