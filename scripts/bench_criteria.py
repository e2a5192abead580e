"""How long each criterion takes to score all channels of a CIFAR network, data loading left out.

    python scripts/bench_criteria.py --model resnet56 --threads 2

Every criterion gets a context of its own, so that none profits from another's pass over the data;
its own settings decide how many images it uses. The last column is the time for scoring every
single weight afterwards, with the same context. Seconds of wall time and, in brackets, of CPU time
of all threads, which other work on the machine hardly changes; one run each.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import torch
from repair_cifar import load_dense

import automl
from automl.data import load_data
from automl.pruning import criteria
from automl.pruning.criteria import Context, ElementCriterion
from automl.pruning.criteria.context import Need
from automl.types import InputError

#: Criteria that train the network first: how long that takes is the user's choice.
_TRAINS: frozenset[Need] = frozenset({"training"})


def main() -> int:
    """Parses the command line and prints a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="resnet56")
    parser.add_argument("--criteria", nargs="+", default=criteria.names(), metavar="NAME")
    parser.add_argument("--root", default=None, help="data root with cifar10/ and checkpoints/")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    try:
        context = load(args.model, args.root)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.model}, {args.threads} threads")
    print("| criterion | looks at | units, s | single weights, s |")
    print("|---|---|---|---|")
    for name in args.criteria:
        print(row(name, context), flush=True)
    return 0


def load(model: str, root: str | None) -> Context:
    """The dense network with as many labelled training images as any criterion takes."""
    data = load_data("cifar10", root=root, split="test_halves")
    dense = load_dense(model, root)
    most = max(getattr(criteria.load(name), "images", 0) for name in criteria.names())
    images = data.calibration(most)
    normal = {"mean": data.mean, "std": data.std}
    x, y = next(iter(images.batches(len(images), device=torch.device("cpu"), **normal)))
    return Context(dense, automl.trace(dense, x[:2]).plan, x, y)


def row(name: str, context: Context) -> str:
    """One line of the table."""
    criterion = criteria.load(name)
    if criterion.needs & _TRAINS:
        return f"| {name} | training data | as long as it trains | - |"
    images = getattr(criterion, "images", None)
    looks_at = "weights" if images is None else f"{images} images"
    looks_at += ", labels" if "labels" in criterion.needs else ""
    own = Context(context.model, context.plan, context.inputs, context.labels)
    units = seconds(lambda: criterion(own))
    if not isinstance(criterion, ElementCriterion):
        return f"| {name} | {looks_at} | {units} | - |"
    weights = [layer.tensors[0] for layer in context.plan.layers_plan if layer.tensors]
    single = seconds(lambda: criterion.saliency(own, weights))
    return f"| {name} | {looks_at} | {units} | {single} |"


def seconds(call: Callable[[], object]) -> str:
    """Wall time of one call and, in brackets, CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return f"{time.perf_counter() - wall:.2f} ({time.process_time() - cpu:.2f})"


if __name__ == "__main__":
    sys.exit(main())
