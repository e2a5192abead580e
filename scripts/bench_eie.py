"""What EIE's processing elements would do with the layers of the paper, and its energy.

    python scripts/bench_executors.py eie

Counts, not times: the layers, densities and activations are those of arXiv 1602.01528, table III,
with random weights, dealt out to 64 elements (``automl.executors.eie_model``). Dense: every weight
in float32 from DRAM once. Energies are published figures (``automl.cost.energy_tables``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from bench_timing import Array

from automl.executors.eie import Eie
from automl.executors.eie_model import EieRun, dense_energy_pj, load_balance, run

#: Elements of the paper's chip, and depths of queues that are compared; it chose 8.
ELEMENTS, QUEUES, CHOSEN = 64, (1, 2, 4, 8, 16), 8

_UJ_PER_PJ = 1e-6


def eie(layers: Iterable[tuple[str, Array, Array]]) -> Iterator[str]:
    """The table's lines.

    Args:
        layers: Name, weight and activations of each.
    """
    balance = " | ".join(f"queue {queue}" for queue in QUEUES)
    yield f"| layer | entries | padding | EIE uJ | dense uJ | less energy | {balance} |"
    yield "|" + "---|" * (6 + len(QUEUES))
    for name, weight, x in layers:
        packed = Eie(elements=ELEMENTS).pack(weight)
        balance = " | ".join(f"{load_balance(packed, x, queue):.0%}" for queue in QUEUES)
        yield f"{_energy(name, weight, run(packed, x, CHOSEN))} {balance} |"


def _energy(name: str, weight: Array, found: EieRun) -> str:
    entries, padding = int(found.entries.sum()), int(found.padding.sum())
    own, dense = found.energy_pj(), dense_energy_pj(*weight.shape)
    return (
        f"| {name} | {entries} | {padding / max(entries, 1):.0%} | {own * _UJ_PER_PJ:.3g} "
        f"| {dense * _UJ_PER_PJ:.4g} | {dense / own:.0f} x |"
    )
