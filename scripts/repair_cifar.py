"""What least-squares repair is worth: CIFAR ResNets at a uniform ratio, no fine-tuning.

Removes the given fraction of every residual block's inner channels (the residual stream stays),
by L2 magnitude, and repairs on training images. Top-1 is that of the report half of the test set
(images 5,000 to 9,999), on which nothing was chosen.

    python scripts/repair_cifar.py --models resnet56 --ratio 0.5

For comparison, AMC's paper (arXiv 1802.03494, table 2) has 87.5 % for uniform pruning of
ResNet-56 to half its FLOPs without fine-tuning, from a dense 92.8 %.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator

import torch
from torch import nn

import automl
from automl.data import DataSplits, load_data
from automl.models import load_model
from automl.models.checkpoint import resolve_checkpoint
from automl.paths import conf_dir
from automl.pruning.pruner import Pruner, policy_from_ratios
from automl.pruning.reconstruct import Reconstruction
from automl.scoring import ClassifierScorer
from automl.types import InputError

#: Everything that writes to the residual stream.
STREAM = ("conv1", "*.conv2")


def repairs(images: torch.Tensor) -> Iterator[tuple[str, dict[str, object]]]:
    """Name and pruner settings of each way to repair."""
    yield "none", {}
    settings = {"calibration": images}
    yield "batch-norm statistics", {
        **settings, "reconstruct": None, "batchnorm_recalibration": True
    }  # fmt: skip
    yield (
        "least squares",
        {**settings, "reconstruct": Reconstruction(shortcut=False, scope="readers")},
    )
    corrected = Reconstruction(scope="readers")
    yield "least squares, shortcut corrected", {**settings, "reconstruct": corrected}
    yield "the same, downstream layers too", {**settings, "reconstruct": Reconstruction()}


def load_dense(name: str, root: str | None) -> nn.Module:
    """The checkpoint that the model's yaml names."""
    from omegaconf import OmegaConf

    settings = OmegaConf.load(conf_dir() / "model" / f"{name}.yaml")
    loaded = load_model(
        settings.factory,
        kwargs=dict(settings.kwargs),
        checkpoint=resolve_checkpoint(settings.checkpoint, root),
        input_shape=list(settings.input_shape),
    )
    return loaded.model


def measure(name: str, data: DataSplits, args: argparse.Namespace) -> None:
    """Prints one network's rows."""
    model = load_dense(name, args.root)
    normal = {"mean": data.mean, "std": data.std}
    scorer = ClassifierScorer(data.test.images, data.test.labels, score="top1", **normal)
    images = data.calibration(args.images)
    calibration = next(iter(images.batches(len(images), torch.device("cpu"), **normal)))[0]
    trace = automl.trace(model, calibration[:2], exclude=STREAM)
    dense = scorer(model)[0]
    for repair, settings in repairs(calibration):
        pruner = Pruner(trace, criterion=args.criterion, **settings)
        policy = policy_from_ratios(pruner, args.ratio, rounding=1)
        started = time.process_time()
        slim = pruner.prune(policy)
        seconds = time.process_time() - started
        share = float(trace.plan.macs(policy.kept(trace.targets))) / trace.macs
        top1 = scorer(slim)[0]
        print(
            f"| {name} | {share:.3f} | {repair} | {100 * dense:.2f} | {100 * top1:.2f} "
            f"| {seconds:.1f} |",
            flush=True,
        )


def main() -> int:
    """Parses the command line and prints a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["resnet20", "resnet56"])
    parser.add_argument("--ratio", type=float, default=0.5, help="fraction of channels removed")
    parser.add_argument("--images", type=int, default=1024, help="calibration images")
    parser.add_argument("--criterion", default="l2", choices=["l1", "l2"])
    parser.add_argument("--root", default=None, help="data root with cifar10/ and checkpoints/")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    try:
        data = load_data("cifar10", root=args.root, split="test_halves")
        print("| network | MACs kept | repair | dense top-1 % | top-1 % | CPU s |")
        print("|---|---|---|---|---|---|")
        for name in args.models:
            measure(name, data, args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
