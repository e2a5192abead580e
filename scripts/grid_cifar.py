"""Criterion by granularity on a CIFAR ResNet, before and after a short fine-tuning of fixed length.

Every cell prunes every layer at one ratio (of channels: the inner ones of every residual block; of
N:M the nearest whole N, so 1:4 for .8), repairs on 1,024 unlabelled training images, and trains
for ``--steps`` steps of 128 images, drawn by the seed, with distillation. Criteria that draw
numbers prune anew with every seed. Top-1 is that of the report half of the test set (images 5,000
to 9,999), on which nothing was chosen. ``sparsegpt`` stands for masks chosen in the repair
(``repair=obs``), on twice the images and positions.

Each number is a line of the journal as soon as it is there; the same command again goes on where
it was cut. ``--table`` prints what the journal has, as Markdown.

    python scripts/grid_cifar.py --journal grid.csv
    python scripts/grid_cifar.py --journal grid.csv --table
"""

from __future__ import annotations

import argparse
import copy
import csv
import itertools
import statistics
import sys
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from repair_cifar import STREAM, load_dense
from torch import Tensor, nn

import automl
from automl.data import DataSplits, load_data
from automl.policy import Policy
from automl.pruning import criteria
from automl.pruning.criteria import Context, UnitCriterion
from automl.pruning.grains import Grains
from automl.pruning.granularities import CHANNEL
from automl.pruning.masked_plan import MaskedPlan
from automl.pruning.pruner import Pruner, policy_from_ratios
from automl.pruning.reconstruct import Reconstruction
from automl.pruning.sparse_pruner import SparsePruner, counts_from_ratios
from automl.scoring import ClassifierScorer
from automl.training.config import FinetuneConfig
from automl.training.finetune import finetune
from automl.types import InputError

#: Masks chosen within the repair; scores only say which weights that leaves open.
SPARSEGPT = "sparsegpt"
CRITERIA = ["l2", "obs", "wanda", "taylor", "random", "regression", "bn_scale"]
GRAINS = [CHANNEL, "kernel", "block:4x4", "nm:4", "unstructured"]
_BATCH = 128


@dataclass(frozen=True)
class Line:
    """One line of the journal; accuracies are fractions."""

    criterion: str
    granularity: str
    ratio: float
    seed: int
    macs: float
    before: float
    after: float

    @property
    def cell(self) -> tuple[str, str, float, int]:
        """What was measured."""
        return self.criterion, self.granularity, self.ratio, self.seed


def read(journal: Path) -> list[Line]:
    """What has been measured; a line that was cut short is left out."""
    if not journal.exists():
        return []
    kinds = [str, str, float, int, float, float, float]
    with journal.open(newline="") as file:
        rows = [row for row in csv.reader(file) if len(row) == len(kinds)][1:]
    return [Line(*(kind(value) for kind, value in zip(kinds, row, strict=True))) for row in rows]


def write(journal: Path, line: Line) -> None:
    """Adds a line."""
    new = not journal.exists()
    with journal.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow([field.name for field in fields(Line)])
        writer.writerow(astuple(line))


