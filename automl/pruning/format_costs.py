"""What a pruned network takes under every storage format, from counts alone."""

from __future__ import annotations

import numpy as np

from automl.cost.storage import FORMATS
from automl.pruning.masked_plan import MaskedPlan
from automl.types import Kept

#: Every weight dense or packed by its own granularity, as searches count bytes.
BY_UNITS = "units of the granularity fp32"


def bytes_by_format(plan: MaskedPlan, kept: Kept) -> dict[str, float]:
    """Mean bytes of the trainable parameters under each of ``automl.cost.storage.FORMATS``.

    Formats of single weights do not know units: their bytes follow from the density of every
    weight, with padding of relative indices as for independent zeros. ``prunepilot storage
    --saved`` counts the zeros of one network exactly.

    Args:
        plan: What is pruned.
        kept: Kept units of every target, shape (targets,).

    Returns:
        Name of the format -> bytes, NaN where it cannot hold one of the weights; and, under
        ``BY_UNITS``, each weight with the index of its units.
    """
    channels, _ = plan.split(kept)
    lengths, densities = plan.base.lengths(channels), plan.densities(kept)
    shapes = []
    for weight in plan.weights:
        sizes = weight.sizes_at(lengths)
        shapes.append((int(sizes.out), int(sizes.into) * sizes.taps))
    others = int(plan.base.params(channels)) - sum(rows * columns for rows, columns in shapes)
    found = {BY_UNITS: float(np.ceil(plan.stored_bits(kept) / 8))}
    for form in FORMATS:
        bits = [
            form.expected_bits(shape, float(density))
            for shape, density in zip(shapes, densities, strict=True)
        ]
        found[form.name] = float(np.ceil(np.sum(bits) / 8)) + 4 * others
    return found
