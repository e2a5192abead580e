"""How well latency tables predict whole networks, and what a latency budget is kept to.

For each network: the operators that random slim forms execute are measured, twelve of these forms
calibrate the table, twelve fresh ones check it, and so do twelve more some time later. Then
networks are fitted to 60 % of the dense latency in random directions and measured. Beside it stands
what the same calibration makes of other sums: MACs, and convolutions timed alone.

    python scripts/bench_lut.py --out runs/lut --networks resnet20 mobilenet_v2_32 mobilenet_v2

Needs a quiet machine; about a minute a network.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from automl.commands.build import Bench
from automl.commands.compose import compose
from automl.cost.lut.calibration import Check, calibrate
from automl.executors.latency_table import NetworkTable
from automl.fitting import Constraints, fit
from automl.types import InputError


def main() -> None:
    """Measures and prints one table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--networks", nargs="+", default=["resnet20", "mobilenet_v2_32"])
    parser.add_argument("--out", type=Path, default=Path("runs/lut"), help="folder of the table")
    parser.add_argument("--rounding", type=int, default=16)
    parser.add_argument("--whole", action="store_true", help="measure all that a search can reach")
    parser.add_argument("--seconds", type=float, default=12, help="of each timing of networks")
    parser.add_argument("--budgets", type=int, default=5, help="networks fitted to a budget")
    parser.add_argument("--aim", type=int, default=6, help="networks to aim at a budget with")
    parser.add_argument("--set", nargs="*", default=[], help="more settings")
    args = parser.parse_args()
    print("| network | operators | s | figure | MAPE % | worst % | rho | ratio error, points |")
    print("|---|---|---|---|---|---|---|---|")
    for name in args.networks:
        settings = [
            f"model={name}",
            "device=cpu",
            f"granularity.rounding={args.rounding}",
            f"latency.table={args.out}",
            *args.set,
        ]
        bench_network(name, Bench(compose(settings)).latency_table, args)


def bench_network(name: str, table: NetworkTable, args: argparse.Namespace) -> None:
    """Prints the rows of one network."""
    started = time.perf_counter()
    kept = np.concatenate([table.draw(12, seed) for seed in (0, 1, 2)])
    before = len(table.table.entries)
    if args.whole:
        table.build()
    table.total(kept)
    new, seconds = len(table.table.entries) - before, time.perf_counter() - started
    found = table.calibrate(12, args.seconds)
    where = f"| {name} | {new} | {seconds:.0f} |"
    print(where, "fitted |", figures(found.fitted))
    print(where, "fresh, side by side |", figures(found.held_out))
    for label, check in others(table, found.held_out, found.fitted).items():
        print(where, label, "|", figures(check))
    later = table.check(12, args.seconds, seed=2)
    print(where, f"fresh, later (machine at {later.slowdown:.3f}) |", figures(later))
    for row in promises(table, args):
        print(f"  {name}: {row}")
    if table.aim(0.6, True, args.aim, args.seconds) is not None:
        for row in promises(table, args):
            print(f"  {name}, aimed: {row}")


def figures(check: Check) -> str:
    """The cells of a check."""
    return (
        f"{100 * check.mape:.1f} | {100 * check.worst:.1f} | {check.rho:.3f} | "
        f"{100 * check.ratio_error:.1f} |"
    )


def others(table: NetworkTable, fresh: Check, fitted: Check) -> dict[str, Check]:
    """The same measurements predicted from MACs, and from convolutions and linears alone."""
    kept = np.concatenate([table.draw(12, 0), table.draw(12, 1)[1:]])
    measured = np.array([*fitted.measured_ms, *fresh.measured_ms[1:]])
    entries = table.table.entries
    layers = [
        sum(entries[s].median_us for s in table.operators.at(row) if s.kernel or s.kind == "linear")
        for row in kept
    ]
    sums = {"from MACs": table.deployed.plan.macs(kept) / 1e6, "from layers": np.array(layers)}
    found = {}
    for label, values in sums.items():
        try:
            found[label] = calibrate(kept, np.asarray(values, np.float64), measured, 13).held_out
        except InputError:
            continue
    return found


def promises(table: NetworkTable, args: argparse.Namespace) -> list[str]:
    """Networks fitted to 60 % of the dense latency, and what they take."""
    cost, space = table.cost(), table.space
    dense = float(cost(space.units))
    rng = np.random.default_rng(3)
    constraints = Constraints({"latency_ms": cost}, {"latency_ms": 0.6 * dense})
    kept = [fit(rng.random(len(space.units)), space, constraints) for _ in range(args.budgets)]
    if not kept:
        return []
    measured = table.time([space.units, *kept], args.seconds)
    rows = []
    for row, time_ms in zip(kept, measured[1:], strict=True):
        promised, ratio = float(cost(row)), time_ms / measured[0]
        rows.append(
            f"promised {promised:.3f} ms ({100 * promised / dense:.1f} % of dense), measured "
            f"{time_ms:.3f} ms ({100 * (time_ms / promised - 1):+.1f} %), "
            f"{100 * ratio:.1f} % of dense ({100 * (ratio * dense / promised - 1):+.1f} %)"
        )
    return rows


if __name__ == "__main__":
    main()
