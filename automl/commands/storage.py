"""``prunepilot storage``: bytes of a network under every format, from dense to very sparse."""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from automl.commands.options import add_override_arguments, add_trust_argument

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray
    from torch import nn

    from automl.commands.build import Bench
    from automl.cost.storage import Storage

    Weights = Mapping[str, NDArray[Any]]
    #: Name, weight matrices by name, and the number of all other parameters.
    Network = tuple[str, dict[str, NDArray[Any]], int]

SUMMARY = "show how many bytes a network takes under each storage format, by density"
EXAMPLE = "prunepilot storage model=resnet20 --densities 0.05,0.1,0.2,0.5 --out sizes/"

_DENSITIES = "0.01,0.02,0.05,0.1,0.2,0.3,0.5,0.7,1"

TABLE, PLOT = "storage.csv", "storage.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's options."""
    parser.add_argument(
        "--densities",
        metavar="D,D,...",
        default=_DENSITIES,
        help="fractions of weights that are not zero, in (0, 1] (default: %(default)s)",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--policy", metavar="FILE", type=Path, help="of the network that this policy leaves"
    )
    which.add_argument(
        "--saved", metavar="DIR", type=Path, help="of the network that a search or prune saved"
    )
    parser.add_argument(
        "--magnitude",
        action="store_true",
        help="exact bytes when the smallest weights of every layer are zero, not the mean",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help=f"a new folder for {TABLE} and, where matplotlib is installed, {PLOT}",
    )
    add_trust_argument(parser)
    add_override_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the table and writes what was asked for."""
    from automl.commands.out import check_new_folder
    from automl.cost.storage import Storage

    densities = _densities(args.densities)
    if args.out is not None:
        check_new_folder(args.out)
    name, weights, others = _saved(args) if args.saved else _of_model(args)
    storage = Storage.of(weights, others)
    curve = _curve(storage, densities, weights if args.magnitude else None)
    _print(name, storage, curve)
    if args.out is not None:
        _write(args.out, curve, name)
    return 0


def _saved(args: argparse.Namespace) -> Network:
    """The weights of a run folder, with the zeros that they have.

    Raises:
        InputError: There is no network in the folder, or settings are given beside it.
    """
    from automl.model_folder import load_pruned
    from automl.types import InputError

    if args.overrides:
        raise InputError("--saved takes no settings: the network is what the folder holds")
    network = load_pruned(args.saved, args.trust)
    parameters = _arrays(network)
    weights = {n: p for n, p in parameters.items() if p.ndim > 1 and n.endswith("weight")}
    return args.saved.name, _outputs_first(network, weights), _others(parameters, weights)


def _of_model(args: argparse.Namespace) -> Network:
    """The weights of the configured network, or of what a policy leaves of it."""
    from automl.commands.compose import compose

    config = compose(args.overrides)

    from automl.commands.build import Bench
    from automl.commands.settings import set_up_process

    set_up_process(config)
    bench = Bench(config)
    plan, network = bench.trace.plan, bench.loaded.model
    if args.policy is not None:
        network = _slim(bench, args.policy)
    held = [plan.aliases.get(name, name) for layer in plan.layers_plan for name in layer.tensors]
    parameters = _once_each(network, held)
    weights = {n: parameters[n] for n in held if n in parameters and parameters[n].ndim > 1}
    return bench.loaded.name, _outputs_first(network, weights), _others(parameters, weights)


def _outputs_first(network: nn.Module, weights: Weights) -> dict[str, NDArray[Any]]:
    """Weights with a row per output, whichever way the layers hold them."""
    from automl.cost.storage import outputs_first

    turned = dict(weights)
    for name, weight in weights.items():
        groups = _groups_behind_inputs(network.get_submodule(name.rpartition(".")[0]))
        if groups is not None:
            turned[name] = outputs_first(weight, groups)
    return turned


def _groups_behind_inputs(layer: nn.Module) -> int | None:
    """Groups of a layer whose weight has inputs first; None where outputs are."""
    from torch import nn

    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        return layer.groups
    # The linear layer of transformers, which computes x @ weight.
    return 1 if type(layer).__name__ == "Conv1D" and hasattr(layer, "nf") else None


def _once_each(network: nn.Module, preferred: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Every parameter under one name: of several of a tied one, the first that is preferred."""
    named = dict(network.named_parameters(remove_duplicate=False))
    names: dict[int, str] = {}
    for name in (*preferred, *named):
        if name in named:
            names.setdefault(id(named[name]), name)
    return {name: _array(named[name]) for name in names.values()}


def _arrays(network: nn.Module) -> dict[str, NDArray[Any]]:
    return {name: _array(p) for name, p in network.named_parameters()}


def _array(parameter: nn.Parameter) -> NDArray[Any]:
    found: NDArray[Any] = parameter.detach().cpu().numpy()
    return found


