"""How much each target alone hurts: the measurements behind ``strategy=sensitivity``.

One target at a time is pruned to some of the counts of its grid while all others stay dense
(Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, figure 2, with every metric of the
scorer in place of accuracy alone). Which counts are measured depends on the network and on how
many are asked for, never on a budget, so that one analysis in a journal serves all budgets.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from automl.fitting import Floats
from automl.problem import Problem, Trial
from automl.types import SIGNS, InputError, Kept

_log = logging.getLogger(__name__)

#: The metric that means "what the problem ranks trials by".
SCORE = "score"

#: How damage grows, d log(damage) / d ``stress``, where nothing was measured, and the range in
#: which measured slopes are believed. Quadratic damage of what is removed is 2 near dense.
_SLOPE, _SLOPES = 1.2, (0.5, 3.0)


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """A policy of the analysis.

    Attributes:
        members: Targets that are pruned, one unless there were too few trials.
        kept: Units kept, shape (targets,).
    """

    members: tuple[int, ...]
    kept: Kept


@dataclass(frozen=True, slots=True, eq=False)
class Analysis:
    """What was measured.

    Attributes:
        dense: The trial of the dense network.
        probes: What was tried.
        trials: What became of it, one per probe.
    """

    dense: Trial
    probes: tuple[Probe, ...]
    trials: tuple[Trial, ...]

    def damages(self, metric: str = SCORE) -> Floats:
        """How much worse than dense every probe is, (probes,); NaN where its trial failed.

        Args:
            metric: One of ``automl.scoring`` that the scorer reports, or ``score``.

        Raises:
            InputError: The scorer does not report it, or of it less may be better or more.
        """
        return damages(self.dense, self.trials, metric)


def damages(dense: Trial, trials: Sequence[Trial], metric: str = SCORE) -> Floats:
    """How much worse than dense trials are in a metric, (trials,); NaN where they failed.

    Where the dense network itself failed, the best trial stands for it.

    Raises:
        InputError: The scorer does not report the metric, or of it less may be better or more.
    """
    values = np.array([_goodness(trial, metric) for trial in (dense, *trials)])
    reference = values[0]
    if np.isnan(reference):
        reference = np.nanmax(values) if np.isfinite(values).any() else 0.0
    return np.asarray(reference - values[1:])


def least_damage(found: Floats) -> float:
    """What those count that are not measurably worse than dense: half of the least measured."""
    positive = found[np.isfinite(found) & (found > 0)]
    return 0.5 * float(positive.min()) if len(positive) else 1.0


def _goodness(trial: Trial, metric: str) -> float:
    found = trial.measurement
    if found is None:
        return float("nan")
    if metric == SCORE:
        return found.score
    known = [name for name in found.metrics if name in SIGNS]
    if metric not in known:
        names = ", ".join([SCORE, *known])
        raise InputError(f"strategy.damage must be one of {names} here, got {metric!r}")
    return SIGNS[metric] * float(found.metrics[metric])


# ---- which counts are measured


def plan_probes(problem: Problem, count: int) -> list[Probe]:
    """The ``count`` policies that tell most, fewer where the grids hold no more.

    Every target first gets the count nearest to half of its units. From then on each target takes
    the count that is furthest, in the logarithm of the keep fraction, from those it has (so keep
    fractions are about geometric), and targets go by that distance times the square root of what
    they can save: expensive targets get more points. The list for a smaller ``count`` is the
    beginning of the list for a larger one, unless there is less than one for each target: then
    contiguous groups of targets are pruned together.

    Args:
        problem: Grids and costs; its budget is not looked at.
        count: How many policies can be afforded, >= 0.
    """
    free = [t for t, grid in enumerate(problem.grids) if len(grid) > 1]
    if 0 < count < len(free):
        return _grouped(problem, free, count)
    savings = possible_savings(problem)
    ranked = [
        (gap * np.sqrt(savings[t]), t, kept)
        for t in free
        for kept, gap in _furthest_first(problem.grids[t] / problem.space.units[t])
    ]
    ranked.sort(key=lambda entry: (-entry[0], entry[1]))
    return [_probe(problem, {t: at}) for _, t, at in ranked[:count]]


def possible_savings(problem: Problem, resources: Sequence[str] | None = None) -> Floats:
    """What pruning each target alone to its least saves, (targets,), in (0, 1].

    The mean over resources, by default all, of the fraction of the dense network's cost.
    """
    alone = np.tile(problem.space.units, (len(problem.targets), 1))
    np.fill_diagonal(alone, problem.space.low)
    saved = [
        1 - problem.cost_of(model, alone) / dense  # type: ignore[arg-type]
        for model, dense in problem.dense_costs.items()
        if dense > 0 and (resources is None or model in resources)
    ]
    return np.clip(np.mean(saved, axis=0), 1e-6, 1.0) if saved else np.ones(len(alone))


def _furthest_first(keep: Floats) -> list[tuple[int, float]]:
    """Positions of a grid in the order of measuring, with the gap that each one closes."""
    place = np.log(keep)
    left = list(range(len(keep) - 1))
    first = min(left, key=lambda i: abs(keep[i] - 0.5))
    order = [(first, np.inf)]
    distance = np.minimum(np.abs(place - place[-1]), np.abs(place - place[first]))
    left.remove(first)
    while left:
        chosen = max(left, key=lambda i: distance[i])
        order.append((chosen, float(distance[chosen])))
        distance = np.minimum(distance, np.abs(place - place[chosen]))
        left.remove(chosen)
    return order


def _grouped(problem: Problem, free: list[int], count: int) -> list[Probe]:
    _log.warning(
        "sensitivity: %d trials for the analysis of %d targets: neighbours are pruned together; "
        "more trials tell them apart",
        count,
        len(free),
    )
    middle = {t: _furthest_first(problem.grids[t] / problem.space.units[t])[0][0] for t in free}
    return [
        _probe(problem, {int(t): middle[int(t)] for t in part})
        for part in np.array_split(np.array(free), count)
    ]


def _probe(problem: Problem, at: dict[int, int]) -> Probe:
    kept = problem.space.units.copy()
    for target, position in at.items():
        kept[target] = problem.grids[target][position]
    return Probe(tuple(at), kept)


# ---- from points to curves


def curves(problem: Problem, analysis: Analysis, metric: str = SCORE) -> tuple[Floats, ...]:
    """Damage of every target at every count of its grid: >= 0, 0 for dense, non-increasing.

    Points are made monotone by isotonic regression of the logarithm (measurements are noisy), and
    joined by straight lines of log(damage) over ``stress``. Beyond the points a line goes
    on with the slope that all targets have in common; a target without points has the curve that
    they have in common. What was measured of a group is divided among its members alike.

    Args:
        problem: Grids.
        analysis: What was measured.
        metric: See ``Analysis.damages``.

    Returns:
        Per target an array that goes with ``problem.grids``.
    """
    points = _points(problem, analysis, metric)
    slope = _common_slope(points)
    everything = np.concatenate([np.zeros((0, 2)), *points])
    offset = float(np.median(everything[:, 1] - slope * everything[:, 0])) if len(everything) else 0
    return tuple(
        _curve(grid / units, own, slope, offset)
        for grid, units, own in zip(problem.grids, problem.space.units, points, strict=True)
    )


def stress(keep: Floats) -> Floats:
    """log(removed / sqrt(kept)), rising as less is kept; minus infinity for the dense network.

    Over it, log(damage) is straighter than over log(removed) or log(removed / kept): measured on
    ResNet-20 and the digits network (docs/sensitivity.md).
    """
    with np.errstate(divide="ignore"):
        return np.asarray(np.log1p(-keep) - 0.5 * np.log(keep))


def _points(problem: Problem, analysis: Analysis, metric: str) -> list[Floats]:
    """Per target (points, 2): stress and log(damage), in order of the first."""
    found = analysis.damages(metric)
    floor = least_damage(found)
    points: list[list[tuple[float, float]]] = [[] for _ in problem.targets]
    for probe, damage in zip(analysis.probes, found, strict=True):
        if np.isnan(damage):
            continue
        height = float(np.log(max(damage / len(probe.members), floor)))
        for t in probe.members:
            keep = np.array(probe.kept[t] / problem.space.units[t])
            points[t].append((float(stress(keep)), height))
    return [np.array(sorted(own)).reshape(-1, 2) for own in points]


def _common_slope(points: Sequence[Floats]) -> float:
    steps = np.concatenate([np.zeros((0, 2)), *(np.diff(own, axis=0) for own in points)])
    if not len(steps):
        return _SLOPE
    return float(np.clip(np.median(steps[:, 1] / steps[:, 0]), *_SLOPES))


def _curve(keep: Floats, points: Floats, slope: float, offset: float) -> Floats:
    at = stress(keep)
    if not len(points):
        return np.asarray(np.exp(offset + slope * at))
    x, y = points[:, 0], isotonic(points[:, 1])
    beyond = np.minimum(at - x[0], 0.0) + np.maximum(at - x[-1], 0.0)
    return np.asarray(np.exp(np.interp(at, x, y) + slope * beyond))


def isotonic(values: Floats) -> Floats:
    """The non-decreasing sequence nearest in squares, by pooling adjacent violators."""
    pools: list[list[float]] = []  # mean, length
    for value in values:
        pools.append([float(value), 1.0])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            mean, length = pools.pop()
            total = pools[-1][1] + length
            pools[-1] = [(pools[-1][0] * pools[-1][1] + mean * length) / total, total]
    return np.repeat([mean for mean, _ in pools], [int(length) for _, length in pools])
