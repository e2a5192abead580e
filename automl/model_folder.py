"""A pruned network on disk: four files from which it can be built again without tracing.

plan.json (structure of the dense network), policy.json (units kept), rebuild.json (what made the
dense network; without it the caller brings that) and model.safetensors (tensors of the pruned
one). Nothing in them is executed; of factories, rebuild.json may name PrunePilot's own and those of
libraries (see automl.trust).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from automl.engines.errors import one_line
from automl.graph.materialise import Materialiser
from automl.models import LoadedModel, load_model
from automl.paths import atomic_write
from automl.plan import IndexPlan
from automl.policy import Policy
from automl.pruning.grains import is_inside
from automl.pruning.masked_plan import MaskedPlan, parameter_of
from automl.pruning.masks import PACKED, attach, pack, unpack
from automl.runs import (
    PLAN,
    POLICY,
    REBUILD,
    REBUILD_SCHEMA,
    REBUILD_VERSION,
    WEIGHTS,
)
from automl.training.state import state_tensors
from automl.trust import check_factory
from automl.types import InputError, one_or_more


@dataclass(frozen=True, slots=True)
class Rebuild:
    """What rebuild.json holds: how the dense network's modules came to be.

    Attributes:
        factory: See :func:`automl.models.load_model`.
        kwargs: Arguments of the factory.
        input_shape: (channels, height, width) of one example.
        mean: Per channel, subtracted from images in [0, 1]; None where that is not known.
        std: Per channel, divided by.
        form: ``modules`` (the user's own classes) or ``graph`` (a ``torch.fx.GraphModule``).
        seed: Of what the factory draws, of which not all need be among the saved tensors.
    """

    factory: str
    kwargs: Mapping[str, Any]
    input_shape: tuple[int, ...]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    form: str
    seed: int = 0

    def dense(self) -> LoadedModel:
        """The dense network, with whatever weights the factory gives it.

        Raises:
            InputError: The factory does not make it.
        """
        shape = self.input_shape or None
        return load_model(self.factory, kwargs=self.kwargs, input_shape=shape, seed=self.seed)

    def to_json(self) -> str:
        """Versioned JSON."""
        document = {
            "schema": REBUILD_SCHEMA,
            "version": REBUILD_VERSION,
            "factory": self.factory,
            "kwargs": dict(self.kwargs),
            "input_shape": list(self.input_shape),
            "mean": self.mean and list(self.mean),
            "std": self.std and list(self.std),
            "form": self.form,
            "seed": self.seed,
        }
        return json.dumps(document, indent=2) + "\n"

    @classmethod
    def load(cls, path: Path) -> Rebuild:
        """Reads what :meth:`to_json` wrote.

        Raises:
            InputError: The file is missing, damaged or of another version.
        """
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if (document["schema"], document["version"]) != (REBUILD_SCHEMA, REBUILD_VERSION):
                raise InputError(f"{path} is not {REBUILD_SCHEMA} version {REBUILD_VERSION}")
            mean, std = document["mean"], document["std"]
            return cls(
                factory=document["factory"],
                kwargs=document["kwargs"],
                input_shape=tuple(document["input_shape"]),
                mean=mean and tuple(mean),
                std=std and tuple(std),
                form=document["form"],
                seed=_seed(document),
            )
        except FileNotFoundError:
            raise InputError(f"{path.parent} holds no pruned network (no {path.name})") from None
        except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path} cannot be read: {error!r}") from error


def _seed(document: Mapping[str, Any]) -> int:
    seed = document.get("seed", 0)  # folders of earlier versions do not say
    if type(seed) is not int:
        raise TypeError(f"seed must be a whole number, got {seed!r}")
    return seed


def save_pruned(
    folder: str | os.PathLike[str],
    network: nn.Module,
    *,
    dense: LoadedModel,
    plan: IndexPlan | MaskedPlan,
    policy: Policy,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> None:
    """Writes the four files.

    Args:
        folder: An existing directory.
        network: The pruned network, as ``plan`` and ``policy`` make it; weights may have been
            trained since.
        dense: What the network was pruned from.
        plan: Its structure.
        policy: What was kept, with the indices of channels; masks are taken from the network.
        mean: Normalisation of the images, kept for whoever runs the network.
        std: Likewise.
    """
    folder = Path(folder)
    form = "graph" if plan.needs_graph_form(policy.kept(plan.targets)) else "modules"
    about = dense.factory, dense.kwargs, dense.input_shape
    rebuild = Rebuild(*about, mean, std, form, dense.seed)
    atomic_write(folder / PLAN, plan.to_json())
    policy.save(folder / POLICY)
    atomic_write(folder / WEIGHTS, packed_weights(network))
    atomic_write(folder / REBUILD, rebuild.to_json())


def load_pruned(
    folder: str | os.PathLike[str],
    trust: str | Sequence[str] = (),
    dense: nn.Module | None = None,
) -> nn.Module:
    """Builds the pruned network of a run, of ``prunepilot prune`` or of ``SearchRun.export``.

    Args:
        folder: Where the files lie.
        trust: Factories, or packages of them, that rebuild.json may name beside PrunePilot's own;
            one, or several.
        dense: The dense network, of whatever weights, in place of rebuild.json: an exported search
            of a network that Python made has none. It stays as it is.

    Returns:
        The network in eval mode on the CPU, with the weights and masks that were saved.

    Raises:
        InputError: A file is missing or damaged, they do not belong together, or the factory is
            neither known nor trusted.
    """
    folder = Path(folder)
    network, _, policy = load_structure(folder, one_or_more(trust), dense=dense)
    tensors = read_tensors(folder / WEIGHTS)
    weights = {n: t for n, t in tensors.items() if not n.endswith(PACKED)}
    fill(network, weights, folder / WEIGHTS)
    attach(network, _masks(tensors, network, policy, folder))
    return network.eval()


def load_structure(
    folder: Path,
    trust: Sequence[str] = (),
    policy_file: str = POLICY,
    dense: nn.Module | None = None,
) -> tuple[nn.Module, IndexPlan, Policy]:
    """The pruned network with whatever weights, its dense network's plan, and the policy.

    Args:
        folder: Where the files lie.
        trust: As in :func:`load_pruned`.
        policy_file: Name of the policy in it.
        dense: As in :func:`load_pruned`.

    Raises:
        InputError: A file is missing or damaged, they do not belong together, or the factory is
            neither known nor trusted.
    """
    make = _factory(folder, trust) if dense is None else lambda: dense
    plan = IndexPlan.from_json(_read(folder / PLAN).decode("utf-8", "replace"))
    policy = Policy.load(folder / policy_file)
    units = kept_units(policy, plan)
    try:
        network = Materialiser(make(), plan)(units)
    except InputError:
        raise
    except Exception as error:  # a damaged plan can make torch stumble over nearly anything
        raise InputError(
            f"{folder}: plan.json, {policy_file} and rebuild.json do not make a network "
            f"({one_line(error)[:120]}); export the run again"
        ) from error
    return network, plan, policy


def _factory(folder: Path, trust: Sequence[str]) -> Callable[[], nn.Module]:
    """What makes the dense network that rebuild.json names."""
    file = folder / REBUILD
    if not file.exists() and (folder / PLAN).exists():
        raise InputError(
            f"{folder} does not say how its dense network is made (no {REBUILD}); pass the network:"
            " automl.load_pruned(folder, dense=network)"
        )
    rebuild = Rebuild.load(file)
    check_factory(rebuild.factory, rebuild.kwargs, trust, str(file))
    return lambda: rebuild.dense().model


def _masks(
    tensors: Mapping[str, Tensor], network: nn.Module, policy: Policy, folder: Path
) -> dict[str, Tensor]:
    """The masks, one for every weight that the policy prunes inside."""
    try:
        masks = unpack(tensors, network)
    except InputError as error:
        raise InputError(f"{folder / WEIGHTS}: {error}") from None
    parameters = dict(network.named_parameters(remove_duplicate=False))
    for one in policy.decisions:
        is_masked = is_inside(one.granularity) and one.kept < one.units
        if is_masked and parameter_of(one.target, parameters) not in masks:
            raise InputError(f"{folder / WEIGHTS} lacks the mask of {one.target}")
    return masks


def kept_units(policy: Policy, plan: IndexPlan) -> list[tuple[int, ...]]:
    """Which units of each target stay, in the plan's order.

    Raises:
        InputError: The policy is of another network, or leaves the choice of units open.
    """
    whole = [one for one in policy.decisions if not is_inside(one.granularity)]
    if policy.decisions and not whole:  # pruned inside layers alone
        return [tuple(range(target.units)) for target in plan.targets]
    Policy(tuple(whole), policy.model_hash).check(plan.targets)
    decisions = {decision.target: decision for decision in whole}
    units = []
    for target in plan.targets:
        decision = decisions[target.name]
        if decision.indices is None and decision.kept < decision.units:
            raise InputError(f"the policy does not say which units of {target.name!r} stay")
        units.append(decision.indices or tuple(range(decision.units)))
    return units


def packed_weights(network: nn.Module) -> bytes:
    """The network's tensors as a safetensors file, shared ones once and masks in bits."""
    data: bytes = safetensors.torch.save(pack(unique_tensors(network), network))
    return data


def unique_tensors(network: nn.Module) -> dict[str, Tensor]:
    """The state without second names of shared tensors, which safetensors refuses."""
    state, seen = {}, set()
    for name, tensor in state_tensors(network).items():
        key = _memory(tensor)
        if key not in seen:
            seen.add(key)
            state[name] = tensor.detach().contiguous().cpu()
    return state


def _memory(tensor: Tensor) -> tuple[int, int, tuple[int, ...]]:
    # Tensors without elements all lie at address 0; they are told apart by nothing and cost none.
    return tensor.data_ptr() or id(tensor), tensor.numel(), tuple(tensor.shape)


def fill(network: nn.Module, tensors: Mapping[str, Tensor], file: Path) -> None:
    """Puts the tensors of a file into a network.

    Raises:
        InputError: Some are missing or of another shape.
    """
    state = state_tensors(network)
    shared = {_memory(state[name]) for name in tensors if name in state}
    for name, tensor in state.items():
        if name not in tensors and _memory(tensor) not in shared:
            raise InputError(f"{file} lacks {name}; it is of another network")
    try:
        network.load_state_dict(dict(tensors), strict=False)
    except RuntimeError as error:
        line = str(error).strip().split("\n")[-1].strip()
        raise InputError(f"{file} does not fit the policy: {line}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """What a safetensors file holds.

    Raises:
        InputError: It cannot be read, or is damaged.
    """
    try:
        return safetensors.torch.load(_read(path))
    except SafetensorError as error:
        raise InputError(f"{path} is damaged: {error}") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
