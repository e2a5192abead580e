"""In what type and with how many examples at once trials are scored, chosen by measuring.

``scoring.precision=auto`` takes bfloat16 where that is faster than ``dtype`` here and ranks a few
random policies as that does; ``scoring.batch_size=auto`` takes the size with the most examples a
second. What is chosen moves scores in their last digits, so that a run decides once, writes
it down, and goes on with it wherever it is resumed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from automl.batch_size import CANDIDATES
from automl.device import resolve_dtype
from automl.problem import Problem
from automl.scoring import ClassifierScorer
from automl.strategies.random import Random
from automl.types import InputError

if TYPE_CHECKING:
    from automl.commands.build import Bench

AUTO = "auto"

#: A type and a batch size.
_Way = tuple[str, "int | None"]

#: Policies that both types must rank alike, and images that they are ranked on.
_POLICIES, _IMAGES = 8, 1000
#: Less gain than this is not worth other digits.
_GAIN = 1.1
_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class ScoringChoice:
    """How trials are scored.

    Attributes:
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        batch_size: Examples per forward pass; None: by the size of an image.
        why: What was measured, for people.
    """

    dtype: str
    batch_size: int | Literal["auto"] | None = None
    why: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The document that :func:`chosen` reads."""
        return asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any], source: str) -> ScoringChoice:
        """Reads what a run has written.

        Raises:
            InputError: It is damaged.
        """
        try:
            found = cls(**document)
            resolve_dtype(found.dtype, torch.device("cpu"))
            size = found.batch_size
            if size is None or (isinstance(size, int) and size >= 1):
                return found
        except (TypeError, InputError):
            pass
        raise InputError(f"{source} is damaged; delete it to choose anew")


def asked(config: Mapping[str, Any]) -> ScoringChoice:
    """What the settings say, ``auto`` included.

    Raises:
        InputError: A setting is off.
    """
    section = config["scoring"]
    precision, size = section.get("precision") or config["dtype"], section["batch_size"]
    if precision not in (AUTO, config["dtype"], "float32", "bfloat16"):
        raise InputError(
            f"scoring.precision must be null, auto, float32 or bfloat16, got {precision!r}"
        )
    is_size = isinstance(size, int) and not isinstance(size, bool) and size >= 1
    if size not in (None, AUTO) and not is_size:
        raise InputError(
            f"scoring.batch_size must be null, auto or a whole number >= 1, got {size!r}"
        )
    return ScoringChoice(str(precision), size)


def chosen(bench: Bench, file: Path | None) -> ScoringChoice:
    """What to score trials with: as asked, as the run has it, or as measured now.

    Args:
        bench: Network, images and budget.
        file: Where the run keeps what was chosen, if it is a run.

    Raises:
        InputError: A setting is off, or the file is damaged.
    """
    want = asked(bench.config)
    if AUTO not in (want.dtype, want.batch_size):
        return want
    if file is not None and file.is_file():
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{file} is damaged; delete it to choose anew") from error
        return ScoringChoice.from_dict(document, str(file))
    return _Measuring(bench, want).choose()


class _Measuring:
    """Scores the same slim networks in several ways, in turn."""

    def __init__(self, bench: Bench, want: ScoringChoice) -> None:
        self._bench, self._want = bench, want

    def choose(self) -> ScoringChoice:
        """The fastest way that ranks the networks as the run's own type does."""
        types, sizes = self._types(), self._sizes()
        scorers = {
            (dtype, size): self._bench.trial_scorer(ScoringChoice(dtype, size), _IMAGES)
            for dtype in types
            for size in sizes
        }
        if len(scorers) == 1:
            return ScoringChoice(types[0], sizes[0], "nothing to choose from")
        least, scores = self._timed(scorers, self._random_networks())
        fastest = {t: min(sizes, key=lambda s: least[t, s]) for t in types}
        first = types[0]
        text = f"{first}: {least[first, fastest[first]]:.3g} s to score {_POLICIES} networks"
        for other in types[1:]:
            gain = least[first, fastest[first]] / least[other, fastest[other]]
            alike = _order(scores[first]) == _order(scores[other])
            ranks = "ranks them alike" if alike else "ranks them otherwise"
            text += f"; {other}: {gain:.2f} times as fast, {ranks}"
            if gain >= _GAIN and alike:
                return ScoringChoice(other, fastest[other], text)
        return ScoringChoice(first, fastest[first], text)

    def _types(self) -> list[str]:
        own = str(self._bench.config["dtype"])
        if self._want.dtype != AUTO:
            return [self._want.dtype]
        if own != "float32" or not _computes_bfloat16(self._bench.device):
            return [own]
        return [own, "bfloat16"]

    def _sizes(self) -> list[int | None]:
        asked_for = self._want.batch_size
        if asked_for != "auto":
            return [asked_for]
        most = min(_IMAGES, len(self._bench.search_images))
        sizes: list[int | None] = [size for size in CANDIDATES if size <= most]
        return sizes or [None]

    def _random_networks(self) -> list[nn.Module]:
        """Repaired as in trials, and not trained."""
        bench, budget = self._bench, self._bench.config["budget"]
        pruner, costs = bench.quick_pruner, bench.costs_for(budget)
        problem = Problem(bench.plan, pruner, bench.careful_scorer, budget, costs)
        rng, draw = np.random.default_rng(0), Random().draw
        policies = [problem.policy(draw(problem, rng)) for _ in range(_POLICIES)]
        return [pruner.for_inference(pruner.prune(policy)) for policy in policies]

    @staticmethod
    def _timed(
        scorers: Mapping[_Way, ClassifierScorer], networks: Sequence[nn.Module]
    ) -> tuple[dict[_Way, float], dict[str, list[float]]]:
        """Least seconds of each way for all networks, and each type's scores."""
        least = dict.fromkeys(scorers, float("inf"))
        scores: dict[str, list[float]] = {}
        for scorer in scorers.values():
            scorer.prepare()
        for _ in range(_ROUNDS):
            for way, scorer in scorers.items():
                begin = time.perf_counter()
                scores[way[0]] = [scorer(network)[0] for network in networks]
                least[way] = min(least[way], time.perf_counter() - begin)
        return least, scores


def _order(scores: list[float]) -> list[int]:
    return sorted(range(len(scores)), key=lambda i: (scores[i], i))


def _computes_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
