"""What a sensitivity analysis found: a table, a CSV file, a plot, and a policy for each budget."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from automl.fitting import Floats
from automl.paths import atomic_write
from automl.problem import Problem
from automl.runs import ANALYSIS
from automl.strategies.sensitivity import by_threshold
from automl.strategies.sensitivity_analysis import Analysis, curves, possible_savings
from automl.strategies.sensitivity_solver import Solver
from automl.types import InputError, Kept

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

CSV, PLOT = ANALYSIS, "sensitivity.png"
_TOP1 = "top1"


@dataclass(frozen=True, eq=False)
class Report:
    """An analysis and how to show it.

    Attributes:
        problem: What was analysed.
        analysis: What was measured.
        metric: What trials are ranked by, a metric of the scorer.
    """

    problem: Problem
    analysis: Analysis
    metric: str

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that are shown."""
        return tuple(dict.fromkeys((self.metric, _TOP1)))

    @cached_property
    def curves(self) -> dict[str, tuple[Floats, ...]]:
        """Metric -> per target the damage at every count of its grid."""
        return {name: curves(self.problem, self.analysis, name) for name in self.metrics}

    # ---- table

    def show(self, damages: Sequence[float], drops: Sequence[float]) -> None:
        """Prints how far every target can be pruned alone.

        Args:
            damages: Thresholds for the metric, unless it is top1.
            drops: Thresholds for the drop of top1, in [0, 1].
        """
        from automl.commands.wide_table import show

        table = _table("least kept of each group alone, others dense")
        table.add_column("group", no_wrap=True)
        columns = [(_TOP1, drop) for drop in drops]
        if self.metric != _TOP1:
            columns = [(self.metric, damage) for damage in damages] + columns
        for heading in ("units", "saves", *(_heading(*column) for column in columns)):
            table.add_column(heading, justify="right", no_wrap=True)
        savings = possible_savings(self.problem, ["macs"])
        for target in self.problem.targets:
            least = [self._least(target.index, *column) for column in columns]
            saves = f"{100 * savings[target.index]:.0f} %"
            table.add_row(target.name, str(target.units), saves, *least)
        show(table)
        failed = sum(trial.status == "failed" for trial in self.analysis.trials)
        print(
            f"{len(self.analysis.trials)} policies, {failed} failed; MACs: saved at the least kept"
        )

    def _least(self, target: int, metric: str, threshold: float) -> str:
        """The least part of its units with which a target does no more damage than that."""
        allowed = np.flatnonzero(self.curves[metric][target] <= threshold)
        keep = self.problem.grids[target][allowed[0]] / self.problem.space.units[target]
        return f"{100 * keep:.0f} %"

    # ---- files

    @cached_property
    def frame(self) -> pd.DataFrame:
        """A row per group and count that was measured: what it keeps, metrics, damages."""
        import pandas as pd

        damage = {name: self.analysis.damages(name) for name in self.metrics}
        rows: list[dict[str, Any]] = []
        for i, (probe, trial) in enumerate(
            zip(self.analysis.probes, self.analysis.trials, strict=True)
        ):
            metrics = {} if trial.measurement is None else dict(trial.measurement.metrics)
            for t in probe.members:
                target, kept = self.problem.targets[t], int(probe.kept[t])
                rows.append(
                    {
                        "target": target.name,
                        "units": target.units,
                        "kept": kept,
                        "keep": kept / target.units,
                        "pruned_together": len(probe.members),
                        "status": trial.status,
                        **{f"{name}_damage": damage[name][i] for name in self.metrics},
                        **metrics,
                    }
                )
        frame = pd.DataFrame(rows)
        order = {target.name: target.index for target in self.problem.targets}
        if len(frame):
            frame = frame.sort_values(
                ["target", "kept"], key=lambda c: c.map(order) if c.name == "target" else c
            )
        return frame.reset_index(drop=True)

    def write(self, folder: Path) -> None:
        """Writes sensitivity.csv, and sensitivity.png where matplotlib is installed."""
        atomic_write(folder / CSV, self.frame.to_csv(index=False))
        print(f"wrote {folder / CSV}")
        try:
            from automl.commands.sensitivity_plot import plot
        except ImportError:
            print(
                "no plot: pip install 'prunepilot[plot]', then run the same again",
                file=sys.stderr,
            )
            return
        names = [target.name for target in self.problem.targets]
        keep = [g / u for g, u in zip(self.problem.grids, self.problem.space.units, strict=True)]
        plot(folder / PLOT, names, keep, self.curves, self.frame)
        print(f"wrote {folder / PLOT}")

    # ---- budgets

    def answer(
        self, budgets: Sequence[float], problem_for: Callable[[float], Problem], folder: Path
    ) -> None:
        """Prints and writes the best policy by the analysis for each of several budgets.

        Args:
            budgets: Fractions of dense.
            problem_for: The problem with such a budget.
            folder: Where policies go.
        """
        from automl.commands.wide_table import show

        title = f"predicted {self.metric} damage, as if damages added up"
        table = _table(title)
        for heading in ("budget", "MACs", "params", "best sum", "threshold", "uniform", "policy"):
            table.add_column(heading, justify="right", no_wrap=True)
        for fraction in budgets:
            try:
                problem = problem_for(fraction)
            except InputError as error:
                print(f"{100 * fraction:g} %: {error}", file=sys.stderr)
                continue
            table.add_row(*self._answer(problem, f"policy-{fraction:g}.json", folder))
        show(table)
        print("no trial tried these; `prunepilot search strategy=sensitivity` tries and refines")

    def _answer(self, problem: Problem, file: str, folder: Path) -> list[str]:
        solver = Solver(problem)
        table = solver.table(self.curves[self.metric])
        found = solver.kept(solver.solve(table))
        others = by_threshold(problem, table), problem.fit(np.ones(len(problem.targets)))
        problem.policy(found).save(folder / file)
        costs, dense = problem.costs(found), problem.dense_costs

        def predicted(kept: Kept) -> str:
            return f"{float(solver.total(table, solver.positions(kept))):.4g}"

        shares = [f"{100 * costs[name] / dense[name]:.1f} %" for name in ("macs", "params")]
        return [str(problem.budget), *shares, *map(predicted, (found, *others)), file]


def _heading(metric: str, threshold: float) -> str:
    return f"top-1 -{100 * threshold:g}" if metric == _TOP1 else f"{metric} +{threshold:g}"


def _table(title: str) -> Table:
    from rich.table import Table

    return Table(title=title, title_justify="left")
