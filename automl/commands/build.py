"""The bench of a run: from the plain configuration to the objects that it asks for."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from automl.budget import Budget
from automl.commands import pruners, scorers
from automl.commands.depth import shortened
from automl.commands.granularity import masked_plan, read_grains, reorder_channels, rounding
from automl.commands.network import complete_network, runs_channels_last, structure
from automl.commands.scoring_choice import ScoringChoice, chosen
from automl.commands.settings import Config, instantiate, path
from automl.commands.untrained import (
    loads_weights,
    warn_of_default_data,
    warn_of_initial_weights,
)
from automl.cost import EnergyModel, standard_costs
from automl.cost.masked import masked_costs
from automl.data import DataSplits, load_data, split_for
from automl.data.tensors import TensorSet
from automl.device import resolve_device, resolve_dtype
from automl.graph.fold import batchnorm_pairs, fold_batchnorm
from automl.graph.trace import Trace
from automl.models import LoadedModel
from automl.plan import IndexPlan
from automl.pruning.criteria import Context, Criterion
from automl.pruning.masked_plan import MaskedPlan
from automl.pruning.pruner import Pruner
from automl.pruning.sites import not_refitted
from automl.pruning.sparse_pruner import SparsePruner
from automl.pruning.trained import TrainedPruner
from automl.scoring import ClassifierScorer
from automl.types import CostModel, InputError, Resource, Strategy

if TYPE_CHECKING:
    from automl.executors.latency_table import NetworkTable


#: What is aimed at the budget: predictions are corrected for networks that fill it.
_OF_BUDGET = frozenset({"latency", "latency_table"})


@dataclass(frozen=True, eq=False)
class Bench:
    """The dense network with all that belongs to it, each made when it is first asked for.

    Attributes:
        config: The resolved configuration.
    """

    config: Config

    def sharing(self, config: Config) -> Bench:
        """A bench with another strategy, budget or the like, and all of it that is made already.

        Args:
            config: Settings equal to these in everything that ``Bench`` builds from but the
                strategy.
        """
        other = Bench(config)
        own = {"config"} if config["budget"] == self.config["budget"] else {"config", *_OF_BUDGET}
        made = {name: value for name, value in vars(self).items() if name not in own}
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
        return complete_network(self.config, self.device)

    @cached_property
    def trace(self) -> Trace:
        """The dense network's structure."""
        model, inputs = self.loaded.model, self._inputs()
        found = structure(model, inputs, self.config)
        reorder_channels(model, found.plan, self.config, inputs)
        return found

    @property
    def complete_plan(self) -> IndexPlan:
        """Structure of the dense network with all its blocks."""
        if self.loaded is self.complete:
            return self.trace.plan
        return structure(self.complete.model, self._inputs(), self.config).plan

    @cached_property
    def teacher(self) -> nn.Module:
        """The dense network in eval mode, its batch norms folded: what is distilled from."""
        return fold_batchnorm(self.complete.model.eval(), batchnorm_pairs(self.complete_plan))

    def _inputs(self) -> tuple[torch.Tensor, ...]:
        return tuple(tensor.to(self.device) for tensor in self.complete.example_inputs)

    @cached_property
    def data(self) -> DataSplits:
        """Training, validation and test images that fit the network."""
        data = self._loaded_data()
        self._warn_of_images_seen(data)
        found, wanted = tuple(data.train.images.shape[1:]), self.complete.input_shape
        if found != wanted:
            raise InputError(
                f"data {data.name} has images of shape {found}, model {self.complete.name} takes "
                f"{wanted}; choose another data=, or set model.input_shape or data.size"
            )
        warn_of_default_data(self.config)
        warn_of_initial_weights(self.config)
        return data

    def _warn_of_images_seen(self, data: DataSplits) -> None:
        """Says so where nobody knows whether the weights were trained on images held out here."""
        trained_on = self.config["model"].get("trained_on")
        if data.from_train and loads_weights(self.config) and trained_on is None:
            print(
                f"{' and '.join(data.from_train)} images are cut from the training images of "
                f"{data.name}, which the weights may have seen: model.trained_on=all_train takes "
                "others if they have, model.trained_on=train says that they have not",
                file=sys.stderr,
            )

    def _loaded_data(self) -> DataSplits:
        settings = {**self.config["data"], "root": path(self.config["data"], "data.root")}
        asked, trained_on = settings["split"], self.config["model"].get("trained_on")
        settings["split"] = split_for(asked, trained_on)
        try:
            return load_data(settings.pop("name"), **settings)
        except InputError as error:
            if asked == settings["split"] or "test_halves" not in str(error):
                raise
            raise InputError(
                f"{error}. data.split=auto chose it because of model.trained_on={trained_on}; set "
                "model.trained_on=null if the weights have not seen the training part of these data"
            ) from error

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
        grains, plan = read_grains(self.config["granularity"]), self.trace.plan
        return plan if grains is None else masked_plan(self.loaded.model, plan, grains, self.config)

    @property
    def rounding(self) -> int | list[int]:
        """The steps in which a search chooses kept counts."""
        return rounding(self.config["granularity"], self.plan)

    @cached_property
    def pruner(self) -> Pruner | SparsePruner:
        """Makes slim networks, and sparse ones where the granularity is finer than channels."""
        pruner = self.pruner_of(self.plan)
        if self.config["repair"]["reconstruction"] is not None:
            self._warn_of_layers_not_refitted()
        return pruner

    def _warn_of_layers_not_refitted(self) -> None:
        names = not_refitted(self.trace.model, self.trace.plan)
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            print(
                f"not refitted, as functions read their weights: "
                f"{', '.join(names[:3])}{more}; what they read is cut, and layers behind make up "
                "for it",
                file=sys.stderr,
            )

    def pruner_of(self, plan: IndexPlan | MaskedPlan) -> Pruner | SparsePruner:
        """The pruner of a plan of this network."""
        return pruners.repairing(self, plan)

    def refining_pruner_of(self, plan: IndexPlan | MaskedPlan) -> Pruner | SparsePruner:
        """As :meth:`pruner_of`, for the networks that a command ends with."""
        return pruners.repairing(self, plan, refine=True)

    @cached_property
    def refining_pruner(self) -> Pruner | SparsePruner:
        """Makes the networks that a command ends with: refined, where that is asked for."""
        return self.refining_pruner_of(self.plan) if self.refines else self.pruner

    @property
    def refines(self) -> bool:
        """Whether the networks that a command ends with are refined."""
        return pruners.refinement_of(self.config) is not None

    @cached_property
    def quick_pruner(self) -> Pruner | SparsePruner:
        """The pruner, or one that repairs on as many images as ``repair.trial_images`` says."""
        return pruners.repairing_quickly(self)

    @cached_property
    def trial_pruner(self) -> Pruner | SparsePruner | TrainedPruner:
        """Makes the networks of trials: repaired on fewer images, trained a little, if so asked."""
        return pruners.for_trials(self)

    @cached_property
    def finalist_pruner(self) -> Pruner | SparsePruner | TrainedPruner:
        """Makes the networks of the last round, which may train where those of trials do not."""
        return pruners.training(self, self.pruner)

    @property
    def prunes_with_data(self) -> bool:
        """Whether networks are repaired on training images."""
        return pruners.prunes_with_data(self.config)

    @cached_property
    def criterion(self) -> Criterion:
        """What decides which units go first."""
        criterion: Criterion = instantiate(self.config["criterion"], "criterion")
        return criterion

    @cached_property
    def context(self) -> Context:
        """What the criterion looks at: training images, if it needs any."""
        return pruners.criterion_context(self)

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
        return scorers.trial_scorer(self, choice, most)

    @cached_property
    def careful_scorer(self) -> ClassifierScorer:
        """Scores by the same metric on all validation images."""
        return scorers.scorer(self, self.data.validation, self.config["scoring"]["score"])

    @cached_property
    def search_images(self) -> TensorSet:
        """A class-balanced part of the validation images, or all of them."""
        return scorers.search_images(self)

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
        return scorers.scorer(self, self.data.validation, "top1")

    @cached_property
    def test_scorer(self) -> ClassifierScorer:
        """Top-1 on the test images; for final networks alone, once each."""
        return scorers.scorer(self, self.data.test, "top1")

    @cached_property
    def images_channels_last(self) -> bool:
        """Whether images that are scored or trained on lie channels last.

        On a CPU too, convolutions of images laid out so need no reordering.
        """
        return runs_channels_last(self.complete, self.config, self.device)

    def strategy(self) -> Strategy:
        """The search strategy."""
        strategy: Strategy = instantiate(self.config["strategy"], "strategy")
        return strategy

    def lay_out(self, network: nn.Module) -> nn.Module:
        """The network in the memory format that this device likes best."""
        if self.channels_last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network
