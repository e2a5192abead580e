"""``prunepilot prune``: one pruned network from a ratio or a policy, without a search."""

from __future__ import annotations

import argparse
import glob
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from automl.commands.options import add_override_arguments
from automl.signals import exit_code, unmasked, word

if TYPE_CHECKING:
    from torch import nn

    from automl.commands.build import Bench
    from automl.plan import IndexPlan
    from automl.policy import Policy
    from automl.pruning.masked_plan import MaskedPlan

SUMMARY = "prune and repair a network by one ratio or a policy file, train it if asked, and save it"
EXAMPLE = (
    "prunepilot prune model=digits ratio=0.8 granularity=unstructured criterion=l1"
    " schedule=cubic finetune=short run_dir=sparse/\n"
    "  prunepilot prune model=gpt_tiny depth.blocks=blocks depth.remove=1 ratio=0.25"
)

#: Settings that decide nothing where the policy is given.
_OF_SEARCHES = ("budget", "strategy")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's options."""
    parser.add_argument(
        "--policy", metavar="FILE", type=Path, help="run folder, .json or .csv, in place of ratio="
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="a new folder, as run_dir=DIR")
    add_override_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Prunes, repairs, trains where asked, measures and saves."""
    from automl.commands.compose import compose

    config, policy = compose(args.overrides), None
    out = _folder(args.out, config)
    _check(config, out or _new_folder(config), args.policy is not None)
    if args.policy is not None:
        from automl.policy_csv import load_policy

        policy = load_policy(args.policy)
    return execute(config, out, policy)


def _folder(out: Path | None, config: Mapping[str, Any]) -> Path | None:
    """Where to write: --out or run_dir=; None where that was not said."""
    from automl.commands.settings import run_dir
    from automl.types import InputError

    if out is not None and config["run_dir"] is not None:
        raise InputError("prune writes to --out DIR or run_dir=DIR; give one of them")
    return out or run_dir(config)


def _new_folder(config: Mapping[str, Any]) -> Path:
    """A new folder below runs/, named after what runs."""
    from datetime import datetime

    return Path(f"{_start_of_name(config)}-{datetime.now():%Y%m%d-%H%M%S}")


def _start_of_name(config: Mapping[str, Any]) -> str:
    model = str(config["model"]["name"]).replace(":", ".").rpartition(".")[2]
    return f"runs/{model}-{config['granularity']['name']}"


def execute(config: Mapping[str, Any], out: Path | None, policy: Policy | None) -> int:
    """Prunes by a policy, or by the ratio in the settings.

    Args:
        config: The resolved configuration.
        out: The folder to write; None: a new one below runs/.
        policy: What is kept; None: as ``ratio`` says.

    Returns:
        0, or 130 or 143 where it was interrupted or terminated.

    Raises:
        InputError: Both or neither are given, the policy is of another network, or ``out`` is
            not free.
    """
    folder = out or _new_folder(config)
    _check(config, folder, policy is not None)

    from automl.commands.build import Bench
    from automl.commands.settings import set_up_process

    set_up_process(config)
    pruning = _Pruning.of(Bench(config), policy)
    # A name of its own, whatever it is called from here. The time is in the name of a new folder:
    # the same command would not find its checkpoints again.
    start = folder.absolute() if out is not None else pruning.start_of_checkpoints.absolute()
    checkpoints = start.with_name(f"{start.name}.training")
    try:
        with unmasked():
            return pruning.run(folder, checkpoints)
    except KeyboardInterrupt as stop:
        begun = _begun(checkpoints)
        hint = f"; go on with: the same command, which finds {begun}" if begun else ""
        print(f"\nprunepilot: {word(stop)}{hint}", file=sys.stderr)
        return exit_code(stop)


def _begun(checkpoints: Path) -> Path | None:
    """The last that a run which was cut has left, as a person in the current folder names it."""
    left = sorted(checkpoints.parent.glob(f"{glob.escape(checkpoints.name)}-*"))
    if not left:
        return None
    here = Path.cwd()
    return left[-1].relative_to(here) if left[-1].is_relative_to(here) else left[-1]


def _check(config: Mapping[str, Any], out: Path, has_policy: bool) -> None:
    """Refuses what can be refused before anything is loaded."""
    from automl.commands.compose import refuse
    from automl.commands.depth import blocks_to_remove
    from automl.commands.out import check_new_folder
    from automl.commands.settings import run_dir
    from automl.types import InputError

    refuse(config["overrides"], _OF_SEARCHES, "is of searches, and nothing is searched here")
    ratio, shortens = config["ratio"], blocks_to_remove(config) > 0
    if (ratio is not None and has_policy) or not (ratio is not None or has_policy or shortens):
        both = "not both" if ratio is not None else "one of them"
        raise InputError(f"prune takes ratio=0.5 (the fraction to remove) or --policy FILE, {both}")
    if isinstance(ratio, Mapping) and not ratio:
        raise InputError("ratio={} names nothing to prune; give ratio=0.5, or ratio={fc: 0.5}")
    for one in ratio.values() if isinstance(ratio, Mapping) else [ratio]:
        is_number = isinstance(one, int | float) and not isinstance(one, bool)
        if ratio is not None and not (is_number and 0 <= one < 1):
            raise InputError(f"ratio must be in [0, 1), the fraction to remove, got {one!r}")
    check_new_folder(out, "run_dir" if out == run_dir(config) else "--out")


@dataclass(frozen=True, eq=False)
class _Pruning:
    """One call of the verb.

    Attributes:
        bench: The network with all that belongs to it.
        plan: What can be pruned.
        policy: What is to be kept.
    """

    bench: Bench
    plan: IndexPlan | MaskedPlan
    policy: Policy

    @classmethod
    def of(cls, bench: Bench, policy: Policy | None) -> _Pruning:
        """Decides what is kept.

        Raises:
            InputError: A ratio or a policy does not go with the network.
        """
        if policy is None:
            return cls(bench, bench.plan, policy_from_settings(bench))
        from automl.pruning.grains import is_inside
        from automl.pruning.masked_plan import MaskedPlan

        plan = bench.trace.plan
        found: IndexPlan | MaskedPlan = plan
        if any(is_inside(decision.granularity) for decision in policy.decisions):
            found = MaskedPlan.for_policy(bench.loaded.model, plan, policy)
        policy.check(found.targets, bench.pruner_of(found).model_hash)
        return cls(bench, found, policy)

    @property
    def start_of_checkpoints(self) -> Path:
        """A path that all runs have in common which train the same, and no others."""
        from automl.hashing import digest, weights_hash
        from automl.runs import identity, to_yaml

        settings = to_yaml(identity(self.bench.config))
        name = digest(settings, weights_hash(self.bench.loaded.model), self.policy.key)[:12]
        return Path(f"{_start_of_name(self.bench.config)}-{name}")

    def run(self, out: Path, checkpoints: Path) -> int:
        """Prunes, trains, measures and saves.

        Training that was cut goes on where it was.

        Args:
            out: The folder to write.
            checkpoints: Start of the paths of the checkpoints, beside ``out``.
        """
        from automl.commands.refined import forget, kept
        from automl.commands.training import (
            BenchTraining,
            codebook_of,
            grains_of,
            schedule_of,
            tuning_of,
            with_shared_weights,
        )
        from automl.pruning.schedules.session import open_session
        from automl.pruning.sparse_pruner import with_units

        tuning, codebook = tuning_of(self.bench.config), codebook_of(self.bench.config)
        schedule = schedule_of(self.bench.config, grains_of(self.policy), tuning.epochs)
        pruner = self.bench.refining_pruner_of(self.plan)
        policy = with_units(pruner, self.policy)
        trains = tuning.epochs > 0 or (codebook is not None and codebook.epochs > 0)
        if trains:
            checkpoints.parent.mkdir(parents=True, exist_ok=True)
        remembered = trains and self.bench.refines
        first = kept(checkpoints, self.bench, pruner, policy) if remembered else None
        networks = {**self._dense(), "pruned": pruner.prune(policy) if first is None else first}
        if tuning.epochs:
            training = BenchTraining(self.bench, tuning, "pruned", checkpoints)
            session = open_session(pruner, policy, training, lambda: networks["pruned"])
            networks[f"trained, {schedule.name}"] = schedule.run(session, tuning.epochs)
            policy = session.policy
        if codebook is not None:
            last, own = list(networks.values())[-1], checkpoints.with_name(f"{checkpoints.name}-c")
            networks["shared weights"] = with_shared_weights(
                self.bench, last, codebook, "pruned", own
            )
        self._save(out, list(networks.values())[-1], policy)
        for checkpoint in checkpoints.parent.glob(f"{glob.escape(checkpoints.name)}-*.pt"):
            checkpoint.unlink(missing_ok=True)  # the same command may run twice
        forget(checkpoints)
        self._show(networks, policy)
        form = "a graph module" if self._needs_graph(policy) else "the model's own classes"
        print(f"wrote {out} ({form}; load it with automl.load_pruned)")
        return 0

    def _dense(self) -> dict[str, nn.Module]:
        """The network as it came and, where blocks were left out, what that left."""
        bench = self.bench
        if bench.loaded is bench.complete:
            return {"dense": bench.complete.model}
        removed, blocks = bench.loaded.kwargs["removed"], bench.loaded.kwargs["blocks"]
        without = f"without {blocks}.{','.join(map(str, removed))}"
        return {"dense": bench.complete.model, without: bench.loaded.model}

    def _needs_graph(self, policy: Policy) -> bool:
        return self.plan.needs_graph_form(policy.kept(self.plan.targets))

    def _save(self, out: Path, network: nn.Module, policy: Policy) -> None:
        from automl.model_folder import save_pruned
        from automl.paths import whole_folder

        dense, known = self.bench.loaded, "data" in vars(self.bench)
        normalisation = self.bench.normalisation if known else {}
        with whole_folder(out) as partial:
            save_pruned(
                partial, network, dense=dense, plan=self.plan, policy=policy, **normalisation
            )

    def _show(self, networks: Mapping[str, nn.Module], policy: Policy) -> None:
        """Prints costs and, where there is data that fits, accuracy."""
        from automl.commands.prune_table import costs_of, print_networks
        from automl.types import FailedError, InputError

        note = None
        try:
            _ = self.bench.data
        except InputError as error:
            note = f"accuracy was not measured: {error}"
        scorers = {}
        if note is None:
            scorers = {"val": self.bench.tuning_scorer, "test": self.bench.test_scorer}
        whole, dense = self.bench.complete_plan, self.plan.dense
        pruned = costs_of(self.plan, policy.kept(self.plan.targets))
        first = [costs_of(whole, whole.dense), costs_of(self.plan, dense)][: len(self._dense())]
        costs = [*first, *[pruned] * (len(networks) - len(first))]
        name = self.bench.loaded.name
        try:
            print_networks(name, policy, networks, costs, scorers)
        except (InputError, FailedError) as error:  # what is pruned is saved, and shown without
            note = f"accuracy was not measured: {error}"
            print_networks(name, policy, networks, costs, {})
        if note is not None:
            print(note)


def policy_from_settings(bench: Bench) -> Policy:
    """The policy of ``ratio=``; says where ``granularity.rounding`` makes it another ratio."""
    from automl.commands.settings import whole
    from automl.pruning.pruner import Pruner, policy_from_ratios
    from automl.pruning.sparse_pruner import counts_from_ratios, global_counts

    settings, pruner = bench.config["granularity"], bench.pruner
    ratio = bench.config["ratio"]
    ratio = 0.0 if ratio is None else ratio  # depth alone
    min_keep = settings["min_keep"]
    rounding = whole(settings, "granularity.rounding", 1) if "rounding" in settings else 1
    if isinstance(pruner, Pruner):
        policy = policy_from_ratios(pruner, ratio, rounding, min_keep)
    elif settings["scope"] == "global":
        return pruner.policy(global_counts(pruner, ratio, min_keep))
    else:
        policy = pruner.policy(counts_from_ratios(pruner.plan, ratio, rounding, min_keep))
    if min_keep == 0:  # else that is what keeps more
        _tell_of_rounding(pruner.plan, policy, ratio, rounding)
    return policy


def _tell_of_rounding(
    plan: IndexPlan | MaskedPlan,
    policy: Policy,
    ratio: float | Mapping[str, float],
    rounding: int,
) -> None:
    """One line where the nearest multiple is further from the ratio than half a step.

    Neither nothing nor everything is kept, so that the nearest may be out of bounds.
    """
    from automl.fitting import round_ratio, step_for
    from automl.pruning.grains import is_inside

    if isinstance(ratio, Mapping):
        asked = {plan.target_index(name): one for name, one in ratio.items()}
    else:
        asked = dict.fromkeys(range(len(plan.targets)), ratio)
    kept, removed = policy.kept(plan.targets), []
    for index, one in asked.items():
        target = plan.targets[index]
        if is_inside(target.kind) or target.kind == "head" or not one or target.units == 1:
            continue
        far = abs(int(kept[index]) - (1 - one) * target.units)
        nearer = abs(round_ratio(one, target.units, 1) - (1 - one) * target.units)
        if far > max(step_for(target.units, rounding) / 2, nearer):
            removed.append(100 * (1 - int(kept[index]) / target.units))
    if removed:
        least, most = f"{min(removed):.3g}", f"{max(removed):.3g}"
        share = most if least == most else f"{least} to {most}"
        print(
            f"ratio={ratio}: granularity.rounding={rounding} removes {share} % instead "
            f"({len(removed)} of {len(asked)} targets); granularity.rounding=1 comes nearer",
            file=sys.stderr,
        )
