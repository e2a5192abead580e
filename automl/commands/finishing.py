"""What follows a search: the final networks are fine-tuned, measured once, and written."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from automl.commands import pruners
from automl.commands.build import Bench
from automl.commands.latency import kept_promise
from automl.commands.refined import forget, kept
from automl.commands.settings import number
from automl.commands.table import Row
from automl.commands.training import (
    BenchTraining,
    codebook_of,
    grains_of,
    schedule_of,
    with_shared_weights,
)
from automl.executors.latency import Latency, measure_latency
from automl.executors.latency_masked import MaskedDeployed
from automl.model_folder import save_pruned
from automl.policy import Policy
from automl.problem import Problem, Trial
from automl.pruning.schedules.session import open_session
from automl.runs import (
    POLICY_UNIFORM,
    RESULT,
    RESULT_SCHEMA,
    RESULT_VERSION,
    RunFolder,
    config_hash,
)
from automl.training.config import FinetuneConfig
from automl.types import CostModel, FailedError, Measurement


@dataclass(frozen=True, eq=False)
class Finals:
    """What a search ended with.

    Attributes:
        problem: The problem that was searched.
        tried: All trials of the search, those of policies that were tried before included.
        dense: The dense network's measurement.
        best: Name -> chosen trial: the baselines, uniform first, and ``found`` last.
        count: Among how many of its best trials every search chose.
        latency: Predicts latency, where the network found was timed; None for the problem's.
        wall_seconds: How long the search took, the strategy's own work included.
        exhausted: Whether it ended before its trials because it found no policy that was new.
        scored: A trial for every distinct policy that the search asked for.

    All measurements are on all validation images.
    """

    problem: Problem
    tried: Sequence[Trial]
    dense: Measurement
    best: Mapping[str, Trial]
    count: int = 1
    latency: CostModel | None = None
    wall_seconds: float | None = None
    exhausted: bool = False
    scored: Sequence[Trial] = ()

    @property
    def distinct(self) -> dict[str, Trial]:
        """As ``best``, equal policies under one name (``found = uniform``); the found one last."""
        names: dict[str, list[str]] = {}
        for name, trial in reversed(list(self.best.items())):
            names.setdefault(trial.policy.key, []).append(name)
        return {" = ".join(same): self.best[same[0]] for same in reversed(list(names.values()))}


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

    The result has a line for every network whose training failed; it stays as it was before.
    """
    refined = folder.path / "refined"
    pruned = [_pruned(bench, refined, name, trial) for name, trial in finals.distinct.items()]
    dense = _Final("dense", bench.loaded.model, None, finals.dense)
    networks, found, failures = [dense, *pruned], pruned[-1], list[str]()
    for final in pruned if tuning.epochs else ():
        try:
            networks.append(_tuned(bench, folder, final, tuning))
        except FailedError as error:
            failures.append(f"{final.name}: {error}")
        else:
            found = networks[-1] if final is pruned[-1] else found
    codebook = codebook_of(bench.config)
    if codebook is not None:
        found = _shared(bench, folder, found, codebook)
        networks.append(found)
    timing = _timing(bench, finals.problem)
    latencies = _latencies(bench, networks, timing)
    rows = [_row(bench, final, latencies.get(final.name)) for final in networks]
    _save(bench, folder, found)
    finals.best["uniform"].policy.save(folder.file(POLICY_UNIFORM))
    promise = kept_promise(bench, finals, folder.path)
    result = {
        **_about(bench, finals),
        "config_hash": config_hash(folder.config()),
        "latency_of": asdict(timing),
        "latency_promise": promise,
        "failures": failures,
        "rows": [asdict(row) for row in rows],
    }
    folder.write_json(RESULT, result)  # last: it says that the run is done
    for checkpoint in folder.path.glob("finetune-*.pt"):
        checkpoint.unlink()
    forget(refined)


def _pruned(bench: Bench, refined: Path, name: str, trial: Trial) -> _Final:
    assert trial.measurement is not None  # for the type checker: chosen trials succeeded
    if not bench.refines:
        network = bench.finalist_pruner.prune(trial.policy)
        return _Final(name, network, trial.policy, trial.measurement)
    print(f"refining {name}", file=sys.stderr, flush=True)
    pruner = bench.refining_pruner
    trained = pruners.training(bench, pruner)
    network = kept(refined, bench, pruner, trial.policy, lambda: trained.prune(trial.policy))
    score, metrics = bench.careful_scorer(network)
    measured = Measurement(score, metrics, trial.measurement.costs)
    return _Final(name, network, trial.policy, measured)


