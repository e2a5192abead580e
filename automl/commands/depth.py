"""``depth.*``: whole blocks are left out before anything else, those missed least first."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from automl.trust import SHORTER
from automl.types import InputError

if TYPE_CHECKING:
    from automl.commands.build import Bench
    from automl.models import LoadedModel


def blocks_to_remove(config: Mapping[str, Any]) -> int:
    """How many blocks are to be left out; 0 where depth is not pruned.

    Raises:
        InputError: One of the settings is missing or off.
    """
    # Runs that were started before there was depth have no such settings.
    settings = config.get("depth") or {}
    remove, blocks = settings.get("remove"), settings.get("blocks")
    if remove is None and blocks is None:
        return 0
    if not isinstance(remove, int) or isinstance(remove, bool) or remove < 1:
        raise InputError(f"depth.remove must be a whole number >= 1 of blocks, got {remove!r}")
    if not isinstance(blocks, str) or not blocks:
        raise InputError(
            f"depth.blocks must be the path of a list of residual blocks, as blocks, got {blocks!r}"
        )
    return remove


def shortened(bench: Bench) -> LoadedModel:
    """The network without the blocks that are missed least; the network itself without ``depth``.

    Blocks are scored on the validation data by ``scoring.score``.

    Raises:
        InputError: There are no such blocks, or too few.
    """
    whole, remove = bench.complete, blocks_to_remove(bench.config)
    if not remove:
        return whole
    from automl.pruning.depth import shorten

    blocks = bench.config["depth"]["blocks"]
    found = shorten(whole.model, blocks, bench.careful_scorer, remove)
    for block, score in zip(found.removed, found.scores, strict=True):
        line = f"left out {blocks}.{block}: {bench.careful_scorer.score} {abs(score):.4f}"
        print(line, file=sys.stderr, flush=True)
    made = {
        "factory": whole.factory,
        "kwargs": dict(whole.kwargs),
        "blocks": blocks,
        "removed": sorted(found.removed),
    }
    return replace(whole, model=found.model, factory=SHORTER, kwargs=made)
