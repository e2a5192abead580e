"""Fills, calibrates and checks a latency table for one network, as far as it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from automl.cost.latency import LatencyCost, Sum
from automl.cost.lut.calibration import Calibration, Check, calibrate, compare
from automl.cost.lut.fingerprint import LAYERS_ONLY
from automl.cost.lut.importing import LAYER_KINDS, bare
from automl.cost.lut.signature import Signature
from automl.cost.lut.table import Table
from automl.executors import latency_aim
from automl.executors.latency import measure_latency
from automl.executors.latency_masked import MaskedDeployed
from automl.executors.latency_meter import Effort, Meter
from automl.executors.latency_networks import Deployed
from automl.executors.latency_step import device_step, probes
from automl.executors.quiet import require_quiet
from automl.fitting import Space
from automl.hashing import digest
from automl.types import InputError, Kept

#: Makes the networks of a check others than those of the calibration, whatever their seeds.
_FRESH = 1
#: Operators measured together at least: fewer would find each other's weights in the caches.
_TOGETHER = 48
#: Networks of the calibration, besides the dense one, that a check times again.
_KNOWN = 6
#: Times that two networks are made and timed beside each other.
_AGAIN = 5
#: Share of the operators that may have waited for the CPU before a measurement is thrown away.
_MOST_DISTURBED = 0.2


@dataclass(frozen=True, slots=True)
class Manners:
    """What to do on a machine that is not quiet.

    Attributes:
        allow_busy: Measure all the same.
        wait_s: How long to wait for a quiet machine.
    """

    allow_busy: bool = False
    wait_s: float = 0.0


class NetworkTable:
    """A latency table as one network uses it.

    Args:
        deployed: Makes the network's slim forms.
        table: The entries of this device.
        space: The counts that a search may keep.
        meter: Measures what the table lacks; None where it must not be measured.
        batch: Examples in a pass.
        threads: CPU threads of whole networks.
        manners: What to do on a machine that is not quiet.
        report: Called with one line when something that takes long begins, and with how many
            operators are done.
    """

    def __init__(
        self,
        deployed: Deployed | MaskedDeployed,
        table: Table,
        space: Space,
        meter: Meter | None,
        *,
        batch: int = 1,
        threads: int = 1,
        effort: Effort = Effort(),  # noqa: B008 - frozen
        manners: Manners = Manners(),
        report: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Measures nothing yet."""
        self.deployed, self.table, self.space = deployed, table, space
        self._meter, self._batch, self._threads = meter, batch, threads
        self._effort, self._manners, self._report = effort, manners, report
        self._was_quiet = False
        self._aimed: Calibration | None = None

    @property
    def timing(self) -> tuple[int, int]:
        """Examples in a pass and CPU threads, of which all times here are."""
        return self._batch, self._threads

    # ---- operators

    @cached_property
    def operators(self) -> Any:  # Operators, or SparseOperators of a masked plan
        """What the network executes, as functions of the kept counts."""
        return self.deployed.operators(self._batch)

    @cached_property
    def total(self) -> Sum:
        """Sums of operators, measured when they are first asked for."""
        return self.deployed.total(self.operators, self)

    @cached_property
    def reachable(self) -> list[Signature]:
        """All operators of all networks that the search can reach."""
        found: list[Signature] = self.operators.reachable(self.space.grids())
        return found

    def times_us(self, signatures: Sequence[Signature]) -> NDArray[np.float64]:
        """Median times; what the table lacks is measured and written to it.

        Raises:
            InputError: Something is missing and must not, or cannot, be measured.
        """
        wanted = self._as_tabulated(signatures)
        known = self.table.entries
        missing = list(dict.fromkeys(s for s in wanted if s is not None and s not in known))
        if missing:
            self._measure(self._with_company(missing))
        entries = self.table.entries
        return np.array([0.0 if s is None else entries[s].median_us for s in wanted])

    def _as_tabulated(self, signatures: Sequence[Signature]) -> list[Signature | None]:
        """How the table knows them: None for what counts as nothing there."""
        if self.table.fingerprint.covers != LAYERS_ONLY:
            return list(signatures)
        return [bare(s) if s.kind in LAYER_KINDS else None for s in signatures]

    def build(self) -> int:
        """Measures everything that the search can reach; returns how much was new."""
        missing = [s for s in self.reachable if s not in self.table.entries]
        if missing:
            self._measure(missing)
        return len(missing)

    def step(self) -> int:
        """The coarsest step to which channel counts can be rounded up at no cost here."""
        device = self.table.fingerprint
        signatures = list(probes(device.dtype, device.layout))
        times = self.times_us(signatures).tolist()
        return device_step(dict(zip(signatures, times, strict=True)))

    def _with_company(self, missing: list[Signature]) -> list[Signature]:
        """So many more that they are not measured alone, from what may be asked for next."""
        lacking = _TOGETHER - len(missing)
        if lacking <= 0:
            return missing
        asked = set(missing)
        others = [s for s in self.reachable if s not in self.table.entries and s not in asked]
        # Spread over the network, the same ones every time.
        chosen = others[:: max(1, len(others) // lacking)][:lacking]
        return [*missing, *chosen]

    def _measure(self, missing: Sequence[Signature]) -> None:
        if self._meter is None:
            raise InputError(
                f"latency table {self.table.path} lacks {len(missing)} operators that this asks "
                f"for, such as {missing[0]}; measure them on that device with: prunepilot lut build"
            )
        self._be_quiet()
        network = self.operators.at(self.deployed.dense)
        done = 0
        for found in self._meter(missing, network):
            disturbed = sum(self._effort.disagrees(entry) for _, entry in found) / len(found)
            if disturbed > _MOST_DISTURBED and not self._manners.allow_busy:
                raise InputError(
                    f"this machine is not quiet: {100 * disturbed:.0f} % of the operators waited "
                    "for the CPU while they were timed; nothing of that was written. Stop other "
                    "work and go on, or accept it with latency.allow_busy=true"
                )
            self.table.add(found)
            done += len(found)
            self._report(f"measured {done} of {len(missing)} operators")

    def _be_quiet(self) -> None:
        if not (self._manners.allow_busy or self._was_quiet):
            require_quiet(self._manners.wait_s)
            self._was_quiet = True

    # ---- whole networks

    @property
    def calibration(self) -> Calibration | None:
        """The calibration that the table holds for this network."""
        return self.table.calibrations.get(self.operators.key)

    def cost(self) -> LatencyCost:
        """The cost model; of a table that cannot be calibrated here, the bare sums.

        Raises:
            InputError: The network is not calibrated, but could be.
        """
        calibration = self._aimed or self.calibration
        if calibration is not None:
            return LatencyCost(self.total, calibration.slope, calibration.offset_ms)
        if self._meter is None:
            return LatencyCost(self.total)
        raise InputError(
            f"latency table {self.table.path} is not calibrated for this network; "
            "calibrate it with: prunepilot lut build"
        )

    @property
    def can_measure(self) -> bool:
        """Whether what the table lacks can be measured."""
        return self._meter is not None

    def calibrate(self, networks: int, budget_s: float, seed: int = 0) -> Calibration:
        """Fits slope and offset, checks them on fresh networks, and writes both to the table.

        Args:
            networks: Random slim networks to fit to, and as many fresh ones to check on; all of
                them, and the dense one, are timed side by side.
            budget_s: How long to time them for, in seconds.
            seed: Of the random networks.
        """
        kept = np.concatenate([self.draw(networks, seed), self.draw(networks, seed + 1)[1:]])
        sums = self.total(kept)
        self._report(f"timing {len(kept)} whole networks to calibrate and check on")
        measured = self.measure(kept, budget_s)
        found = calibrate(kept, sums, measured, networks + 1, _today())
        self.table.calibrate(self.operators.key, found)
        return found

    def aim(
        self, limit: float, relative: bool, networks: int, budget_s: float
    ) -> Calibration | None:
        """Corrects :meth:`cost` for networks that fill a budget; see ``latency_aim``.

        What was measured for the same budget before is used again; it is written to the table.

        Args:
            limit: The budget, in ms or as a fraction of the dense network's latency.
            relative: Which of the two.
            networks: Networks that fill the budget, timed beside the dense one in each round.
            budget_s: How long to time them for in each round, in seconds.

        Returns:
            The calibration that is in use from now on; None where nothing was corrected.

        Raises:
            InputError: Even the smallest network breaks the budget.
        """
        grids = digest([grid.tolist() for grid in self.space.grids()])[:8]
        key = f"{self.operators.key}@{limit:.6g}{'x' if relative else 'ms'}/{grids}"
        self._aimed = self.table.calibrations.get(key)
        if self._aimed is None and self._meter is not None:
            self._be_quiet()
            self._report(f"timing {networks} networks that fill the budget, to aim at it")
            self._aimed = latency_aim.aim(self, limit, relative, networks, budget_s)
            if self._aimed is not None:
                self.table.calibrate(key, self._aimed)
        return self._aimed

    def beside_dense(self, kept: Kept, budget_s: float) -> float:
        """Latency in ms of one network, timed in turns with the dense one.

        At the speed of the calibration: as a fraction of the dense network's latency now, times
        what that was then. The fraction is the median of several, each of networks made anew:
        a machine can be slow for a second or two, and where weights lie in memory matters.

        Args:
            kept: Its counts, shape (targets,); the network is calibrated.
            budget_s: How long to time for, in seconds.
        """
        both = [self.space.units, kept]
        times = np.array([self.time(both, budget_s / _AGAIN) for _ in range(_AGAIN)])
        fraction = float(np.median(times[:, 1] / times[:, 0]))
        return fraction * self.dense_ms

    def line_through(self, kept: Kept, measured_ms: float) -> LatencyCost | None:
        """The cost model that is right for the dense network and for one other.

        Args:
            kept: The other's counts, shape (targets,).
            measured_ms: Its latency, as :meth:`beside_dense` has it.

        Returns:
            None where no rising line goes through both.
        """
        sums = self.total(np.stack([self.space.units, kept]))
        line = latency_aim.through(float(sums[0]), self.dense_ms, sums[1:], np.array([measured_ms]))
        return None if line is None else LatencyCost(self.total, *line)

    @property
    def dense_ms(self) -> float:
        """Latency of the dense network as it was measured at the calibration.

        Raises:
            ValueError: The network is not calibrated.
        """
        calibration = self.calibration
        if calibration is None:
            raise ValueError("NetworkTable.calibration must be there, got None")
        return calibration.fitted.measured_ms[0]

    def check(self, networks: int, budget_s: float, seed: int) -> Check:
        """Compares predictions with fresh random slim networks, and writes that to the table.

        A few networks of the calibration are timed too: they tell how fast the machine is now.

        Raises:
            InputError: The network is not calibrated.
        """
        kept = self.draw(networks, seed, _FRESH)
        predicted, calibration = self.cost()(kept), self.calibration
        if calibration is None:
            raise InputError(f"latency table {self.table.path} is not calibrated for this network")
        known = np.array(calibration.kept[1 : 1 + _KNOWN], np.int64)
        self._report(f"timing {len(kept) + len(known)} whole networks to check against")
        measured = self.measure(np.concatenate([kept, known]), budget_s)
        now = np.r_[measured[0], measured[len(kept) :]]
        then = np.array(calibration.fitted.measured_ms[: len(now)])
        check = compare(predicted, measured[: len(kept)], float(np.median(now / then)))
        self.table.calibrate(self.operators.key, replace(calibration, held_out=check))
        return check

    def measure(self, kept: Kept, budget_s: float) -> NDArray[np.float64]:
        """Undisturbed latencies of whole networks in ms; counts of shape (networks, targets).

        Raises:
            InputError: Measuring is turned off, or the machine is not quiet.
        """
        if self._meter is None:
            raise InputError(
                f"latency table {self.table.path} cannot be calibrated or checked for this network "
                "here: measuring is turned off (latency.measure=false), or the table is of another "
                "device"
            )
        self._be_quiet()
        return np.array(self.time(list(kept), budget_s))

    def time(self, kept: Sequence[Kept], budget_s: float) -> list[float]:
        """As :meth:`measure`, wherever and however busy: for the end of a search."""
        networks = {str(i): self.deployed.network(row) for i, row in enumerate(kept)}
        inputs = self.deployed.inputs(self._batch)
        found = measure_latency(networks, inputs, budget_s=budget_s, threads=self._threads)
        return [found[name].undisturbed_ms for name in networks]

    def draw(self, networks: int, seed: int, *purpose: int) -> Kept:
        """The dense network and random slim ones of all sizes, (networks + 1, targets).

        Each has a size of its own, drawn evenly between the smallest and the dense network, around
        which the keep fractions of its targets scatter.
        """
        rng = np.random.default_rng([seed, networks, *purpose])
        targets = len(self.space.units)
        # Even spacing, shuffled within each step: twelve networks cover all sizes.
        size = (rng.permutation(networks) + rng.random(networks)) / max(1, networks)
        noise = rng.random((networks, targets))
        size = size[:, None]
        keep = np.where(size < 0.5, 2 * size * noise, 1 - 2 * (1 - size) * noise)
        return np.concatenate([self.space.units[None], self.space.nearest(keep)])


def _today() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d}"