def _tuned(bench: Bench, folder: RunFolder, final: _Final, config: FinetuneConfig) -> _Final:
    """Prunes and trains by the schedule; checkpoints in the folder let a cut run go on."""
    assert final.policy is not None  # for the type checker: the dense network is not tuned
    schedule = schedule_of(bench.config, grains_of(final.policy), config.epochs)
    checkpoints = folder.path / f"finetune-{final.name.split()[0]}"
    training = BenchTraining(bench, config, final.name, checkpoints)
    ready = partial(_untrained, bench, folder, final, final.policy)
    session = open_session(bench.refining_pruner, final.policy, training, ready)
    network = schedule.run(session, config.epochs)
    score, metrics = bench.careful_scorer(network)
    measured = Measurement(score, metrics, final.measurement.costs)
    return _Final(f"{final.name}, tuned", network, session.policy, measured)


def _untrained(bench: Bench, folder: RunFolder, final: _Final, policy: Policy) -> nn.Module:
    """What the pruner makes of the policy; a network trained for a moment is not that."""
    if bench.finalist_pruner is bench.pruner:
        return final.network
    pruner = bench.refining_pruner
    if not bench.refines:
        return pruner.prune(policy)
    return kept(folder.path / "refined-untrained", bench, pruner, policy)


def _shared(bench: Bench, folder: RunFolder, final: _Final, config: FinetuneConfig) -> _Final:
    """With 16 weights a layer, trained."""
    checkpoints = folder.path / "finetune-codebook"
    network = with_shared_weights(bench, final.network, config, final.name, checkpoints)
    score, metrics = bench.careful_scorer(network)
    measured = Measurement(score, metrics, final.measurement.costs)
    return _Final(f"{final.name}, shared weights", network, final.policy, measured)


@dataclass(frozen=True)
class _Timing:
    """What the latencies of the table are of."""

    examples: int = 1
    threads: int = 1


def _timing(bench: Bench, problem: Problem) -> _Timing:
    """As the budget of latency has it, where there is one."""
    if "latency_ms" not in problem.limits:
        return _Timing()
    return _Timing(*bench.latency_table.timing)


def _latencies(bench: Bench, networks: Sequence[_Final], timing: _Timing) -> dict[str, Latency]:
    budget_s = number(bench.config, "latency_budget_s", 0)
    if budget_s == 0:
        return {}
    one = bench.loaded.example_inputs[0][:1]
    example = torch.zeros_like(one, device=bench.device)
    examples = example.expand(timing.examples, *one.shape[1:]).contiguous()
    # As deployed: batch norms folded, in the dense network too.
    named = {final.name: _deployed(bench, final) for final in networks}
    return measure_latency(named, examples, budget_s=budget_s, threads=timing.threads)


def _deployed(bench: Bench, final: _Final) -> nn.Module:
    """As deployed: on sparse kernels, where the budget was in their time."""
    network = bench.pruner.for_inference(final.network)
    if final.policy is None or "latency_table" not in vars(bench):
        return network
    deployed = bench.latency_table.deployed
    if not isinstance(deployed, MaskedDeployed):
        return network
    return deployed.packed(network, final.policy.kept(bench.plan.targets))


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
        costs=dict(found.costs),
    )


def _save(bench: Bench, folder: RunFolder, final: _Final) -> None:
    assert final.policy is not None  # for the type checker: the last network is a pruned one
    save_pruned(
        folder.path,
        final.network,
        dense=bench.loaded,
        plan=bench.plan,
        policy=final.policy,
        **bench.normalisation,
    )


def _about(bench: Bench, finals: Finals) -> dict[str, Any]:
    """What result.json says beside the rows."""
    problem, data = finals.problem, bench.data
    graph_form = bench.plan.needs_graph_form(finals.best["found"].policy.kept(problem.targets))
    return {
        "schema": RESULT_SCHEMA,
        "version": RESULT_VERSION,
        "model": bench.loaded.name,
        "data": data.name,
        "score": bench.scorer.score,
        "budget": str(problem.budget),
        "limits": problem.limits,
        "trials": len(finals.tried),
        "networks": len(finals.scored),
        "exhausted": finals.exhausted,
        "failed": sum(trial.status == "failed" for trial in finals.tried),
        "discarded": sum(trial.status == "discarded" for trial in finals.tried),
        # Those of trials that an earlier process did are in the journal, and count too.
        "search_seconds": round(sum(trial.seconds for trial in finals.scored), 3),
        "wall_seconds": None if finals.wall_seconds is None else round(finals.wall_seconds, 3),
        "form": "graph" if graph_form else "modules",
        "device": str(bench.device),
        "search_images": len(bench.scorer),
        "finalists": finals.count,
        "validation_images": len(data.validation),
        "test_images": len(data.test),
    }
