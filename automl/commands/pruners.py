"""What makes the networks of a run: pruned, repaired, and trained a little where asked for."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from automl.commands.settings import Config, flag, instantiate, seed_of, whole
from automl.data.split import stratified
from automl.plan import IndexPlan
from automl.pruning.criteria import Context
from automl.pruning.criteria.context import in_words
from automl.pruning.masked_plan import MaskedPlan
from automl.pruning.pruner import Pruner
from automl.pruning.refine import Refinement
from automl.pruning.sparse_pruner import SparsePruner
from automl.pruning.trained import TrainedPruner
from automl.training.config import FinetuneConfig
from automl.training.finetune import finetune
from automl.training.history import EpochRow
from automl.training.regularizers import Penalty
from automl.training.short_term import ShortTerm
from automl.types import InputError

if TYPE_CHECKING:
    from automl.commands.build import Bench

#: Training images for criteria that need some and do not say how many.
_CRITERION_IMAGES = 256


def prunes_with_data(config: Config) -> bool:
    """Whether networks are repaired on training images."""
    repair = config["repair"]
    return repair["reconstruction"] is not None or bool(repair["batchnorm_recalibration"])


def refinement_of(config: Config) -> Refinement | None:
    """How the networks that a command ends with are refined; None: not at all.

    Raises:
        InputError: A setting is off.
    """
    # Runs of earlier versions do not have the section.
    section = config["repair"].get("refine")
    return None if section is None else cast(Refinement, instantiate(section, "repair.refine"))


def repairing(
    bench: Bench, plan: IndexPlan | MaskedPlan, images: int | None = None, refine: bool = False
) -> Pruner | SparsePruner:
    """A pruner that repairs as ``repair.*`` says.

    Args:
        bench: Network, data and criterion.
        plan: What can be pruned.
        images: How many training images it repairs on; None: as many as the settings say.
        refine: Whether it refines, too, as ``repair.refine`` says.

    Raises:
        InputError: A setting is off, or they do not go together.
    """
    repair = bench.config["repair"]
    settings = repair["reconstruction"]
    calibration = None
    refinement = refinement_of(bench.config)  # checked, whoever asks
    if not refine:
        refinement = None
    if refinement is not None or prunes_with_data(bench.config):
        count = whole(repair, "repair.calibration_images", 1) if images is None else images
        calibration = _examples(bench, count)[0]
    arguments: dict[str, Any] = {
        "criterion": bench.criterion,
        "context": bench.context,
        "calibration": calibration,
        "reconstruct": None if settings is None else instantiate(settings, "repair"),
        "batchnorm_recalibration": flag(repair, "repair.batchnorm_recalibration"),
        "refine": refinement,
        "report": _report_refining,
    }
    if isinstance(plan, MaskedPlan):
        if getattr(arguments["reconstruct"], "inputs", "pruned") == "dense":
            raise InputError("repair=lookup is for granularity=channel")
        return SparsePruner(bench.trace, plan, **arguments)
    return Pruner(bench.trace, **arguments)


def _report_refining(line: str) -> None:
    print(f"refining {line}", file=sys.stderr, flush=True)


def repairing_quickly(bench: Bench) -> Pruner | SparsePruner:
    """The bench's pruner, or one that repairs on as many images as ``repair.trial_images`` says.

    Raises:
        InputError: A setting is off.
    """
    repair = bench.config["repair"]
    if repair["trial_images"] is None or not prunes_with_data(bench.config):
        return bench.pruner
    count = whole(repair, "repair.trial_images", 1)
    enough = count >= repair["calibration_images"]
    return bench.pruner if enough else repairing(bench, bench.plan, count)


def for_trials(bench: Bench) -> Pruner | SparsePruner | TrainedPruner:
    """The quick pruner; it trains what it prunes where ``short_term.of`` is ``trials``.

    Raises:
        InputError: A setting is off.
    """
    of = bench.config["short_term"]["of"]
    if of not in ("trials", "finalists"):
        raise InputError(f"short_term.of must be trials or finalists, got {of!r}")
    quick = bench.quick_pruner
    if of == "finalists":
        return quick
    return bench.finalist_pruner if quick is bench.pruner else training(bench, quick)


def short_term_of(config: Config) -> FinetuneConfig:
    """How trials or finalists are trained.

    Raises:
        InputError: A setting is off.
    """
    tuning: FinetuneConfig = instantiate(config["short_term"]["finetune"], "short_term.finetune")
    if tuning.epochs and tuning.early_stop_patience is not None:
        raise InputError(
            "short_term.finetune.early_stop_patience must be null: no validation images are looked "
            f"at in a short training, got {tuning.early_stop_patience}"
        )
    return tuning


def training(bench: Bench, pruner: Pruner | SparsePruner) -> Pruner | SparsePruner | TrainedPruner:
    """A pruner that trains as ``short_term.*`` says; the pruner itself without epochs.

    Raises:
        InputError: A setting is off, or the type cannot be trained in.
    """
    settings, config = bench.config["short_term"], short_term_of(bench.config)
    if config.epochs == 0:
        return pruner
    # As in finetune: a precision of its own comes before the run's type.
    if (config.precision or bench.config["dtype"]) == "float16":
        raise InputError("dtype=float16 cannot train; use bfloat16 or float32")
    images = bench.data.train
    if settings["images"] is not None:
        count = min(whole(settings, "short_term.images", 1), len(images))
        chosen = stratified(images.labels.cpu().numpy(), count, seed=0)
        images = images.subset(torch.from_numpy(chosen))
    short = ShortTerm(
        images,
        config,
        **bench.normalisation,
        augment=bench.data.augment,
        teacher=bench.teacher,
        device=bench.device,
        dtype=bench.dtype,
        channels_last=bench.images_channels_last,
    )
    return TrainedPruner(pruner, short)


def criterion_context(bench: Bench) -> Context:
    """What the criterion looks at: training images, if it needs any, and a way to train."""
    criterion = bench.criterion
    found: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)
    if {"data", "labels"} & criterion.needs:
        found = _examples(bench, getattr(criterion, "images", _CRITERION_IMAGES))

    def train(
        model: nn.Module, penalty: Penalty, tuning: FinetuneConfig, images: int | None
    ) -> None:
        _train_under(bench, model, penalty, tuning, images)

    return Context(
        bench.loaded.model,
        bench.trace.plan,
        *found,
        seed=seed_of(bench.config),
        trainer=train,
        trained_on=bench.data.fingerprint if "training" in criterion.needs else "",
    )


def _examples(bench: Bench, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised training images, shape (n, channels, height, width), and their labels."""
    images = bench.data.calibration(count)
    batches = images.batches(len(images), bench.device, **bench.normalisation)
    return next(iter(batches))


def _train_under(
    bench: Bench, model: nn.Module, penalty: Penalty, tuning: FinetuneConfig, images: int | None
) -> None:
    """Trains a network under a regulariser, for criteria that look at what that leaves."""
    data = bench.data

    def report(row: EpochRow) -> None:
        line = f"training under {in_words(penalty.name)} {row.epoch}/{tuning.epochs}"
        print(f"{line}, loss {row.train_loss:.4f}", file=sys.stderr, flush=True)

    finetune(
        model,
        data.train if images is None else data.calibration(images),
        tuning,
        **bench.normalisation,
        augment=data.augment,
        device=bench.device,
        dtype=bench.dtype,
        channels_last=bench.images_channels_last,
        progress=report,
        regularizer=penalty,
    )
