"""A trial beside the textbook's, in CPU seconds of one thread, taking turns in one process.

    python scripts/bench_search.py
    python scripts/bench_search.py --trials 2 --ways lookup model=resnet20

The textbook procedure is written out below as plainly as it is published (He et al., arXiv
1707.06168, section 3.1; AMC, arXiv 1802.03494, does the same): inputs and outputs of every layer
are collected from the dense network once; a policy is a copy of the dense network whose layers are
fitted by least squares on the inputs that stay, with zeros for those that go; it is scored as it
is, at full size. The default job is that of AMC's official MobileNetV1: 60 batches of 50 images, 10
points of each, 5,000 validation images, half of the MACs. All get the same policies and images.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
import scipy.linalg
import torch
from torch import Tensor, nn

from automl.allocator import keep_freed_memory
from automl.commands.bench_search import random_policies, timed, trial
from automl.commands.build import Bench
from automl.commands.compose import compose
from automl.graph.interpret import ProgramRun
from automl.graph.materialise import KeptUnits
from automl.plan import IndexPlan, Instruction
from automl.pruning.sampling import patches, sample
from automl.pruning.sites import find_sites
from automl.types import InputError

JOB = (
    "model=mobilenet_v1_32", "budget.macs=0.5", "repair.calibration_images=3000",
    "repair.reconstruction.points=10", "scoring.images=5000",
)  # fmt: skip

_BFLOAT16 = "lookup,scoring.precision=bfloat16,scoring.batch_size=128"
#: Of ours; the textbook is scored in float32 on all images beside them. The last is a trial of a
#: search whose best five are scored again on all images.
WAYS = ("least_squares", "lookup", _BFLOAT16, f"{_BFLOAT16},scoring.images=500")


class Textbook:
    """Masks a dense network and refits it on features that were collected once."""

    def __init__(self, model: nn.Module, plan: IndexPlan, images: Tensor, points: int) -> None:
        """Collects inputs and outputs of every layer without groups at random points."""
        self._model, self._plan = model, plan
        sites = {site.call.name: site for site in find_sites(model, plan)}
        self._sites = {
            name: site
            for name, site in sites.items()
            if getattr(model.get_submodule(site.call.target), "groups", 1) == 1
        }
        self._features: dict[str, tuple[Any, Any]] = {}
        generator = torch.Generator().manual_seed(0)

        def before(run: ProgramRun, call: Instruction) -> None:
            if call.name not in self._sites:
                return
            layer: Any = model.get_submodule(call.target)
            data = run.value(call.args[0]["ref"])
            one = layer(data[:1])
            places = sample(one.expand(len(data), *one.shape[1:]), points, generator)
            inputs = patches(data, layer, places)[0]
            outputs = inputs @ layer.weight.reshape(len(layer.weight), -1).T
            if layer.bias is not None:
                outputs = outputs + layer.bias
            self._features[call.name] = inputs.numpy(), outputs.numpy()

        with torch.inference_mode():
            ProgramRun(model, plan, plan.dense, [images], before).run()

    def __call__(self, units: KeptUnits) -> nn.Module:
        """The masked network of a policy, as large as the dense one."""
        masked = copy.deepcopy(self._model)
        stays = [axis.mask(self._plan.alive(units)) for axis in self._plan.axes]
        for name, site in self._sites.items():
            axis = site.layer.in_axis
            if axis is None or stays[axis].all():
                continue
            layer: Any = masked.get_submodule(site.call.target)
            norm = None if site.norm is None else masked.get_submodule(site.norm)
            self._fit(layer, norm, *self._features[name], stays[axis])
        return masked

    @staticmethod
    def _fit(layer: Any, norm: Any, inputs: Any, outputs: Any, stays: Any) -> None:
        columns = np.repeat(stays, inputs.shape[1] // len(stays))
        x, y = inputs[:, columns], outputs
        x_mean, y_mean = x.mean(0), y.mean(0)
        found = scipy.linalg.lstsq(x - x_mean, y - y_mean)[0]
        weight = np.zeros((inputs.shape[1], outputs.shape[1]), np.float32)
        weight[columns] = found
        intercept = torch.from_numpy(y_mean - x_mean @ found)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(weight.T).reshape(layer.weight.shape))
            if layer.bias is not None:
                layer.bias.copy_(intercept)
            elif norm is not None:
                norm.running_mean.sub_(intercept)


def compare(settings: Sequence[str], ways: Sequence[str], trials: int) -> str:
    """Times trials of the textbook and of every way in turn; a Markdown table.

    Args:
        settings: What all of them have in common.
        ways: A repair each, with more settings behind commas.
        trials: Policies.
    """
    benches = {}
    for way in ways:
        repair, *more = way.split(",")
        benches[way] = Bench(compose([f"repair={repair}", *settings, *more]))
    first = next(iter(benches.values()))
    policies = random_policies(first, trials, seed=0)
    for bench in benches.values():
        random_policies(bench, 1, seed=0)  # prepares it
        bench.pruner.prepare()
    repair = first.config["repair"]
    images = first.pruner._calibration
    if images is None:
        raise InputError("the comparison needs calibration images: choose a repair that has some")
    plain = Textbook(
        first.loaded.model, first.trace.plan, images, repair["reconstruction"]["points"]
    )
    rows: dict[str, list[dict[str, float]]] = {"textbook": [], **{way: [] for way in ways}}
    for policy in policies:
        units = first.pruner.units_of(policy)
        masked, fit = timed(plain, units)
        _, score = timed(first.scorer, masked)
        rows["textbook"].append({"repair": fit, "score": score})
        for name, bench in benches.items():
            rows[name].append(trial(bench, policy))
    title = f"{first.loaded.name}, {len(first.scorer)} validation images, {trials} policies"
    return f"{title}\n{_table(rows)}"


def _table(rows: dict[str, list[dict[str, float]]]) -> str:
    whole = {name: [sum(row.values()) for row in found] for name, found in rows.items()}
    lines = ["| | repair, s | score, s | trial, s | textbook / this |", "|---|---|---|---|---|"]
    for name, found in rows.items():
        parts = [median(row[part] for row in found) for part in ("repair", "score")]
        pairs = zip(whole["textbook"], whole[name], strict=True)
        ratio = median(theirs / ours for theirs, ours in pairs)
        cells = [name, *(f"{s:.2f}" for s in (*parts, median(whole[name]))), f"{ratio:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=3, help="policies (default: 3)")
    parser.add_argument(
        "--ways", nargs="+", default=list(WAYS), help="a repair each, with more settings by commas"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="as for prunepilot search"
    )
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    keep_freed_memory()
    try:
        if args.trials < 1:
            raise InputError(f"--trials must be at least 1, got {args.trials}")
        print(compare([*JOB, *args.overrides], args.ways, args.trials))
    except InputError as error:
        print(f"bench_search: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
