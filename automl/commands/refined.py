"""Final networks are refined once: what is trained from them may be cut, and goes on from the same.

A refinement takes minutes, and as many images as there is memory for at that moment.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from torch import nn

from automl.commands.build import Bench
from automl.hashing import digest
from automl.model_folder import load_pruned, save_pruned
from automl.policy import Policy
from automl.pruning.pruner import Pruner
from automl.pruning.sparse_pruner import SparsePruner
from automl.runs import REBUILD


def kept(
    start: Path,
    bench: Bench,
    pruner: Pruner | SparsePruner,
    policy: Policy,
    make: Callable[[], nn.Module] | None = None,
) -> nn.Module:
    """The pruned and refined network; from disk, where an earlier process has made it.

    Args:
        start: Start of the path of the folder that it is kept in, until :func:`forget`.
        bench: What it is made with.
        pruner: What makes it.
        policy: How it is pruned.
        make: Makes it, where the pruner alone does not.
    """
    made_by = digest(pruner.fingerprint, policy.key)
    folder = start.with_name(f"{start.name}-{made_by[:16]}")
    if not (folder / REBUILD).is_file():  # the last of its files
        network = pruner.prune(policy) if make is None else make()
        folder.mkdir(parents=True, exist_ok=True)
        save_pruned(folder, network, dense=bench.loaded, plan=pruner.plan, policy=policy)
    # Also where it has just been made: how weights lie in memory decides last bits.
    return load_pruned(folder, trust=(bench.loaded.factory,)).to(bench.device)


def forget(start: Path) -> None:
    """Removes what was kept."""
    for folder in start.parent.iterdir():
        if folder.name.startswith(f"{start.name}-") and (folder / REBUILD).is_file():
            shutil.rmtree(folder, ignore_errors=True)