@dataclass(eq=False)
class Bench:
    """The dense network with its data.

    Attributes:
        args: The command line.
        data: CIFAR-10, the test set in halves.
        model: The dense network.
    """

    args: argparse.Namespace
    data: DataSplits
    model: nn.Module

    def __post_init__(self) -> None:
        """Makes what all cells share."""
        self.normal: dict[str, Any] = {"mean": self.data.mean, "std": self.data.std}
        test = self.data.test
        self.scorer = ClassifierScorer(
            test.images, test.labels, score="top1", channels_last=True, **self.normal
        )
        self.traces: dict[bool, Any] = {}
        self.contexts: dict[tuple[str, bool, int], Context] = {}

    @cached_property
    def images(self) -> tuple[Tensor, Tensor]:
        """Training images and labels for criteria and repair."""
        images = self.data.calibration(2048)
        return next(iter(images.batches(len(images), torch.device("cpu"), **self.normal)))

    def trace(self, channels: bool) -> Any:
        """The network's structure; the residual stream stays where channels go."""
        if channels not in self.traces:
            exclude = STREAM if channels else ()
            self.traces[channels] = automl.trace(self.model, self.images[0][:2], exclude=exclude)
        return self.traces[channels]

    def context(self, criterion: str, channels: bool, seed: int) -> Context:
        """What a criterion looks at; kept, so that ratios and grains share its passes."""
        key = criterion, channels, seed
        if key not in self.contexts:
            x, y = (part[:1024] for part in self.images)
            self.contexts = {key: Context(self.model, self.trace(channels).plan, x, y, seed=seed)}
        return self.contexts[key]

    def pruner(self, criterion: str, grain: str, seed: int) -> Pruner | SparsePruner:
        """The pruner of a cell."""
        inside, chosen = grain != CHANNEL, criterion == SPARSEGPT
        trace = self.trace(not inside)
        repair = Reconstruction(points=20, masks="obs") if chosen else Reconstruction()
        settings: dict[str, Any] = {
            "criterion": criteria.load("l2" if chosen else criterion),
            "context": self.context(criterion, not inside, seed),
            "calibration": self.images[0] if chosen else self.images[0][:1024],
            "reconstruct": repair,
        }
        if not inside:
            return Pruner(trace, **settings)
        plan = MaskedPlan.of(self.model, trace.plan, Grains.parse([grain]))
        return SparsePruner(trace, plan, **settings)

    def pruned(
        self, criterion: str, grain: str, ratio: float, seed: int
    ) -> tuple[nn.Module, float]:
        """The repaired network, and which fraction of the MACs stays."""
        pruner = self.pruner(criterion, grain, seed)
        policy: Policy
        if isinstance(pruner, Pruner):
            policy = policy_from_ratios(pruner, ratio, rounding=1)
            macs = pruner.plan.macs(policy.kept(pruner.plan.targets))
        else:
            kept = counts_from_ratios(pruner.plan, ratio, 1)
            policy, macs = pruner.policy(kept), pruner.plan.macs(kept)
        return pruner.prune(policy), float(macs) / self.trace(grain == CHANNEL).macs

    def score(self, network: nn.Module) -> float:
        """Top-1 on the report half."""
        return float(self.scorer(network)[0])

    def tune(self, network: nn.Module, seed: int) -> None:
        """So many steps with a cosine, augmentation and distillation, in place."""
        config = FinetuneConfig(
            epochs=1,
            lr=self.args.lr,
            batch_size=_BATCH,
            distill_weight=0.5,
            precision=self.args.precision,
            seed=seed,
        )
        images = self.data.calibration(self.args.steps * _BATCH, seed)
        finetune(
            network,
            images,
            config,
            **self.normal,
            augment=self.data.augment,
            distill_from=self.model,
            channels_last=True,
        )

    def lines(self, done: set[tuple[str, str, float, int]]) -> Iterator[Line]:
        """Measures what is not there yet."""
        args = self.args
        for criterion, grain in itertools.product(args.criteria, args.grains):
            if not fits(criterion, grain):
                continue
            for ratio in args.ratios:
                yield from self.cell(criterion, grain, ratio, done)

    def cell(
        self, criterion: str, grain: str, ratio: float, done: set[tuple[str, str, float, int]]
    ) -> Iterator[Line]:
        """The seeds of one cell; what is not random is pruned once."""
        draws = criterion != SPARSEGPT and "seed" in criteria.load(criterion).needs
        found: tuple[nn.Module, float, float] | None = None
        for seed in range(self.args.seeds):
            if (criterion, grain, ratio, seed) in done:
                continue
            if found is None or draws:
                network, macs = self.pruned(criterion, grain, ratio, seed)
                found = network, macs, self.score(network)
            network, macs, before = found
            trained = copy.deepcopy(network)  # so that the next seed starts from the same
            self.tune(trained, seed)
            after = self.score(trained)
            yield Line(criterion, grain, ratio, seed, round(macs, 4), before, after)


def fits(criterion: str, grain: str) -> bool:
    """Whether a criterion can score a grain."""
    if criterion == SPARSEGPT:
        return grain.startswith("nm") or grain == "unstructured"
    return grain == CHANNEL or not isinstance(criteria.load(criterion), UnitCriterion)


def table(lines: list[Line]) -> str:
    """One row per criterion and one column per grain, for each ratio."""
    parts = []
    for ratio in sorted({line.ratio for line in lines}):
        own = [line for line in lines if line.ratio == ratio]
        grains = list(dict.fromkeys(line.granularity for line in own))
        macs = {line.granularity: line.macs for line in own}
        heads = [f"`{grain}` ({100 * macs[grain]:.0f} % of MACs)" for grain in grains]
        rows = [["criterion", *heads], ["---"] * (1 + len(grains))]
        for criterion in dict.fromkeys(line.criterion for line in own):
            mine = [line for line in own if line.criterion == criterion]
            cells = [cell_of([one for one in mine if one.granularity == g]) for g in grains]
            rows.append([f"`{criterion}`", *cells])
        parts.append("\n".join([f"ratio {ratio:g}", "", *(f"| {' | '.join(r)} |" for r in rows)]))
    return "\n\n".join(parts)


def cell_of(lines: list[Line]) -> str:
    """Mean before, mean after with its standard error over seeds."""
    if not lines:
        return ""
    before = statistics.mean(line.before for line in lines)
    after = [100 * line.after for line in lines]
    text = f"{100 * before:.2f}, {statistics.mean(after):.2f}"
    if len(after) < 2:
        return text
    return f"{text} ± {statistics.stdev(after) / len(after) ** 0.5:.2f}"


def main() -> int:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--journal", type=Path, required=True, help="CSV of what is measured")
    parser.add_argument("--table", action="store_true", help="print the journal, measure nothing")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--criteria", nargs="+", default=[*CRITERIA, SPARSEGPT], metavar="NAME")
    parser.add_argument("--grains", nargs="+", default=GRAINS, metavar="NAME")
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.5, 0.8])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40, help="of fine-tuning")
    parser.add_argument("--lr", type=float, default=0.005)
    parser.add_argument("--precision", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--root", default=None, help="data root with cifar10/ and checkpoints/")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    try:
        if not args.table:
            data = load_data("cifar10", root=args.root, split="test_halves")
            bench = Bench(args, data, load_dense(args.model, args.root))
            for line in bench.lines({line.cell for line in read(args.journal)}):
                write(args.journal, line)
                print(line, file=sys.stderr, flush=True)
        print(table(read(args.journal)))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
