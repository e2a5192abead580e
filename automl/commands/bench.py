"""``prunepilot bench``: a pruned network, packed, against the dense one, taking turns."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from automl.commands.options import add_override_arguments, add_trust_argument

if TYPE_CHECKING:
    from torch import Tensor, nn

    from automl.executors.compiler import CompiledModel
    from automl.executors.latency import Latency

SUMMARY = "run a pruned network on sparse kernels, and time it against the dense one"
EXAMPLE = (
    "prunepilot bench runs/a\n"
    "  prunepilot bench runs/a --batch 8 --formats pell csc pell_int8\n"
    "  prunepilot bench model=vgg16_bn granularity=unstructured ratio=0.9 --out vgg.json"
)

FILE = "bench.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's options."""
    parser.add_argument(
        "run_folder", metavar="RUN", nargs="?",
        help="run folder, or that of prune, apply or export; in place of it model=... ratio=... "
        "prunes a network as prune does, without repair",
    )  # fmt: skip
    parser.add_argument("--batch", type=int, default=1, help="examples in a pass (default 1)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch (default 1)")
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="to time the networks for (default 5)"
    )
    parser.add_argument(
        "--formats", nargs="+", metavar="NAME",
        help="formats to choose from for fully connected layers (default: those that are exact)",
    )  # fmt: skip
    parser.add_argument(
        "--baselines", nargs="+", metavar="NAME",
        help="dense ways to compare with: eager, channels_last, onednn, onnxruntime (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--fresh", action="store_true", help="measure layers anew, whatever was measured before"
    )
    parser.add_argument("--out", metavar="FILE", type=Path, help=f"default: RUN/{FILE}")
    add_trust_argument(parser)
    add_override_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Compiles, measures, prints and writes."""
    overrides, folder = _sort(args)
    out = args.out or (folder / FILE if folder is not None else None)
    _check(args, folder, overrides, out)
    subject = _of_run(folder, args.trust) if folder is not None else _of_settings(overrides)
    document = _measure(subject, args)
    from automl.commands.bench_table import print_bench

    print_bench(document)
    if out is not None:
        _write(out, document)
        print(f"wrote {out}")
    return 0


def _sort(args: argparse.Namespace) -> tuple[list[str], Path | None]:
    """Settings, and the run folder if one is given."""
    given = args.run_folder
    if given is not None and "=" in given and not Path(given).exists():
        return [given, *args.overrides], None
    return list(args.overrides), None if given is None else Path(given)


def _check(
    args: argparse.Namespace, folder: Path | None, overrides: Sequence[str], out: Path | None
) -> None:
    """Refuses what can be refused before anything is loaded."""
    from automl.commands.out import check_file
    from automl.executors import formats
    from automl.types import InputError

    if (folder is None) == (not overrides):
        raise InputError(
            "bench takes RUN, or settings such as model=vgg16_bn granularity=unstructured "
            f"ratio=0.9, {'one of them' if folder is None else 'not both'}"
        )
    if folder is not None and not folder.is_dir():
        raise InputError(f"{folder} is no folder; give one that search, prune or export wrote")
    for name in args.formats or []:
        formats.load(name)
    for name in ("batch", "threads"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} must be >= 1, got {getattr(args, name)}")
    if not 0 < args.seconds < 3600:
        raise InputError(f"--seconds must be above 0, got {args.seconds:g}")
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise InputError(f"--out {out} cannot be written; give a file in a folder that is there")
    if out is not None:
        check_file(out)


@dataclass(frozen=True, eq=False)
class _Subject:
    """What is measured.

    Attributes:
        name: Of the model.
        about: What was pruned, one phrase.
        network: The pruned network.
        dense: The network that it was made from, where it is larger; None where it is the same
            with other zeros.
        inputs: One example, or several, of each input.
    """

    name: str
    about: str
    network: nn.Module
    dense: nn.Module | None
    inputs: tuple[Tensor, ...]


def _of_run(folder: Path, trust: Sequence[str]) -> _Subject:
    from automl.model_folder import Rebuild, load_pruned
    from automl.policy import Policy
    from automl.pruning.grains import is_inside
    from automl.runs import POLICY, REBUILD

    rebuild = Rebuild.load(folder / REBUILD)
    network = load_pruned(folder, trust)
    dense = rebuild.dense()
    policy = Policy.load(folder / POLICY)
    slim = any(one.kept < one.units and not is_inside(one.granularity) for one in policy.decisions)
    grains = ", ".join(dict.fromkeys(one.granularity for one in policy.decisions))
    return _Subject(
        dense.name, grains, network, dense.model if slim else None, dense.example_inputs
    )


def _of_settings(overrides: Sequence[str]) -> _Subject:
    from automl.commands.build import Bench
    from automl.commands.compose import compose
    from automl.commands.prune import policy_from_settings
    from automl.types import InputError

    given = list(overrides)
    if not any(text.startswith("repair") for text in given):
        given.append("repair=none")
    config = compose([*given, "device=cpu"])
    if config["ratio"] is None:
        raise InputError("bench without RUN takes ratio=0.9, the fraction to remove of every layer")
    bench = Bench(config)
    grain = config["granularity"]["name"]
    network = bench.pruner.prune(policy_from_settings(bench))
    dense = bench.loaded.model if grain in ("channel", "mixed") else None
    about = f"{grain}, ratio {config['ratio']}"
    return _Subject(bench.loaded.name, about, network, dense, bench.loaded.example_inputs)


def _measure(subject: _Subject, args: argparse.Namespace) -> dict[str, Any]:
    import torch

    import automl
    from automl.allocator import keep_freed_memory
    from automl.executors.baselines import NAMES
    from automl.executors.compiler import EXACT
    from automl.executors.latency import measure_latency
    from automl.executors.threads import clock

    keep_freed_memory()  # else dense networks in torch look slower than they need be
    torch.manual_seed(0)
    inputs = tuple(_example(tensor, args.batch) for tensor in subject.inputs)
    _say("choosing formats, which takes a while the first time")
    how: dict[str, Any] = {"baselines": args.baselines or NAMES, "remember": not args.fresh}
    compiled = automl.compile(subject.network, inputs, executors=args.formats or EXACT, **how)
    error = _largest_error(subject.network, compiled, inputs)
    networks: dict[str, nn.Module] = {"dense": compiled.dense}
    if subject.dense is not None:
        # No sparse formats: the fastest dense form is what comes out.
        networks["dense"] = automl.compile(subject.dense, inputs, executors=[], **how).dense
        networks["pruned, dense kernels"] = compiled.dense
    if compiled.sparse is not None:
        networks["sparse"] = compiled.sparse
    _say("timing whole networks in turn")
    how = {"budget_s": args.seconds, "threads": args.threads, "clock": clock(args.threads)}
    found = measure_latency(networks, inputs, **how)
    return _document(subject, args, compiled, found, error)


def _example(tensor: Tensor, batch: int) -> Tensor:
    import torch

    shape = (batch, *tensor.shape[1:])
    if tensor.dtype.is_floating_point:
        return torch.randn(shape, dtype=tensor.dtype)
    return tensor[:1].expand(shape).contiguous()


def _largest_error(network: nn.Module, compiled: CompiledModel, inputs: Sequence[Tensor]) -> float:
    """Largest difference of an output to the largest output; 0 where outputs are no tensor."""
    import torch

    with torch.inference_mode():
        expected, found = network(*inputs), compiled(*inputs)
    if not isinstance(expected, torch.Tensor):
        return 0.0
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def _document(
    subject: _Subject,
    args: argparse.Namespace,
    compiled: CompiledModel,
    found: Mapping[str, Latency],
    error: float,
) -> dict[str, Any]:
    from dataclasses import asdict
    from time import thread_time

    from automl._version import __version__
    from automl.environment import cpu_name
    from automl.executors.quiet import busy_cores
    from automl.executors.threads import clock

    sparse = found.get("sparse", list(found.values())[-1])
    choices, used = compiled.tried, {c.layer: c.format for c in compiled.choices}
    packed = sum(c.packed_bytes - c.dense_bytes for c in choices)
    weights = sum(parameter.nbytes for parameter in subject.network.parameters())
    first = subject.dense if subject.dense is not None else subject.network
    return {
        "prunepilot": __version__,
        "model": subject.name,
        "pruned": subject.about,
        "device": cpu_name(),
        "threads": args.threads,
        "clock": "processor" if clock(args.threads) is thread_time else "wall",
        "batch": args.batch,
        "busy_cores": busy_cores(),
        "dense_form": compiled.verdict.dense,
        "dense_ms": found["dense"].median_ms,
        "sparse_ms": sparse.median_ms,
        "speed_up": 1 / sparse.ratio,
        "speed_up_iqr": sparse.ratio_iqr / sparse.ratio**2,
        "compiled": "dense" if compiled.verdict.sparse is None else "sparse",
        "reason": compiled.verdict.reason,
        "largest_error": error if math.isfinite(error) else None,  # of outputs that are no numbers
        "dense_bytes": sum(parameter.nbytes for parameter in first.parameters()),
        "sparse_bytes": weights + packed,
        "networks": {name: asdict(own) for name, own in found.items()},
        "rows": [
            {
                "layer": c.layer,
                "shape": list(c.shape),
                "density": c.density,
                "format": c.format,
                "used": used[c.layer] == c.format,
                "dense_ms": _ms(c.dense_us),
                "sparse_ms": _ms(c.median_us.get(c.format, float("nan"))),
                "dense_bytes": c.dense_bytes,
                "sparse_bytes": c.packed_bytes,
                "reason": c.reason,
            }
            for c in choices
        ],
    }


def _ms(us: float) -> float | None:
    return None if us != us else us / 1e3


def _write(out: Path, document: Mapping[str, Any]) -> None:
    import json

    from automl.paths import atomic_write
    from automl.types import InputError

    try:
        atomic_write(out, json.dumps(document, indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise InputError(f"--out {out} cannot be written: {error.strerror}") from error


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
