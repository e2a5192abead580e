"""Ten made-up languages: which of ten Markov chains wrote a sequence of 24 tokens?

The chains share their vocabulary, so that single tokens say little: a network has to look at pairs.
``root`` is not needed; the examples are generated, the same ones everywhere.
"""

from __future__ import annotations

import numpy as np

from automl.data.chains import Chain
from automl.data.generated import SIZE, splits
from automl.data.request import DataRequest
from automl.data.tensors import DataSplits

LANGUAGES, TOKENS, LENGTH = 10, 16, 24
_SHARPNESS, _SEED = 2.0, 0


def load(request: DataRequest) -> DataSplits:
    """Generates the sequences.

    Raises:
        InputError: A size, ``test_halves`` or a validation size above 512.
    """
    random = np.random.default_rng(_SEED)
    chains = [Chain.draw(TOKENS, _SHARPNESS, random) for _ in range(LANGUAGES)]
    labels = random.integers(LANGUAGES, size=SIZE)
    ids = np.empty((SIZE, LENGTH), dtype=np.int64)
    for language, chain in enumerate(chains):
        mine = labels == language
        ids[mine] = chain.sample(int(mine.sum()), LENGTH, random)
    return splits(request, "languages", ids, labels, tuple(f"language {i}" for i in range(10)))
