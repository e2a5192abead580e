"""From the plain configuration to the objects of a run."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from automl.budget import Budget
from automl.commands.depth import shortened
from automl.commands.scoring_choice import ScoringChoice, asked, chosen
from automl.cost import EnergyModel, standard_costs
from automl.cost.masked import masked_costs
from automl.data import DataSplits, load_data, split_for
from automl.data.split import stratified
from automl.data.tensors import TensorSet
from automl.device import resolve_device, resolve_dtype
from automl.engines import Engine
from automl.graph.export import Deadline
from automl.graph.trace import Trace, trace
from automl.models import LoadedModel, load_model, resolve_checkpoint
from automl.plan import IndexPlan
from automl.pruning.criteria import Context, Criterion
from automl.pruning.masked_plan import Grains, MaskedPlan
from automl.pruning.permutation import permute
from automl.pruning.pruner import Pruner
from automl.pruning.sparse_pruner import SparsePruner
from automl.pruning.trained import TrainedPruner
from automl.scoring import ClassifierScorer
from automl.training.config import FinetuneConfig
from automl.training.finetune import EpochRow, finetune
from automl.training.regularizers import Penalty
from automl.training.short_term import ShortTerm
from automl.training.state import evaluating
from automl.types import CostModel, InputError, Resource, Strategy

if TYPE_CHECKING:
    from automl.executors.latency_table import NetworkTable

Config = Mapping[str, Any]

#: Training images for criteria that need some and do not say how many.
_CRITERION_IMAGES = 256


@dataclass(frozen=True, eq=False)
class Bench:
    """The dense network with all that belongs to it, each made when it is first asked for.

    Attributes:
        config: The resolved configuration.
    """

    config: Config

    def sharing(self, config: Config) -> Bench:
        """A bench with another strategy, budget or the like, and all that is made already.

        Args:
            config: Settings equal to these in everything that ``Bench`` builds from but the
                strategy.
        """
        other = Bench(config)
        made = {name: value for name, value in vars(self).items() if name != "config"}
        vars(other).update(made)
        return other

    @cached_property
    def device(self) -> torch.device:
        """Where everything is computed."""
        return resolve_device(self.config["device"])

    @cached_property
    def dtype(self) -> torch.dtype:
        """What networks compute in."""
        return resolve_dtype(self.config["dtype"], self.device)

    @property
    def channels_last(self) -> bool:
        """Whether networks and images lie channels last."""
        return self.device.type == "cuda" and len(self.complete.input_shape) == 3

    @cached_property
    def loaded(self) -> LoadedModel:
        """The dense network, on the device, without the blocks that ``depth`` leaves out."""
        return shortened(self)

    @cached_property
    def complete(self) -> LoadedModel:
        """The dense network with all its blocks, on the device."""
        settings = self.config["model"]
        loaded = load_model(
            settings["factory"],
            kwargs=settings.get("kwargs"),
            checkpoint=resolve_checkpoint(settings["checkpoint"], self.config["data"]["root"]),
            input_shape=settings.get("input_shape"),
            seed=whole(self.config, "seed", 0),
        )
        _require_finite(loaded)
        loaded.model.to(self.device)
        return loaded

    @cached_property
    def trace(self) -> Trace:
        """The dense network's structure."""
        found = self._trace(self.loaded.model)
        self._permute(self.loaded.model, found.plan)
        return found

    @property
    def complete_plan(self) -> IndexPlan:
        """Structure of the dense network with all its blocks."""
        whole = self.loaded is self.complete
        return self.trace.plan if whole else self._trace(self.complete.model).plan

    def _trace(self, model: nn.Module) -> Trace:
        inputs = tuple(tensor.to(self.device) for tensor in self.complete.example_inputs)
        exclude, deadline_s = self.config["exclude"], number(self.config, "trace_deadline_s", 0)
        if not isinstance(exclude, list) or not all(isinstance(name, str) for name in exclude):
            raise InputError(f"exclude must be a list of patterns, as [fc,layer1.*], got {exclude}")
        return trace(model, inputs, exclude=exclude, deadline_s=deadline_s)

    def _permute(self, model: nn.Module, plan: IndexPlan) -> None:
        """Puts channels into an order that N:M patterns lose less in, where that is asked for.

        Before anything looks at the weights: to all else this is the dense network.
        """
        section = self.config["granularity"]
        asked = section.get("permute", False)
        if not isinstance(asked, bool):
            raise InputError(f"granularity.permute must be true or false, got {asked!r}")
        grains = read_grains(section) if asked else None
        if grains is None:
            return
        levels = whole(section, "granularity.levels", 2)
        masked = MaskedPlan.of(model, plan, grains, exclude=self.config["exclude"], levels=levels)
        inputs = [tensor.to(self.device) for tensor in self.complete.example_inputs]
        done = permute(model, masked, inputs)
        if not done:
            raise InputError(
                "granularity.permute=true finds no channels to reorder: it needs layers that N:M "
                "prunes and whose inputs are channels of prunable groups; set it to false"
            )
        before, after = (mean(getattr(one, name) for one in done) for name in ("before", "after"))
        print(
            f"channels of {len(done)} groups reordered: N:M keeps {100 * after:.1f} % of the "
            f"magnitude of the layers behind them, {100 * before:.1f} % before",
            file=sys.stderr,
            flush=True,
        )

    @cached_property
    def data(self) -> DataSplits:
        """Training, validation and test images that fit the network."""
        settings = dict(self.config["data"])
        settings["split"] = split_for(settings["split"], self.config["model"].get("trained_on"))
        data = load_data(settings.pop("name"), **settings)
        found, wanted = tuple(data.train.images.shape[1:]), self.complete.input_shape
        if found != wanted:
            raise InputError(
                f"data {data.name} has images of shape {found}, model {self.complete.name} takes "
                f"{wanted}; choose another data=, or set model.input_shape or data.size"
            )
        return data

    @property
    def normalisation(self) -> dict[str, Any]:
        """The mean and std that the weights expect, else those of the data."""
        own, data = self.complete, self.data
        return {
            "mean": data.mean if own.mean is None else own.mean,
            "std": data.std if own.std is None else own.std,
        }

    @cached_property
    def plan(self) -> IndexPlan | MaskedPlan:
        """What can be pruned, by the granularity that was asked for."""
        grains = read_grains(self.config["granularity"])
        if grains is None:
            return self.trace.plan
        levels = whole(self.config["granularity"], "granularity.levels", 2)
        exclude, model, plan = self.config["exclude"], self.loaded.model, self.trace.plan
        return MaskedPlan.of(model, plan, grains, exclude=exclude, levels=levels)

    @property
    def rounding(self) -> int | list[int]:
        """The steps in which a search chooses kept counts."""
        settings = self.config["granularity"]
        step = whole(settings, "granularity.rounding", 1) if "rounding" in settings else 1
        return self.plan.steps(step) if isinstance(self.plan, MaskedPlan) else step

    @cached_property
    def pruner(self) -> Pruner | SparsePruner:
        """Makes slim networks, and sparse ones where the granularity is finer than channels."""
        return self.pruner_of(self.plan)

    @cached_property
    def trial_pruner(self) -> Pruner | SparsePruner | TrainedPruner:
        """Makes the networks of trials: repaired on fewer images, trained a little, if so asked."""
        of = self.config["short_term"]["of"]
        if of not in ("trials", "finalists"):
            raise InputError(f"short_term.of must be trials or finalists, got {of!r}")
        quick = self.quick_pruner
        if of == "finalists":
            return quick
        return self.finalist_pruner if quick is self.pruner else self._training(quick)

    @cached_property
    def finalist_pruner(self) -> Pruner | SparsePruner | TrainedPruner:
        """Makes the networks of the last round, which may train where those of trials do not."""
        return self._training(self.pruner)

    @cached_property
    def quick_pruner(self) -> Pruner | SparsePruner:
        """The pruner, or one that repairs on as many images as ``repair.trial_images`` says."""
        repair = self.config["repair"]
        if repair["trial_images"] is None or not self.prunes_with_data:
            return self.pruner
        count = whole(repair, "repair.trial_images", 1)
        return self.pruner if count >= repair["calibration_images"] else self._pruner(count)

    def _training(self, pruner: Pruner | SparsePruner) -> Pruner | SparsePruner | TrainedPruner:
        training = self._short_term()
        return pruner if training is None else TrainedPruner(pruner, training)

    def _short_term(self) -> ShortTerm | None:
        settings = self.config["short_term"]
        config: FinetuneConfig = instantiate(settings["finetune"], "short_term.finetune")
        if config.epochs == 0:
            return None
        if self.config["dtype"] == "float16":
            raise InputError("dtype=float16 cannot train; use bfloat16 or float32")
        images = self.data.train
        if settings["images"] is not None:
            count = min(whole(settings, "short_term.images", 1), len(images))
            chosen = stratified(images.labels.cpu().numpy(), count, seed=0)
            images = images.subset(torch.from_numpy(chosen))
        return ShortTerm(
            images,
            config,
            **self.normalisation,
            augment=self.data.augment,
            teacher=self.complete.model,
            device=self.device,
            dtype=self.dtype,
            channels_last=self.images_channels_last,
        )

    def pruner_of(self, plan: IndexPlan | MaskedPlan) -> Pruner | SparsePruner:
        """The pruner of a plan of this network."""
        return self._pruner(None, plan)

    def _pruner(
        self, images: int | None, plan: IndexPlan | MaskedPlan | None = None
    ) -> Pruner | SparsePruner:
        """A pruner that repairs on so many images, or on as many as the settings say."""
        plan = self.plan if plan is None else plan
        repair = self.config["repair"]
        settings = repair["reconstruction"]
        arguments: dict[str, Any] = {
            "criterion": self.criterion,
            "context": self.context,
            "calibration": self._calibration(images) if self.prunes_with_data else None,
            "reconstruct": None if settings is None else instantiate(settings, "repair"),
            "batchnorm_recalibration": flag(repair, "repair.batchnorm_recalibration"),
        }
        if isinstance(plan, MaskedPlan):
            if getattr(arguments["reconstruct"], "inputs", "pruned") == "dense":
                raise InputError("repair=lookup is for granularity=channel")
            return SparsePruner(self.trace, plan, **arguments)
        return Pruner(self.trace, **arguments)

    @property
    def prunes_with_data(self) -> bool:
        """Whether networks are repaired on training images."""
        repair = self.config["repair"]
        return repair["reconstruction"] is not None or bool(repair["batchnorm_recalibration"])

    def _calibration(self, count: int | None = None) -> torch.Tensor:
        """Normalised training images for the repair, shape (n, channels, height, width)."""
        if count is None:
            count = whole(self.config["repair"], "repair.calibration_images", 1)
        return self._examples(count)[0]

    def _examples(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised training images, shape (n, channels, height, width), and their labels."""
        images = self.data.calibration(count)
        batches = images.batches(len(images), self.device, **self.normalisation)
        return next(iter(batches))

    @cached_property
    def criterion(self) -> Criterion:
        """What decides which units go first."""
        criterion: Criterion = instantiate(self.config["criterion"], "criterion")
        return criterion

    @cached_property
    def context(self) -> Context:
        """What the criterion looks at: training images, if it needs any."""
        found: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)
        if {"data", "labels"} & self.criterion.needs:
            found = self._examples(getattr(self.criterion, "images", _CRITERION_IMAGES))
        trains = "training" in self.criterion.needs
        return Context(
            self.loaded.model,
            self.trace.plan,
            *found,
            seed=whole(self.config, "seed", 0),
            trainer=self._train,
            trained_on=self.data.fingerprint if trains else "",
        )

    def _train(
        self, model: nn.Module, penalty: Penalty, tuning: FinetuneConfig, images: int | None
    ) -> None:
        """Trains a network under a regulariser, for criteria that look at what that leaves."""
        data = self.data

        def report(row: EpochRow) -> None:
            line = f"training under {penalty.name} {row.epoch}/{tuning.epochs}"
            print(f"{line}, loss {row.train_loss:.4f}", file=sys.stderr, flush=True)

        finetune(
            model,
            data.train if images is None else data.calibration(images),
            tuning,
            **self.normalisation,
            augment=data.augment,
            device=self.device,
            dtype=self.dtype,
            channels_last=self.images_channels_last,
            progress=report,
            regularizer=penalty,
        )

    def settle_scoring(self, file: Path) -> ScoringChoice:
        """Type and batch size of trials, measured where they are ``auto``; before :attr:`scorer`.

        Args:
            file: Where the run keeps what was chosen.
        """
        made = vars(self)
        if file.is_file() or "scoring_choice" not in made:
            found = chosen(self, file)
            if found != made.get("scoring_choice"):
                made.pop("scorer", None)  # of another run of a sweep
            made["scoring_choice"] = found
        return self.scoring_choice

    @cached_property
    def scoring_choice(self) -> ScoringChoice:
        """Type and batch size of trials."""
        return chosen(self, None)

    @cached_property
    def scorer(self) -> ClassifierScorer:
        """Scores trials, on as many validation images as ``scoring.images`` says."""
        return self.trial_scorer(self.scoring_choice)

    def trial_scorer(self, choice: ScoringChoice, most: int | None = None) -> ClassifierScorer:
        """Scores as trials are, in a type and batch size.

        Args:
            choice: Which.
            most: Images, at most.
        """
        plain = ScoringChoice(self.config["dtype"], self._careful_batch_size)
        images = self.search_images if most is None else self._subset(self.search_images, most)
        if images is self.data.validation and choice == replace(plain, why=choice.why):
            return self.careful_scorer
        return self._scorer(images, self.config["scoring"]["score"], choice)

    @cached_property
    def careful_scorer(self) -> ClassifierScorer:
        """Scores by the same metric on all validation images."""
        return self._scorer(self.data.validation, self.config["scoring"]["score"])

    @cached_property
    def search_images(self) -> TensorSet:
        """A class-balanced part of the validation images, or all of them."""
        if self.config["scoring"]["images"] is None:
            return self.data.validation
        return self._subset(
            self.data.validation, whole(self.config["scoring"], "scoring.images", 1)
        )

    @staticmethod
    def _subset(images: TensorSet, count: int) -> TensorSet:
        """As many images, balanced over classes; the set itself where it has no more."""
        if count >= len(images):
            return images
        rows = stratified(images.labels.cpu().numpy(), count, seed=0)
        return images.subset(torch.from_numpy(rows))

    @cached_property
    def costs(self) -> dict[Resource, CostModel]:
        """What networks cost, by resource."""
        if isinstance(self.plan, MaskedPlan):
            return masked_costs(self.plan)
        energy: EnergyModel = instantiate(self.config["energy"], "energy")
        return standard_costs(self.trace.plan, energy)

    def costs_for(self, budget: Any) -> dict[Resource, CostModel]:
        """The costs, with latency where the budget limits it: that has to be measured.

        Raises:
            InputError: The budget is malformed, or latency cannot be told (see ``latency_cost``).
        """
        limited = {limit.resource for limit in Budget.parse(budget).limits}
        return {**self.costs, "latency_ms": self.latency} if "latency_ms" in limited else self.costs

    @cached_property
    def latency(self) -> CostModel:
        """Predicted latency on this device, from measured tables."""
        from automl.commands.latency import latency_cost

        return latency_cost(self)

    @cached_property
    def latency_table(self) -> NetworkTable:
        """The latency table of this device, as the network uses it.

        Raises:
            InputError: There is none that can be used.
        """
        from automl.commands.latency import network_table

        return network_table(self)

    @cached_property
    def tuning_scorer(self) -> ClassifierScorer:
        """Top-1 on the validation images, for fine-tuning.

        That learns from labels and moves away from the dense network's outputs, which ``kl``
        would take for damage.
        """
        return self._scorer(self.data.validation, "top1")

    @cached_property
    def test_scorer(self) -> ClassifierScorer:
        """Top-1 on the test images; for final networks alone, once each."""
        return self._scorer(self.data.test, "top1")

    @property
    def _careful_batch_size(self) -> int | None:
        size = asked(self.config).batch_size
        return None if size == "auto" else size

    def _scorer(
        self, images: TensorSet, score: Any, choice: ScoringChoice | None = None
    ) -> ClassifierScorer:
        if choice is None:
            choice = ScoringChoice(self.config["dtype"], self._careful_batch_size)
        return ClassifierScorer(
            images.images,
            images.labels,
            score=score,
            dense=None if images is self.data.test else self.complete.model,
            batch_size=choice.batch_size,
            device=self.device,
            dtype=resolve_dtype(choice.dtype, self.device),
            channels_last=self.images_channels_last,
            **self.normalisation,
        )

    @cached_property
    def images_channels_last(self) -> bool:
        """Whether images that are scored or trained on lie channels last.

        On a CPU too, convolutions of images laid out so need no reordering; but a network that
        calls ``view`` behind one may not run on them.
        """
        x = self.complete.example_inputs[0]
        if len(self.complete.input_shape) != 3 or x.ndim != 4:
            return False
        model = self.complete.model
        try:
            deadline = Deadline(number(self.config, "trace_deadline_s", 0))
            # The first time that its forward is called, which may never return.
            with deadline.interrupting(), evaluating(model), torch.inference_mode():
                # A copy: of one channel, both layouts are the same and only strides tell.
                model(x.to(self.device, copy=True, memory_format=torch.channels_last))
        except RuntimeError:
            return False
        return True

    def strategy(self) -> Strategy:
        """The search strategy."""
        strategy: Strategy = instantiate(self.config["strategy"], "strategy")
        return strategy

    def lay_out(self, network: nn.Module) -> nn.Module:
        """The network in the memory format that this device likes best."""
        if self.channels_last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network


def _require_finite(loaded: LoadedModel) -> None:
    for name, tensor in loaded.model.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            source = loaded.checkpoint or loaded.factory
            raise InputError(f"{name} of {source} holds NaN or infinite values; load other weights")


#: Keys of conf/granularity that are not the granularity's own.
_OF_EVERY_GRAIN = ("name", "scope", "levels", "min_keep", "rounding", "permute")


def read_grains(section: Config) -> Grains | None:
    """Which grain each layer is pruned by; None for whole channels alone.

    Raises:
        InputError: A setting is off.
    """
    if section.get("scope", "layer") not in ("layer", "global"):
        raise InputError(f"granularity.scope must be layer or global, got {section['scope']!r}")
    if "_target_" in section:
        own = {key: value for key, value in section.items() if key not in _OF_EVERY_GRAIN}
        return Grains(inside=instantiate(own, "granularity"))
    if section["name"] != "mixed":
        return None
    names, layers = section["grains"], section["layers"]
    if not isinstance(names, list) or not isinstance(layers, Mapping):
        raise InputError("granularity.grains is a list and granularity.layers a mapping of names")
    grains = Grains.parse([str(name) for name in names], {str(k): v for k, v in layers.items()})
    return None if grains.names == ["channel"] else grains


#: More threads than any machine has cores.
_MOST_THREADS = 1024

#: What classes raise on arguments that are no good, or of another type than they expect.
_REFUSALS = (
    ValueError, TypeError, ImportError, AttributeError, LookupError, ArithmeticError,
)  # fmt: skip


def instantiate(section: Config, name: str) -> Any:
    """Makes what a section's ``_target_`` names, with its other keys as arguments.

    Raises:
        InputError: An argument is refused; programmers' messages are passed on as one line.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate as hydra_instantiate

    try:
        return hydra_instantiate(dict(section), _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, InputError):
            raise cause from None
        if isinstance(cause, _REFUSALS) or cause is None:
            text = str(cause or error).strip().split("\n", 1)[0]
            raise InputError(f"{name}: {text}") from error
        raise


def whole(section: Config, name: str, least: int) -> int:
    """A whole number from the configuration; ``name`` is its full key.

    Raises:
        InputError: It is none, or below ``least``.
    """
    value = section[name.rpartition(".")[2]]
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{name} must be a whole number >= {least}, got {value!r}")
    return value


def number(section: Config, name: str, least: float) -> float:
    """A finite number from the configuration; ``name`` is its full key.

    Raises:
        InputError: It is none, or below ``least``.
    """
    value = section[name.rpartition(".")[2]]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not least <= value < math.inf:
        raise InputError(f"{name} must be a number >= {least:g}, got {value!r}")
    return float(value)


def run_dir(config: Config) -> Path | None:
    """Where a run is to be written; None where that was not said.

    Raises:
        InputError: ``run_dir`` is no text, or no path.
    """
    value = config["run_dir"]
    if not value:
        return None
    if not isinstance(value, str) or "\0" in value:
        raise InputError(f"run_dir must be a path (quote it: run_dir='\"1\"'), got {value!r}")
    return Path(value)


def flag(section: Config, name: str) -> bool:
    """A yes or no from the configuration; ``name`` is its full key.

    Raises:
        InputError: It is neither.
    """
    value = section[name.rpartition(".")[2]]
    if not isinstance(value, bool):
        raise InputError(f"{name} must be true or false, got {value!r}")
    return value


@contextmanager
def engine_of(config: Config) -> Iterator[Engine]:
    """The engine that trials run on, closed after the block.

    Raises:
        InputError: A setting is off, or a package that the engine needs is not installed.
    """
    # Runs that were started before there were engines have none in their settings.
    settings = config.get("engine") or {"_target_": "automl.engines.serial.Serial"}
    engine: Engine = instantiate(settings, "engine")
    try:
        yield engine
    finally:
        engine.close()


def set_threads(config: Config) -> None:
    """Limits torch to the CPU threads asked for.

    Raises:
        InputError: ``threads`` is neither null nor a whole number from 1 to 1,024.
    """
    if config["threads"] is not None:
        threads = whole(config, "threads", 1)
        if threads > _MOST_THREADS:
            raise InputError(f"threads must be at most {_MOST_THREADS}, got {threads}")
        torch.set_num_threads(threads)
