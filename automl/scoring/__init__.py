"""Scores networks on held-out data: the number that a search maximises, and its metrics.

`ClassifierScorer` measures classifiers on decoded images; `UserScorer` wraps any function of the
user's. Both satisfy `automl.types.Scorer`.
"""

from automl.scoring.classifier import ClassifierScorer
from automl.scoring.errors import ScoreError
from automl.scoring.metrics import SCORES, Score
from automl.scoring.user import UserScorer

__all__ = ["SCORES", "ClassifierScorer", "Score", "ScoreError", "UserScorer"]
