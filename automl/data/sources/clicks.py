"""Clicks of 32 users on 32 items, by taste: a user clicks where its taste and the item agree.

Tastes are vectors of four numbers. A third field, the time of day, shifts everybody; a fourth is
noise, whose table a good search removes. ``root`` is not needed; the examples are generated, the
same ones everywhere.
"""

from __future__ import annotations

import numpy as np

from automl.data.generated import SIZE, splits
from automl.data.request import DataRequest
from automl.data.tensors import DataSplits

CATEGORIES, FIELDS, TASTES = 32, 4, 4
_SEED = 2


def load(request: DataRequest) -> DataSplits:
    """Generates the clicks.

    Raises:
        InputError: A size, ``test_halves`` or a validation size above 512.
    """
    random = np.random.default_rng(_SEED)
    users, items = random.standard_normal((2, CATEGORIES, TASTES))
    shift = random.standard_normal(CATEGORIES)
    ids = random.integers(CATEGORIES, size=(SIZE, FIELDS))
    user, item, hour, _ = ids.T
    liking = (users[user] * items[item]).sum(1) + shift[hour]
    labels = (liking + 0.3 * random.standard_normal(SIZE) > 0).astype(np.int64)
    return splits(request, "clicks", ids, labels, ("passed over", "clicked"))
