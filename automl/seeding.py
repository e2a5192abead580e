"""Random numbers that depend on what is computed, not on what was computed before."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np

#: NumPy's older generators, which searches of libraries draw from, take no larger seeds.
MOST_SEED = 2**32 - 1


@contextmanager
def own_random_numbers(key: str) -> Iterator[None]:
    """Seeds the global generators from ``key`` for the block and puts them back afterwards.

    So a trial depends on its policy alone, and a strategy that draws from the same generators
    goes on alike whether its trials are scored or answered from the journal.

    Args:
        key: A digest, of which the first eight hexadecimal digits count.
    """
    with seeded(int(key[:8], 16)):
        yield


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds the global generators of Python, NumPy and torch for the block, then restores them.

    Args:
        seed: From 0; of one that is too large for NumPy, the lower 32 bits are its seed.
    """
    python, legacy = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed & MOST_SEED)
    try:
        with ExitStack() as stack:
            _seed_torch(seed, stack)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)


def _seed_torch(seed: int, stack: ExitStack) -> None:
    torch = sys.modules.get("torch")
    if torch is None:  # nothing in this process draws from it
        return
    started = torch.cuda.is_available() and torch.cuda.is_initialized()
    devices = range(torch.cuda.device_count()) if started else []
    stack.enter_context(torch.random.fork_rng(devices=devices))
    torch.manual_seed(seed)
