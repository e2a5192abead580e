"""Which criterion chooses best: a CIFAR ResNet at a uniform ratio, no fine-tuning.

Removes the given fraction of every residual block's inner channels (the residual stream stays) by
each criterion, without repair and with the default one (least squares on 1,024 training images).
Criteria that look at data see training images. Top-1 is that of the report half of the test set
(images 5,000 to 9,999), on which nothing was chosen; its standard error is about half a point.

    python scripts/criteria_cifar.py --ratio 0.5 --criteria l2 taylor regression random
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

import torch
from repair_cifar import STREAM, load_dense

import automl
from automl.data import load_data
from automl.pruning import criteria
from automl.pruning.criteria import Context
from automl.pruning.pruner import Pruner, policy_from_ratios
from automl.scoring import ClassifierScorer
from automl.types import InputError

#: Criteria that need a training loop are left to ``prunepilot prune criterion=...``.
_DEFAULT = [name for name in criteria.names() if "training" not in criteria.load(name).needs]


def main() -> int:
    """Parses the command line and prints a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--ratio", type=float, default=0.5, help="fraction of channels removed")
    parser.add_argument("--criteria", nargs="+", default=_DEFAULT, metavar="NAME")
    parser.add_argument("--labels", choices=["data", "model"], default="data")
    parser.add_argument("--seeds", type=int, default=1, help="of criteria that draw numbers")
    parser.add_argument("--root", default=None, help="data root with cifar10/ and checkpoints/")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    try:
        run(args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(args: argparse.Namespace) -> None:
    """Prints a row per criterion and seed."""
    data = load_data("cifar10", root=args.root, split="test_halves")
    model = load_dense(args.model, args.root)
    normal = {"mean": data.mean, "std": data.std}
    scorer = ClassifierScorer(data.test.images, data.test.labels, score="top1", **normal)
    images = data.calibration(1024)
    x, y = next(iter(images.batches(1024, device=torch.device("cpu"), **normal)))
    trace = automl.trace(model, x[:2], exclude=STREAM)
    context = Context(model, trace.plan, x, y)
    print(f"{args.model}, ratio {args.ratio:g} of inner channels, labels: {args.labels}")
    print("| criterion | seed | top-1 %, no repair | top-1 %, repaired |\n|---|---|---|---|")
    for name in args.criteria:
        settings = {} if args.labels == "data" else {"labels": args.labels}
        criterion = criteria.load(name, **settings)
        for seed in range(args.seeds if "seed" in criterion.needs else 1):
            own = replace(context, seed=seed, cache={})
            scores = []
            for repair in ({"reconstruct": None}, {"calibration": x}):
                pruner = Pruner(trace, criterion=criterion, context=own, **repair)
                slim = pruner.prune(policy_from_ratios(pruner, args.ratio, rounding=1))
                scores.append(f"{100 * scorer(pruner.for_inference(slim))[0]:.2f}")
            print(f"| {name} | {seed} | {' | '.join(scores)} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
