"""A run's network with its layers packed: sparse formats for layers with zeros, dense for others.

Beside plan.json, policy.json and rebuild.json lie ``packed.safetensors`` and ``packed.json`` (the
packed layers, see ``automl.executors.packed_file``), ``packed_convolutions.json`` (what those of
them that are convolutions have besides a matrix) and ``rest.safetensors`` (all other tensors). A
layer gets the exact format with the fewest bytes, and stays dense where none has fewer than dense.
Which is fastest is another question, which ``automl.compile`` answers by measuring.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from automl.executors import packed_file
from automl.executors.autotune import PackedModule, pack
from automl.executors.baselines import inputs_of_layers, with_replaced
from automl.executors.compiler import EXACT
from automl.executors.conv import SparseConv2d
from automl.executors.packed import PackedLinear
from automl.executors.packed_check import check_geometry
from automl.executors.spmm import SpmmLinear
from automl.graph.fold import batchnorm_pairs, fold_batchnorm
from automl.model_folder import Rebuild, fill, load_structure, read_tensors, unique_tensors
from automl.paths import atomic_write
from automl.pruning.masks import detach
from automl.runs import REBUILD
from automl.types import InputError

PACKAGES = ()
FILE, REST, CONVOLUTIONS = "packed.json", "rest.safetensors", "packed_convolutions.json"
_GEOMETRY = ("shape", "stride", "padding", "dilation", "groups")


def write(network: nn.Module, inputs: Tensor, folder: Path) -> Path:
    """Packs the network, batch norms folded, into a folder; see ``automl.export``.

    Args:
        network: The pruned network; its zeros are left out.
        inputs: Some examples; layers that they do not reach stay dense.
        folder: Holds plan.json, policy.json and rebuild.json of the network already.
    """
    plain = copy.deepcopy(network)
    detach(plain)  # the zeros stay
    ways = {}
    for name, (layer, x) in inputs_of_layers(plain, (inputs,)).items():
        way = None if x.dtype != torch.float32 else _smallest(layer)
        if way is not None:
            ways[name] = way
    rest = unique_tensors(with_replaced(plain, ways))
    packed = {name: way.packed for name, way in ways.items()}
    convolutions = {n: one for n, one in packed.items() if isinstance(one, SparseConv2d)}
    geometry = {n: {k: getattr(c, k) for k in _GEOMETRY} for n, c in convolutions.items()}
    matrices = {
        name: one.matrix if isinstance(one, SparseConv2d) else one for name, one in packed.items()
    }
    atomic_write(folder / REST, safetensors.torch.save(rest))
    atomic_write(folder / CONVOLUTIONS, json.dumps(geometry, indent=2) + "\n")
    packed_file.save(matrices, folder)
    return folder / FILE


def _smallest(layer: Any) -> PackedModule | None:
    """The layer in the exact format with the fewest bytes; None where dense has no more."""
    if layer.weight.dtype != torch.float32 or not layer.weight.numel():
        return None
    best, least = None, sum(tensor.nbytes for tensor in layer.parameters())
    is_convolution = isinstance(layer, nn.Conv2d)
    if is_convolution and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
        return None
    for form in ("conv",) if is_convolution else EXACT:
        try:
            found = pack(layer, form)
        except ValueError:  # this weight is not of that form
            continue
        if found.packed.nbytes < least:
            best, least = found, found.packed.nbytes
    return best


def load_packed(folder: Path | str, trust: Sequence[str] = ()) -> nn.Module:
    """The network that ``prunepilot export --format packed`` wrote, for float32 on the CPU.

    Raises:
        InputError: A file is missing or damaged, or they do not belong together.
    """
    folder = Path(folder)
    network, plan, _ = load_structure(folder, trust)
    network = fold_batchnorm(network.eval(), batchnorm_pairs(plan))
    layers, geometry = packed_file.load(folder), _geometry(folder / CONVOLUTIONS)
    try:
        ways = {name: PackedModule(_layer(one, geometry.get(name))) for name, one in layers.items()}
        network = with_replaced(network, ways)
    except (AttributeError, TypeError) as error:
        raise InputError(f"{folder / FILE} is of another network ({error})") from error
    fill(network, read_tensors(folder / REST), folder / REST)
    return network.eval()


def _layer(one: PackedLinear, geometry: Mapping[str, Any] | None) -> PackedLinear | SparseConv2d:
    if geometry is None:
        return one
    if not isinstance(one, SpmmLinear):
        raise TypeError(f"a convolution as {one.name}")
    check_geometry(one, geometry, "of the file")
    settings: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in geometry.items()
    }
    return SparseConv2d(one, **settings)


def _geometry(path: Path) -> dict[str, Mapping[str, Any]]:
    try:
        geometry = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(one, dict) for one in geometry.values()):
            raise TypeError("a convolution is described by an object")
        return dict(geometry)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} cannot be read; export the run again") from error


@dataclass(frozen=True, slots=True)
class Packing:
    """What a packed network is made of.

    Attributes:
        formats: Format -> how many layers have it.
        nbytes: Size of all its tensors on disk.
    """

    formats: Mapping[str, int]
    nbytes: int

    def __str__(self) -> str:
        """One phrase."""
        layers = ", ".join(f"{count} {name}" for name, count in self.formats.items())
        return f"{self.nbytes / 1e3:,.1f} kB, layers packed: {layers or 'none, dense is smaller'}"


def packing(file: Path) -> Packing:
    """What ``write`` made of the layers."""
    described = json.loads(file.read_text(encoding="utf-8"))["layers"]
    convolutions = _geometry(file.parent / CONVOLUTIONS)
    formats: dict[str, int] = {}
    for name, layer in described.items():
        form = "conv" if name in convolutions else layer["format"]
        formats[form] = formats.get(form, 0) + 1
    sizes = [(file.parent / name).stat().st_size for name in ("packed.safetensors", REST)]
    return Packing(formats, sum(sizes))


def run(file: Path, inputs: Tensor) -> Any:
    """The outputs of a network that :func:`write` has just written."""
    own = Rebuild.load(file.parent / REBUILD).factory  # of the network that was written
    with torch.inference_mode():
        return load_packed(file.parent, (own,))(inputs)
