"""The next token of a made-up text: 24 tokens of a Markov chain, and the one that follows.

No network can do better than the chain's own probabilities: see ``chain``. ``root`` is not needed;
the examples are generated, the same ones everywhere.
"""

from __future__ import annotations

import numpy as np

from automl.data.chains import Chain
from automl.data.generated import SIZE, splits
from automl.data.request import DataRequest
from automl.data.tensors import DataSplits

TOKENS, LENGTH = 16, 24
_SHARPNESS, _SEED = 2.0, 1


def chain() -> Chain:
    """What the text is drawn from."""
    return Chain.draw(TOKENS, _SHARPNESS, np.random.default_rng(_SEED))


def load(request: DataRequest) -> DataSplits:
    """Generates the sequences; the label is the token after the last.

    Raises:
        InputError: A size, ``test_halves`` or a validation size above 512.
    """
    drawn = chain().sample(SIZE, LENGTH + 1, np.random.default_rng(_SEED + 1))
    ids, labels = np.ascontiguousarray(drawn[:, :-1]), np.ascontiguousarray(drawn[:, -1])
    return splits(request, "next_token", ids, labels, tuple(f"token {i}" for i in range(TOKENS)))
