"""What scores the networks of a run, on which images."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from automl.batch_size import default_batch_size
from automl.commands.depth import blocks_to_remove
from automl.commands.scoring_choice import ScoringChoice, asked
from automl.commands.settings import whole
from automl.data.split import stratified
from automl.data.tensors import TensorSet
from automl.device import resolve_dtype
from automl.scoring import ClassifierScorer

if TYPE_CHECKING:
    from automl.commands.build import Bench


def search_images(bench: Bench) -> TensorSet:
    """A class-balanced part of the validation images, or all of them, by ``scoring.images``.

    Raises:
        InputError: The setting is off.
    """
    section, images = bench.config["scoring"], bench.data.validation
    if section["images"] is None:
        return images
    return _subset(images, whole(section, "scoring.images", 1))


def trial_scorer(bench: Bench, choice: ScoringChoice, most: int | None) -> ClassifierScorer:
    """Scores as trials are, in a type and batch size.

    Args:
        bench: Data and dense network.
        choice: Which.
        most: Images, at most.
    """
    plain = plain_choice(bench)
    images = bench.search_images if most is None else _subset(bench.search_images, most)
    if images is bench.data.validation and choice == replace(plain, why=choice.why):
        return bench.careful_scorer
    return scorer(bench, images, bench.config["scoring"]["score"], choice)


def plain_choice(bench: Bench) -> ScoringChoice:
    """The run's type, and batches as asked for; by the size of an image where that is ``auto``."""
    size = asked(bench.config).batch_size
    return ScoringChoice(bench.config["dtype"], None if size == "auto" else size)


def scorer(
    bench: Bench, images: TensorSet, score: Any, choice: ScoringChoice | None = None
) -> ClassifierScorer:
    """Scores on images.

    Args:
        bench: Data and dense network.
        images: Which.
        score: What ``ClassifierScorer`` takes.
        choice: Type and batch size; None: :func:`plain_choice`.
    """
    choice = plain_choice(bench) if choice is None else choice
    size = choice.batch_size
    if size is None:
        size = default_batch_size(images.images[0].numel(), bench.device, _activations(bench))
    return ClassifierScorer(
        images.images,
        images.labels,
        score=score,
        dense=None if images is bench.data.test else bench.complete.model,
        batch_size=size,
        device=bench.device,
        dtype=resolve_dtype(choice.dtype, bench.device),
        channels_last=bench.images_channels_last,
        **bench.normalisation,
    )


def _activations(bench: Bench) -> int | None:
    """Numbers that the largest layer of the dense network reads and writes for one image.

    None where blocks are left out: they are scored before there is a structure.
    """
    if blocks_to_remove(bench.config):
        return None
    return max(
        layer.in_channels * layer.in_height * layer.in_width
        + layer.out_channels * layer.out_height * layer.out_width
        for layer in bench.trace.plan.layers
    )


def _subset(images: TensorSet, count: int) -> TensorSet:
    """As many images, balanced over classes; the set itself where it has no more."""
    if count >= len(images):
        return images
    rows = stratified(images.labels.cpu().numpy(), count, seed=0)
    return images.subset(torch.from_numpy(rows))
