"""``prunepilot prune``: one slim network from a ratio or a policy, without a search."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from automl.commands.options import add_override_arguments

if TYPE_CHECKING:
    from automl.commands.build import Bench
    from automl.policy import Policy

SUMMARY = "prune and repair a network by one ratio or a policy file, and save it"
EXAMPLE = "prunepilot prune model=digits --ratio 0.5 --out slim/"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's options."""
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--ratio", type=float, help="fraction to REMOVE from every group, in [0, 1)")
    how.add_argument("--policy", metavar="FILE", type=Path, help="policy.json of a search")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="a new folder")
    add_override_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Prunes, repairs and saves."""
    from automl.commands.compose import compose

    _check(args)
    config = compose(args.overrides)

    from automl.commands.build import Bench, set_threads
    from automl.model_folder import save_pruned

    set_threads(config)
    bench = Bench(config)
    policy = _policy(bench, args)
    network = bench.pruner.prune(policy)
    _make(args.out)
    save_pruned(
        args.out,
        network,
        dense=bench.loaded,
        plan=bench.trace.plan,
        policy=policy,
        **(bench.normalisation if bench.prunes_with_data else {}),
    )
    _say(bench, policy, args.out)
    return 0


def _policy(bench: Bench, args: argparse.Namespace) -> Policy:
    """What is asked for, with the units chosen."""
    from automl.commands.build import whole
    from automl.policy import Policy
    from automl.pruning.pruner import policy_from_ratios

    if args.policy is None:
        rounding = whole(bench.config["granularity"], "granularity.rounding", 1)
        return policy_from_ratios(bench.pruner, args.ratio, rounding)
    policy = Policy.load(args.policy)
    targets = bench.trace.plan.targets
    policy.check(targets, bench.pruner.model_hash)
    chosen = all(one.indices is not None or one.kept == one.units for one in policy.decisions)
    return policy if chosen else bench.pruner.policy(policy.kept(targets))


def _check(args: argparse.Namespace) -> None:
    """Refuses what can be refused before anything is loaded."""
    from automl.types import InputError

    if args.ratio is not None and not 0 <= args.ratio < 1:
        raise InputError(f"--ratio must be in [0, 1), the fraction to remove, got {args.ratio:g}")
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise InputError(f"--out {args.out} is there already; choose a new folder")


def _make(folder: Path) -> None:
    from automl.types import InputError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {folder} cannot be made: {error.strerror}") from error


def _say(bench: Bench, policy: Policy, folder: Path) -> None:
    plan = bench.trace.plan
    kept = policy.kept(plan.targets)
    for name, counts in (("MACs", plan.macs), ("params", plan.params)):
        dense, slim = int(counts(plan.dense)), int(counts(kept))
        print(f"{name:<7} {dense:>13,} -> {slim:>13,}  ({100 * slim / dense:.1f} %)")
    form = "a graph module" if plan.needs_graph_form(kept) else "the model's own classes"
    print(f"wrote {folder} ({form}; load it with automl.runs.load_pruned)")
