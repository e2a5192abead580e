"""From settings to latency: which table, on what device, and whether it may be trusted."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from automl.budget import Budget, Limit
from automl.commands.lut_report import listed, write_report
from automl.commands.settings import flag, number, whole
from automl.cost.latency import LatencyCost
from automl.cost.lut.fingerprint import LAYERS_ONLY, Fingerprint
from automl.cost.lut.importing import LAYER_KINDS
from automl.cost.lut.table import Table
from automl.environment import cpu_name
from automl.executors.latency_masked import MaskedDeployed
from automl.executors.latency_meter import CpuMeter, Effort, Meter
from automl.executors.latency_networks import Deployed
from automl.executors.latency_table import Manners, NetworkTable
from automl.fitting import Space
from automl.paths import lut_dir
from automl.pruning.masked_plan import MaskedPlan
from automl.types import InputError

if TYPE_CHECKING:
    from automl.commands.build import Bench
    from automl.commands.finishing import Finals

Settings = Mapping[str, Any]


def latency_cost(bench: Bench) -> LatencyCost:
    """The cost model of ``budget.latency_ms``, measuring and calibrating what is missing.

    Raises:
        InputError: The table is of another device, cannot be trusted or completed, or the budget
            is below what no pruning changes.
    """
    table = bench.latency_table
    settings = bench.config["latency"]
    if table.calibration is None and table.can_measure:
        table.calibrate(**whole_networks(settings))
    require_in_reach(table.cost(), bench.config["budget"])
    require_accurate(table, settings)
    _say_what_counts_as_nothing(table)
    aim(table, bench.config)
    return table.cost()


def aim(table: NetworkTable, config: Settings) -> None:
    """Corrects predictions for networks that fill the budget, and says by how much.

    Raises:
        InputError: Even the smallest network breaks the budget.
    """
    settings = config["latency"]
    networks = whole(settings, "latency.aim", 0)
    limit = latency_limit(config["budget"])
    if limit is None or not networks or table.calibration is None:
        return
    aimed = table.aim(
        limit.value, limit.relative, networks, number(settings, "latency.budget_s", 0)
    )
    if aimed is not None:
        base = LatencyCost(table.total, table.calibration.slope, table.calibration.offset_ms)
        filling = np.array(aimed.kept[1:], np.int64)
        more = 100 * float((table.cost()(filling) / base(filling)).mean() - 1)
        print(
            f"latency near the budget: predictions corrected by {more:+.1f} %, after timing "
            f"{len(filling)} networks that fill it beside dense",
            file=sys.stderr,
        )


def require_accurate(table: NetworkTable, settings: Settings) -> None:
    """Refuses a table whose error on fresh networks is too large.

    Raises:
        InputError: It is, and ``latency.force`` is not set.
    """
    path, force = table.table.path, flag(settings, "latency.force")
    if table.calibration is None:
        text = f"latency table {path} is not calibrated for this network, and cannot be here"
        if not force:
            raise InputError(f"{text}; use sums of operators as they are with latency.force=true")
        print(f"{text}: sums of operators are used as they are", file=sys.stderr)
        return
    held_out = table.calibration.held_out
    print(f"latency table {path}: {held_out}", file=sys.stderr)
    most = most_mape(settings)
    if held_out.mape > most and not force:
        raise InputError(
            f"latency table {path} errs by {100 * held_out.mape:.1f} % on fresh "
            f"networks, more than the {100 * most:g} % of latency.max_mape; build it again on a "
            "quiet machine (prunepilot lut build), or use it all the same with latency.force=true"
        )


def _say_what_counts_as_nothing(table: NetworkTable) -> None:
    """Names the operators of the dense network that a table of layers does not know."""
    if table.table.fingerprint.covers != LAYERS_ONLY:
        return
    executed = table.operators.at(table.deployed.dense)
    others = Counter(one.kind for one in executed if one.kind not in LAYER_KINDS)
    others += Counter(activation for one in executed for activation in one.fused)
    if others:
        print(
            f"latency table {table.table.path} knows convolutions and linear layers alone; these "
            f"operators of the dense network count as nothing: {listed(others)}",
            file=sys.stderr,
        )


def most_mape(settings: Settings) -> float:
    """The mean error on fresh networks above which a table is refused.

    Raises:
        InputError: It is no number.
    """
    return number(settings, "latency.max_mape", 0)


def latency_limit(budget: Any) -> Limit | None:
    """What a budget says of latency; None where that is not limited."""
    return next((x for x in Budget.parse(budget).limits if x.resource == "latency_ms"), None)


def require_in_reach(cost: LatencyCost, budget: Any) -> None:
    """Refuses a budget in ms that not even removing everything prunable would meet.

    Raises:
        InputError: It is below the time of the operators that no pruning changes.
    """
    limit = latency_limit(budget)
    if limit is None or limit.relative:
        return
    frozen = cost.frozen_ms
    if limit.value < frozen:
        raise InputError(
            f"budget.latency_ms {limit.value:g} ms is below the {frozen:.3g} ms of what no pruning "
            "changes (operators of fixed size, and calling them); ask for more, or for a fraction"
        )


def kept_promise(bench: Bench, finals: Finals, folder: Path) -> dict[str, Any] | None:
    """What was promised of the network found, beside what is measured; written to the run folder.

    Args:
        bench: What the search worked with.
        finals: What the search ended with.
        folder: The run folder.

    Returns:
        Predicted and measured ms and fractions of dense, and ``table_of``, the device of the table
        where that is not this one; None where latency is no budget, or ``latency_budget_s`` leaves
        final timings out.
    """
    budget_s = number(bench.config, "latency_budget_s", 0)
    if "latency_ms" not in finals.problem.limits or budget_s == 0:
        return None
    table = bench.latency_table
    targets = finals.problem.targets
    found = finals.best["found"].policy.kept(targets)
    kept = {"dense": table.deployed.dense, "found": found}
    cost = table.cost() if finals.latency is None else finals.latency
    predicted = {name: float(cost(counts)) for name, counts in kept.items()}
    measured = table.time(list(kept.values()), budget_s)
    document = {
        "limit_ms": finals.problem.limits["latency_ms"],
        "predicted_ms": predicted["found"],
        "measured_ms": measured[1],
        "predicted_ratio": predicted["found"] / predicted["dense"],
        "measured_ratio": measured[1] / measured[0],
        **_formats(table, found),
    }
    elsewhere = _other_device(table.table.fingerprint, fingerprint(bench))
    if elsewhere is not None:
        document["table_of"] = elsewhere
    if table.calibration is not None:
        slowdown = measured[0] / table.calibration.fitted.measured_ms[0]
        mark = ("found", predicted["found"], measured[1] / slowdown)
        marks = [mark] if elsewhere is None else []  # times of two devices are not one point
        about = {"found": document}
        write_report(folder, table.table, table.calibration.held_out, marks, about)
    return document


def _other_device(of_table: Fingerprint, here: Fingerprint) -> str | None:
    """What a table was measured on, where that is another device than this one."""
    if not of_table.differences(here):
        return None
    return of_table.processor if of_table.processor != here.processor else of_table.name


def _formats(table: NetworkTable, kept: Any) -> dict[str, Any]:
    """How each weight that is pruned inside is executed, as the cost model has it."""
    if not isinstance(table.deployed, MaskedDeployed):
        return {}
    return {"formats": {name: asdict(how) for name, how in table.deployed.executed(kept).items()}}


def promise_text(promise: Mapping[str, Any]) -> str:
    """One line that compares a promise with what was measured."""
    text = _compared(promise) if "table_of" not in promise else _beside_each_other(promise)
    if "formats" in promise:
        counts = Counter(how["format"] for how in promise["formats"].values())
        chosen = ", ".join(f"{count} {form}" for form, count in counts.most_common())
        text += f"; weights by format: {chosen} (latency.json says which)"
    return text


def _compared(promise: Mapping[str, Any]) -> str:
    """What was promised of this device, and by how much it was missed."""
    predicted, measured = promise["predicted_ratio"], promise["measured_ratio"]
    error = 100 * (promise["measured_ms"] / promise["predicted_ms"] - 1)
    return (
        f"latency promised: {promise['predicted_ms']:.3g} ms, {100 * predicted:.1f} % of dense; "
        f"measured: {promise['measured_ms']:.3g} ms ({error:+.1f} %), "
        f"{100 * measured:.1f} % of dense ({100 * (measured / predicted - 1):+.1f} %)"
    )


def _beside_each_other(promise: Mapping[str, Any]) -> str:
    """What was promised of another device, which no time of this one can confirm."""
    return (
        f"latency promised of {promise['table_of']}: {promise['predicted_ms']:.3g} ms, "
        f"{100 * promise['predicted_ratio']:.1f} % of dense; on this device, of which the table "
        f"says nothing: {100 * promise['measured_ratio']:.1f} % of dense"
    )


def whole_networks(settings: Settings) -> dict[str, Any]:
    """How many networks to time as a whole, and for how long."""
    return {
        "networks": whole(settings, "latency.networks", 2),
        "budget_s": number(settings, "latency.budget_s", 0),
    }


def network_table(bench: Bench) -> NetworkTable:
    """The latency table of this device as the bench's network uses it.

    Raises:
        InputError: The table is of another device (without ``latency.force``) or damaged.
    """
    settings = bench.config["latency"]
    _require_numbers(settings)
    here = fingerprint(bench)
    table, foreign = open_table(settings, here)
    effort = Effort(repeats=whole(settings, "latency.repeats", 6))
    meter = None
    if flag(settings, "latency.measure") and not foreign:
        meter = _meter(bench, effort)
    return NetworkTable(
        _deployed(bench),
        table,
        _space(bench),
        meter,
        batch=whole(settings, "latency.batch", 1),
        threads=here.threads,
        effort=effort,
        manners=Manners(
            flag(settings, "latency.allow_busy"), number(settings, "latency.wait_s", 0)
        ),
        report=_report,
    )


def _require_numbers(settings: Settings) -> None:
    """Refuses, before anything is measured, what would only be read behind it.

    Raises:
        InputError: A setting is no number, or too small.
    """
    most_mape(settings)
    whole_networks(settings)


def _deployed(bench: Bench) -> Deployed | MaskedDeployed:
    """What makes the networks, with packed weights where zeros are inside layers.

    Raises:
        InputError: Zeros are inside layers, and nothing here runs them fast.
    """
    if not isinstance(bench.plan, MaskedPlan):
        return Deployed(bench.trace, bench.device, bench.dtype, bench.channels_last)
    if bench.device.type != "cpu" or bench.dtype != torch.float32:
        raise InputError(
            f"latency of granularity={bench.config['granularity']['name']} is that of sparse "
            "kernels, which run on the CPU in float32: set device=cpu dtype=float32"
        )
    return MaskedDeployed(bench.trace, bench.plan)


def _report(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _space(bench: Bench) -> Space:
    granularity = bench.config["granularity"]
    return Space.of(bench.plan.targets, bench.rounding, granularity["min_keep"])


def _meter(bench: Bench, effort: Effort) -> Meter:
    if bench.device.type == "cuda":
        from automl.executors.latency_cuda import CudaMeter

        return CudaMeter(bench.device, effort)
    return CpuMeter(_threads(bench), effort)


def _threads(bench: Bench) -> int:
    if bench.config["threads"] is None:
        return torch.get_num_threads()
    return whole(bench.config, "threads", 1)


def fingerprint(bench: Bench) -> Fingerprint:
    """What this process would measure on."""
    settings = bench.config["latency"]
    if bench.device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(bench.device)
        processor, capability = torch.cuda.get_device_name(bench.device), f"sm_{major}{minor}"
    else:
        processor, capability = cpu_name(), torch.backends.cpu.get_cpu_capability()
    return Fingerprint(
        device=bench.device.type,
        processor=processor,
        capability=capability,
        cores=os.cpu_count() or 1,
        threads=_threads(bench) if bench.device.type == "cpu" else 1,
        torch=torch.__version__,
        dtype=str(bench.dtype).removeprefix("torch."),
        layout="channels_last" if bench.channels_last else "contiguous",
        repeats=whole(settings, "latency.repeats", 6),
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        system=f"{os.uname().sysname} {os.uname().machine}",
    )


def open_table(settings: Settings, here: Fingerprint) -> tuple[Table, bool]:
    """The table to use, and whether it is of another device.

    Raises:
        InputError: It is, without ``latency.force``; or it is missing or damaged.
    """
    given, force = settings["table"], flag(settings, "latency.force")
    if given is not None and not isinstance(given, str):
        raise InputError(f"latency.table must be a folder or a JSON file, got {given!r}")
    if given is not None and Path(given).suffix in (".json", ".csv"):
        return _given(Path(given), here, force)
    folder = Path("lut" if given is None else given)
    path = folder / f"{here.name}.json"
    if path.exists():
        return _given(path, here, force)
    shipped = lut_dir() / path.name
    if given is None and shipped.exists():
        found = Table.load(shipped)
        if not found.fingerprint.differences(here):
            return found.copy_to(path), False
    if not flag(settings, "latency.measure"):
        others = sorted(file.stem for file in folder.glob("*.json")) if folder.is_dir() else []
        there = f"; {folder} has {', '.join(others)}" if others else ""
        raise InputError(
            f"there is no latency table of this device in {folder} ({here.name}){there}; measure "
            "one with: prunepilot lut build, or name one with latency.table=FILE"
        )
    return Table(path, here), False


def _given(path: Path, here: Fingerprint, force: bool) -> tuple[Table, bool]:
    table = Table.load(path)
    differences = table.fingerprint.differences(here)
    if differences and not force:
        raise InputError(
            f"latency table {path} is of another device: {', '.join(differences)}; measure one "
            "here with: prunepilot lut build, or use it all the same with latency.force=true"
        )
    return table, bool(differences)