def _others(parameters: Mapping[str, NDArray[Any]], weights: Mapping[str, NDArray[Any]]) -> int:
    """How many parameters there are besides the weight matrices."""
    return sum(p.size for name, p in parameters.items() if name not in weights)


def _densities(text: str) -> list[float]:
    """The densities asked for, ascending.

    Raises:
        InputError: One is no number in (0, 1].
    """
    from automl.types import InputError

    try:
        found = sorted({float(word) for word in text.split(",")})
    except ValueError:
        found = []
    if not found or not all(0 < density <= 1 for density in found):
        raise InputError(f"--densities must be numbers in (0, 1] with commas between, got {text!r}")
    return found


def _slim(bench: Bench, path: Path) -> nn.Module:
    """The network that a policy leaves; not repaired, which changes no size."""
    from automl.policy_csv import load_policy
    from automl.pruning.pruner import Pruner

    policy, pruner = load_policy(path), Pruner(bench.trace)
    policy.check(bench.trace.plan.targets, pruner.model_hash)
    return pruner.materialise(pruner.kept_units(policy.kept(bench.trace.plan.targets)))


def _curve(storage: Storage, densities: Sequence[float], weights: Weights | None) -> pd.DataFrame:
    """Bytes by density and format: the mean, or, with weights, of their largest ones."""
    from automl.cost.storage import FORMATS, TwoOfFour, largest

    curve = storage.curve(densities)
    for density in densities if weights is not None else ():
        assert weights is not None  # for the type checker
        thinned = storage.thinned({n: largest(w, density) for n, w in weights.items()})
        for form in FORMATS:
            if not isinstance(form, TwoOfFour):  # which chooses its own zeros
                curve.loc[density, form.name] = thinned.bytes(form)
    return curve


def _print(name: str, storage: Storage, curve: pd.DataFrame) -> None:
    """The table, with the smallest of the formats that hold the same values marked."""
    from rich.table import Table

    from automl.commands.wide_table import show
    from automl.cost.storage import FORMATS

    table = Table(title=f"bytes of {name} by density", title_justify="left")
    table.add_column("format", no_wrap=True)
    columns = {f"{density:g}": curve.loc[density].to_dict() for density in curve.index}
    if storage.density < 1:
        exact = {form.name: storage.bytes(form) for form in FORMATS}
        columns[f"as it is ({storage.density:.3g})"] = exact
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    least = [_smallest(column) for column in columns.values()]
    for form in FORMATS:
        cells = zip(columns.values(), least, strict=True)
        table.add_row(form.name, *(_cell(c[form.name], form.name in best) for c, best in cells))
    show(table, piped=160)
    print("*: the smallest that holds the same values; biases and norms are fp32 everywhere")


def _smallest(sizes: Mapping[str, float]) -> set[str]:
    """Of the formats with the same values, the smallest each."""
    from automl.cost.storage import FORMATS

    by_bits: dict[int, list[str]] = {}
    for form in FORMATS:
        if not math.isnan(sizes[form.name]):
            by_bits.setdefault(form.values.bits, []).append(form.name)
    return {min(names, key=lambda n: sizes[n]) for names in by_bits.values() if len(names) > 1}


def _cell(size: float, is_least: bool) -> str:
    if math.isnan(size):
        return "-"
    units = (("MB", 1e6), ("kB", 1e3), ("B", 1.0))
    unit, factor = next((one for one in units if size >= one[1]), units[-1])
    return f"{size / factor:.3g} {unit}{'*' if is_least else ' '}"


def _write(folder: Path, curve: pd.DataFrame, name: str) -> None:
    """The table as CSV, and the plot."""
    from automl.paths import atomic_write, whole_folder
    from automl.types import InputError

    try:
        with whole_folder(folder) as partial:
            atomic_write(partial / TABLE, curve.to_csv())
            written = [TABLE]
            if _plot(partial / PLOT, curve, name):
                written.append(PLOT)
    except OSError as error:
        raise InputError(f"--out {folder} cannot be written: {error.strerror}") from error
    print(f"wrote {folder} ({', '.join(written)})")
    if PLOT not in written:
        print("no plot: matplotlib is not installed (pip install prunepilot[plot])")


def _plot(path: Path, curve: pd.DataFrame, name: str) -> bool:
    """Draws bytes over density; whether matplotlib is there to do it."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    styles = itertools.cycle(("-", "--", ":", "-."))
    for style, column in zip(styles, curve.columns, strict=False):
        axes.plot(curve.index, curve[column] / 1e6, style, label=column)
    axes.set(xscale="log", yscale="log", xlabel="density", ylabel="MB", title=name)
    axes.grid(which="both", alpha=0.3)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=120)
    return True
