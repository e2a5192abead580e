"""Scores of a network that was trained under a regulariser first.

Training under a penalty on whole units drives those to zero that the loss can do without; what is
left of a unit then says how much it is needed. Network slimming (Liu et al., arXiv 1708.06519) is
an L1 penalty on batch norms' scales and these scales as scores; structured sparsity (Wen et al.,
arXiv 1608.03665) is group lasso and the groups' norms; growing regularisation (Wang et al., arXiv
2012.09243) pushes all units ever harder and looks at what holds out.

Deviation: the trained copy is used for its scores alone. What is pruned, repaired and fine-tuned
are the dense weights.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from automl.pruning.criteria import Context, Criterion, Need, Scores, UnitCriterion
from automl.pruning.criteria.checks import require_counts, require_positive
from automl.training.config import FinetuneConfig

if TYPE_CHECKING:
    from automl.training.regularizers import Regularizer


@dataclass(frozen=True)
class Trained(UnitCriterion):
    """``score(u)`` by another criterion, of a copy of the network trained under a regulariser.

    Needs training data, through the context's trainer; costs ``epochs`` of training.

    Attributes:
        title: What it is called.
        regularizer: What it is trained under.
        scored_by: Criterion of the trained copy.
        epochs: Passes over the training images.
        lr: Highest learning rate, falling along a cosine.
        batch_size: Examples per step.
        train_images: Training images of a pass, the same in every pass; None for all.

    Raises:
        ValueError: A field breaks its rule.
    """

    title: str
    regularizer: Regularizer
    scored_by: Criterion
    epochs: int = 5
    lr: float = 0.01
    batch_size: int = 128
    train_images: int | None = 10000

    def __post_init__(self) -> None:
        """Checks the fields."""
        require_counts(self, "epochs", "batch_size")
        require_positive(self, "lr")
        if self.train_images is not None:
            require_counts(self, "train_images")

    @property
    def name(self) -> str:
        """Title, regulariser, scores and settings of the training."""
        training = f"{self.epochs}, {self.lr:g}, {self.batch_size}, {self.train_images}"
        return f"{self.title}({self.regularizer.name}, {self.scored_by.name}, {training})"

    @property
    def needs(self) -> frozenset[Need]:
        """Training data, and what the inner criterion needs."""
        return self.scored_by.needs | {"training", "seed"}

    def score_units(self, context: Context) -> Scores:
        """Trains a copy, once per context, and scores it.

        Raises:
            InputError: The regulariser or the inner criterion has nothing to look at.
        """
        if self.name not in context.cache:
            context.cache[self.name] = self._trained_scores(context)
        found: Scores = context.cache[self.name]
        return found

    def _trained_scores(self, context: Context) -> Scores:
        assert context.trainer is not None  # needs were checked
        if not self.scored_by.needs:
            self.scored_by(context)  # lets what is refused be refused before the training
        model = copy.deepcopy(context.model).requires_grad_(True)
        penalty = self.regularizer.bind(model, context.plan)
        context.trainer(model, penalty, self._tuning(context.seed), self.train_images)
        return self.scored_by(replace(context, model=model.eval(), cache={}))

    def _tuning(self, seed: int) -> FinetuneConfig:
        # Weight decay would be a second regulariser, and pull at what the first one spares.
        return FinetuneConfig(
            epochs=self.epochs, lr=self.lr, batch_size=self.batch_size, weight_decay=0.0, seed=seed
        )
