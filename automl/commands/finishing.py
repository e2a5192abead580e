"""What follows a search: the final networks are fine-tuned, measured once, and written."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from automl.commands.build import Bench, number
from automl.commands.table import Row
from automl.executors.latency import Latency, measure_latency
from automl.model_folder import save_pruned
from automl.policy import Policy
from automl.problem import Problem, Trial
from automl.runs import POLICY_UNIFORM, RESULT, RunFolder
from automl.training.config import FinetuneConfig
from automl.training.finetune import EpochRow, finetune
from automl.types import Measurement

RESULT_SCHEMA = "prunepilot/result"
RESULT_VERSION = 1


@dataclass(frozen=True, eq=False)
class Finals:
    """What a search ended with.

    Attributes:
        problem: The problem that was searched.
        dense: The dense network's measurement.
        uniform: The trial that prunes every target alike.
        found: The trial that the strategy chose.
    """

    problem: Problem
    dense: Measurement
    uniform: Trial
    found: Trial

    @property
    def trials(self) -> dict[str, Trial]:
        """Name -> trial of the final pruned networks, the one to keep last."""
        if self.uniform.policy == self.found.policy:
            return {"found = uniform": self.found}
        return {"uniform": self.uniform, "found": self.found}


@dataclass(frozen=True, eq=False)
class _Final:
    """A network that goes into the table; ``policy`` is None for the dense one."""

    name: str
    network: nn.Module
    policy: Policy | None
    measurement: Measurement


def finish(bench: Bench, folder: RunFolder, finals: Finals, tuning: FinetuneConfig) -> None:
    """Fine-tunes and measures the final networks, and writes them with the result.

    Args:
        bench: What the search worked with.
        folder: Where to write.
        finals: What the search ended with.
        tuning: How to fine-tune; no epochs, no fine-tuning.
    """
    pruned = [_pruned(bench, name, trial) for name, trial in finals.trials.items()]
    dense = _Final("dense", bench.loaded.model, None, finals.dense)
    networks = [dense, *pruned]
    if tuning.epochs:
        networks += [_tuned(bench, folder, final, tuning) for final in pruned]
    latencies = _latencies(bench, networks)
    rows = [_row(bench, final, latencies.get(final.name)) for final in networks]
    _save(bench, folder, networks[-1])
    finals.uniform.policy.save(folder.file(POLICY_UNIFORM))
    result = {**_about(bench, finals), "rows": [asdict(row) for row in rows]}
    folder.write_json(RESULT, result)  # last: it says that the run is done
    for checkpoint in folder.path.glob("finetune-*.pt"):
        checkpoint.unlink()


def _pruned(bench: Bench, name: str, trial: Trial) -> _Final:
    assert trial.measurement is not None  # for the type checker: chosen trials succeeded
    network = bench.pruner.prune(trial.policy)
    return _Final(name, network, trial.policy, trial.measurement)


def _tuned(bench: Bench, folder: RunFolder, final: _Final, config: FinetuneConfig) -> _Final:
    """Fine-tunes a fresh copy; its checkpoint in the folder lets a cut run go on."""
    assert final.policy is not None  # for the type checker: the dense network is not tuned
    network = bench.pruner.prune(final.policy)
    data, short = bench.data, final.name.split()[0]

    def report(row: EpochRow) -> None:
        loss = "" if row.train_loss is None else f", loss {row.train_loss:.4f}"
        score = "" if row.score is None else f", validation top1 {row.score:.4f}"
        line = f"fine-tuning {final.name} {row.epoch}/{config.epochs}{loss}{score}"
        print(line, file=sys.stderr, flush=True)

    finetune(
        network,
        data.train,
        config,
        **bench.normalisation,
        augment=data.augment,
        distill_from=bench.loaded.model,
        validation_scorer=bench.tuning_scorer,
        device=bench.device,
        dtype=bench.dtype,
        channels_last=bench.channels_last,
        checkpoint=folder.path / f"finetune-{short}.pt",
        progress=report,
    )
    network.eval()
    score, metrics = bench.scorer(network)
    measured = Measurement(score, metrics, final.measurement.costs)
    return _Final(f"{final.name}, tuned", network, final.policy, measured)


def _latencies(bench: Bench, networks: Sequence[_Final]) -> dict[str, Latency]:
    budget_s = number(bench.config, "latency_budget_s", 0)
    if budget_s == 0:
        return {}
    example = torch.zeros(1, *bench.loaded.input_shape, device=bench.device)
    # As deployed: batch norms folded, in the dense network too.
    named = {final.name: bench.pruner.for_inference(final.network) for final in networks}
    return measure_latency(named, example, budget_s=budget_s)


def _row(bench: Bench, final: _Final, latency: Latency | None) -> Row:
    found = final.measurement
    return Row(
        name=final.name,
        macs=int(found.costs["macs"]),
        params=int(found.costs["params"]),
        score=found.metrics[bench.scorer.score],
        validation_top1=found.metrics.get("top1"),
        test_top1=bench.test_scorer(final.network)[1]["top1"],
        latency_ms=None if latency is None else latency.median_ms,
        latency_ratio=None if latency is None else latency.ratio,
    )


def _save(bench: Bench, folder: RunFolder, final: _Final) -> None:
    assert final.policy is not None  # for the type checker: the last network is a pruned one
    save_pruned(
        folder.path,
        final.network,
        dense=bench.loaded,
        plan=bench.trace.plan,
        policy=final.policy,
        **bench.normalisation,
    )


def _about(bench: Bench, finals: Finals) -> dict[str, Any]:
    """What result.json says beside the rows."""
    problem, data = finals.problem, bench.data
    graph_form = bench.trace.plan.needs_graph_form(finals.found.policy.kept(problem.targets))
    return {
        "schema": RESULT_SCHEMA,
        "version": RESULT_VERSION,
        "model": bench.loaded.name,
        "data": data.name,
        "score": bench.scorer.score,
        "budget": str(problem.budget),
        "limits": problem.limits,
        "trials": len(problem.trials),
        "failed": sum(trial.status == "failed" for trial in problem.trials),
        "form": "graph" if graph_form else "modules",
        "device": str(bench.device),
        "validation_images": len(data.validation),
        "test_images": len(data.test),
    }
