"""``prunepilot export``: the pruned network as files that other programs run."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from automl.commands.options import add_trust_argument

if TYPE_CHECKING:
    from torch import Tensor, nn

    from automl.executors.latency import Latency
    from automl.export import Exported
    from automl.model_folder import Rebuild
    from automl.runs import RunFolder

SUMMARY = (
    "write a run's pruned network as safetensors, torch.export program, ONNX or packed; check it"
)
EXAMPLE = "prunepilot export runs/a --format pt2,onnx --out small"

_EXAMPLES = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's options."""
    parser.add_argument("run_dir", metavar="RUN", type=Path, help="folder of a finished run")
    parser.add_argument(
        "--format",
        metavar="NAMES",
        default="pt2",
        help="safetensors, pt2, onnx, packed, and optuna (the trials); several with commas "
        "(default: pt2)",
    )
    parser.add_argument(
        "--out", metavar="DIR", type=Path, required=True, help="a new folder, or an empty one"
    )
    add_trust_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Writes, checks and describes."""
    from automl.commands.intact import OF_NETWORK, fault_of
    from automl.commands.out import check_new_folder
    from automl.commands.stored import stored_settings
    from automl.runs import ANALYSIS, RunFolder
    from automl.types import InputError

    folder = RunFolder(args.run_dir)
    config = stored_settings(folder, args.trust)
    if not folder.is_done:
        if folder.file(ANALYSIS).is_file():
            raise InputError(
                f"{args.run_dir} is a sensitivity analysis, which ends with policies, not with a "
                "network: prune by one of them (prunepilot apply POLICY)"
            )
        raise InputError(f"{args.run_dir} is not finished; {folder.how_to_resume}")
    folder.result()  # refused before anything is written
    if (fault := fault_of(folder, OF_NETWORK)) is not None:
        raise InputError(f"{fault}; {folder.how_to_resume} writes it again")
    formats = _formats(args.format)
    check_new_folder(args.out)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        if "optuna" in formats:
            _write_study(folder.path, args.out)
        formats = [name for name in formats if name != "optuna"]
        if not formats:
            return 0
        return _export(folder, config, formats, args)
    except OSError as error:
        raise InputError(f"--out {args.out} cannot be written: {error.strerror}") from error


def _formats(text: str) -> list[str]:
    from automl.export import load_format, optuna_journal
    from automl.types import InputError

    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name == "optuna":
            optuna_journal.require()
        elif name != "safetensors":
            load_format(name)
    if not names:
        raise InputError("--format names no format, as --format pt2,onnx")
    return list(dict.fromkeys(names))


def _write_study(run: Path, out: Path) -> None:
    from automl.export.optuna_journal import write

    file, trials = write(run, out)
    print(f"wrote {file}: {trials} trials, for optuna's JournalStorage")


def _export(
    folder: RunFolder, config: Mapping[str, Any], formats: list[str], args: argparse.Namespace
) -> int:
    import contextlib
    import shutil

    from automl.export import require_right
    from automl.export.card import model_card
    from automl.export.latency import FILE as LATENCY
    from automl.graph.fold import batchnorm_pairs, fold_batchnorm
    from automl.model_folder import Rebuild, load_pruned
    from automl.paths import atomic_write
    from automl.plan import IndexPlan
    from automl.report.kernels import EXPORTED
    from automl.runs import PLAN, POLICY, REBUILD, WEIGHTS

    run, out = folder.path, args.out
    network = load_pruned(run, args.trust)
    for name in (POLICY, *((PLAN, REBUILD) if {"safetensors", "packed"} & set(formats) else ())):
        shutil.copyfile(run / name, out / name)
    if "safetensors" in formats:
        shutil.copyfile(run / WEIGHTS, out / WEIGHTS)
    plan = IndexPlan.from_json((run / PLAN).read_text(encoding="utf-8"))
    network = fold_batchnorm(network, batchnorm_pairs(plan))
    rebuild = Rebuild.load(run / REBUILD)
    inputs, kind = _inputs(config, rebuild)
    done = []
    for name in formats:
        done.append(_written(name, network, inputs, out, args.trust))
        one = done[-1]
        print(f"wrote {one.file}{_note(one)}: differs by at most {one.error:.2g} on {kind}")
    latencies = _latencies(config, network, done, inputs, out, args.trust)
    if latencies:
        with contextlib.suppress(OSError):  # a run that is only read here has no page of its own
            shutil.copyfile(out / LATENCY, run / EXPORTED)
    card = model_card(
        folder.result(),
        {**config, "model": {**config["model"], "input_shape": list(rebuild.input_shape)}},
        done,
        {"mean": rebuild.mean, "std": rebuild.std},
        str(inputs.dtype).removeprefix("torch."),
        latencies,
    )
    atomic_write(out / "MODEL_CARD.md", card)
    require_right(done)
    print(f"wrote {out / 'MODEL_CARD.md'}, {out / POLICY}")
    return 0


def _written(
    name: str, network: nn.Module, inputs: Tensor, out: Path, trust: Sequence[str]
) -> Exported:
    """One format, loaded again and compared with the network."""
    from automl.export import compared, export_program
    from automl.model_folder import load_pruned
    from automl.runs import WEIGHTS

    if name != "safetensors":
        return export_program(name, network, inputs, out)
    return compared(name, out / WEIGHTS, load_pruned(out, trust), network.cpu(), inputs.cpu())


def _latencies(
    config: Mapping[str, Any],
    network: nn.Module,
    done: list[Exported],
    inputs: Tensor,
    out: Path,
    trust: Sequence[str],
) -> dict[str, Latency]:
    """ONNX Runtime, packed layers and torch in turn; none where neither was exported."""
    from automl.commands.settings import number
    from automl.export.latency import side_by_side, write

    budget_s = number(config, "latency_budget_s", 0)
    if budget_s == 0 or not all(one.is_right for one in done):
        return {}
    found = side_by_side(network, done, inputs[:1], budget_s, trust)
    if found:
        file = write(found, inputs[:1], out)
        texts = [f"{name} {one.median_ms:.3g} ms" for name, one in found.items()]
        print(f"wrote {file}: {', '.join(texts)} (one example, one thread, in turn)")
    return found


def _note(one: Exported) -> str:
    """How to load what needs PrunePilot, in brackets."""
    if one.format == "safetensors":
        return " (load the folder with automl.load_pruned)"
    if one.format != "packed":
        return ""
    from automl.export.packed import packing

    return f" ({packing(one.file)}; load the folder with automl.export.packed.load_packed)"


def _inputs(config: Mapping[str, Any], rebuild: Rebuild) -> tuple[Tensor, str]:
    """Validation examples as the network takes them, or made up where the data is not there."""
    import torch

    from automl.commands.build import Bench
    from automl.types import InputError

    try:
        bench = Bench(config)
        images = bench.data.validation.subset(slice(0, _EXAMPLES))
        batch = next(iter(images.batches(_EXAMPLES, torch.device("cpu"), **bench.normalisation)))
        return batch[0], f"{len(batch[0])} validation examples"
    except InputError as error:
        return _made_up(rebuild), f"{_EXAMPLES} made-up inputs ({error})"


def _made_up(rebuild: Rebuild) -> Tensor:
    """Noise, or the example input again and again where inputs are ids."""
    import torch

    example: Tensor = rebuild.dense().example_inputs[0][:1]
    inputs = example.expand(_EXAMPLES, *example.shape[1:])
    if not example.is_floating_point():
        return inputs.clone()
    return torch.randn(inputs.shape, generator=torch.Generator().manual_seed(0))
