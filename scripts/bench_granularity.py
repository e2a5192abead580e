"""What each granularity costs in accuracy: a CIFAR ResNet pruned at once, without fine-tuning.

Removes the given fraction of every layer by the criterion and repairs on unlabelled training
images. Top-1 is that of the report half of the test set (images 5,000 to 9,999), on which nothing
was chosen. Ratios that a granularity cannot have are left out (N:M has a few, whole N).

    python scripts/bench_granularity.py --models resnet20 --ratios 0.5 0.8

With ``--epochs`` the network is trained as well, by a schedule:

    python scripts/bench_granularity.py --grains unstructured --ratios 0.8 --epochs 5
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import automl
from automl.data import DataSplits, load_data
from automl.graph.trace import Trace
from automl.models import load_model
from automl.models.checkpoint import resolve_checkpoint
from automl.paths import conf_dir
from automl.pruning.criteria import Context
from automl.pruning.grains import Grains
from automl.pruning.masked_plan import MaskedPlan
from automl.pruning.permutation import permute
from automl.pruning.reconstruct import Reconstruction
from automl.pruning.schedules import AfterStep, load
from automl.pruning.schedules.session import open_session
from automl.pruning.sparse_pruner import SparsePruner, counts_from_ratios
from automl.scoring import ClassifierScorer
from automl.training.config import FinetuneConfig
from automl.training.finetune import finetune
from automl.types import InputError

GRAINS = ["unstructured", "nm:4", "vector:row", "kernel", "block:1x4", "block:4x4", "block:1x16"]


@dataclass(eq=False)
class Bench:
    """One network with its data.

    Attributes:
        name: Of the model.
        model: The dense network.
        data: CIFAR-10, the test set in halves.
        args: The command line.
    """

    name: str
    model: nn.Module
    data: DataSplits
    args: argparse.Namespace

    def __post_init__(self) -> None:
        """Makes what all rows share."""
        normal = {"mean": self.data.mean, "std": self.data.std}
        self.normal = normal
        test = self.data.test
        self.scorer = ClassifierScorer(test.images, test.labels, score="top1", **normal)
        images = self.data.calibration(self.args.images)
        batches = images.batches(len(images), torch.device("cpu"), **normal)
        self.images, self.labels = next(iter(batches))
        self.trace: Trace = automl.trace(self.model, self.images[:2])
        if self.args.permute:
            (grain,) = self.args.grains
            plan = MaskedPlan.of(self.model, self.trace.plan, Grains.parse([grain]))
            permute(self.model, plan, (self.images[:2],))

    @property
    def repair(self) -> Reconstruction:
        """How layers are refitted."""
        return Reconstruction(points=self.args.points, masks=self.args.masks)

    def pruner(self, grain: str, repaired: bool) -> SparsePruner:
        """The pruner of a grain, with or without repair."""
        plan = MaskedPlan.of(self.model, self.trace.plan, Grains.parse([grain]))
        return SparsePruner(
            self.trace,
            plan,
            criterion=self.args.criterion,
            calibration=self.images if repaired else None,
            reconstruct=self.repair if repaired else None,
            context=Context(self.model, self.trace.plan, self.images, self.labels),
        )

    def rows(self) -> Iterator[str]:
        """One Markdown row per grain and ratio."""
        dense = self.scorer(self.model)[0]
        for grain in self.args.grains:
            for ratio in self.args.ratios:
                yield self.row(grain, ratio, dense)

    def row(self, grain: str, ratio: float, dense: float) -> str:
        """Accuracy before and after the repair, and after training where that is asked for."""
        pruner = self.pruner(grain, repaired=True)
        kept = counts_from_ratios(pruner.plan, ratio, 1)
        policy = pruner.policy(kept)
        plain = self.scorer(self.pruner(grain, repaired=False).prune(policy))[0]
        started = time.process_time()
        network = pruner.prune(policy)
        seconds = time.process_time() - started
        cells = [
            self.name,
            grain,
            f"{1 - float(pruner.plan.macs(kept)) / self.trace.macs:.3f}",
            f"{float(pruner.plan.stored_bits(kept)) / 32 / self.trace.params:.3f}",
            f"{100 * dense:.2f}",
            f"{100 * plain:.2f}",
            f"{100 * self.scorer(network)[0]:.2f}",
            f"{seconds:.1f}",
        ]
        if self.args.epochs:
            schedule = load(self.args.schedule)
            schedule.check([grain], self.args.epochs)
            session = open_session(pruner, policy, Training(self))
            cells.append(f"{100 * self.scorer(schedule.run(session, self.args.epochs))[0]:.2f}")
        return f"| {' | '.join(cells)} |"


@dataclass(eq=False)
class Training:
    """Trains the stages of a schedule on the training images."""

    bench: Bench

    def __call__(
        self, network: nn.Module, epochs: int, last: bool, after_step: AfterStep | None
    ) -> None:
        """SGD with a cosine for every stage, and distillation; keeps the last epoch."""
        bench = self.bench
        train = bench.data.train
        if bench.args.train_images is not None:
            train = train.subset(slice(0, bench.args.train_images))
        config = FinetuneConfig(
            epochs=epochs, lr=bench.args.lr, distill_weight=0.5, seed=bench.args.seed
        )
        finetune(
            network,
            train,
            config,
            **bench.normal,
            augment=bench.data.augment,
            distill_from=bench.model,
            after_step=after_step,
        )

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """Calibration images in turn."""
        start = 128 * number % max(len(self.bench.images) - 127, 1)
        return self.bench.images[start : start + 128], self.bench.labels[start : start + 128]

    def untrained(self) -> nn.Module:
        """The network as its factory makes it."""
        return load_network(self.bench.name, None, trained=False)


def load_network(name: str, root: str | None, trained: bool = True) -> nn.Module:
    """A network of the zoo, with the checkpoint that its yaml names."""
    from omegaconf import OmegaConf

    settings = OmegaConf.load(conf_dir() / "model" / f"{name}.yaml")
    loaded = load_model(
        settings.factory,
        kwargs=dict(settings.kwargs),
        checkpoint=resolve_checkpoint(settings.checkpoint, root) if trained else None,
        input_shape=list(settings.input_shape),
    )
    return loaded.model


def main() -> int:
    """Parses the command line and prints a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["resnet20"])
    parser.add_argument("--grains", nargs="+", default=GRAINS)
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.5, 0.75])
    parser.add_argument("--criterion", default="l2", help="a name from conf/criterion")
    parser.add_argument("--images", type=int, default=1024, help="calibration images")
    parser.add_argument("--points", type=int, default=10, help="output positions per image")
    parser.add_argument("--masks", default="criterion", choices=["criterion", "obs"])
    parser.add_argument(
        "--permute", action="store_true", help="reorder channels first (one N:M grain only)"
    )
    parser.add_argument("--schedule", default="cubic", help="a name from conf/schedule")
    parser.add_argument("--epochs", type=int, default=0, help="training epochs in all")
    parser.add_argument("--train-images", type=int, default=None, help="only so many of them")
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--root", default=None, help="data root with cifar10/ and checkpoints/")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    columns = "network | grain | MACs removed | bytes left | dense | pruned | repaired | CPU s"
    columns += f" | {args.schedule}, {args.epochs} epochs" if args.epochs else ""
    try:
        data = load_data("cifar10", root=args.root, split="test_halves")
        print(f"| {columns} |\n|{'---|' * (columns.count('|') + 1)}")
        for name in args.models:
            for row in Bench(name, load_network(name, args.root), data, args).rows():
                print(row, flush=True)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
