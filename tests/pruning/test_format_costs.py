"""Bytes under every format from counts, against those of a network with such masks."""

import numpy as np
import pytest
from small import traced

from automl.cost.storage import FORMATS, Storage
from automl.pruning.format_costs import BY_UNITS, bytes_by_format
from automl.pruning.grains import Grains
from automl.pruning.masked_plan import MaskedPlan
from automl.pruning.masks import masks_of
from automl.pruning.sparse_pruner import SparsePruner, counts_from_ratios


def made(grain, ratio):
    trace = traced("cnn")
    plan = MaskedPlan.of(trace.model, trace.plan, Grains.parse([grain]))
    kept = counts_from_ratios(plan, ratio, 1)
    pruner = SparsePruner(trace, plan, reconstruct=None)
    return plan, kept, pruner.prune(pruner.policy(kept))


@pytest.mark.parametrize("grain", ["unstructured", "kernel", "nm:4", "block:4x4"])
def test_formats_that_count_entries_are_exact(grain):
    plan, kept, network = made(grain, 0.5)
    names = [weight.name for weight in plan.weights]
    masks = masks_of(network)
    weights = {name: masks[name].numpy() for name in names}
    others = sum(p.numel() for n, p in network.named_parameters() if n not in weights)
    exact = Storage.of(weights, others)
    found = bytes_by_format(plan, kept)
    assert set(found) == {BY_UNITS, *(form.name for form in FORMATS)}
    for form in FORMATS:
        if "relative" in form.name or form.name.startswith("2:4"):
            continue
        # Storage rounds every matrix up to whole bytes; blocks at an edge count whole.
        assert exact.bytes(form) - len(names) <= found[form.name]
        assert found[form.name] <= exact.bytes(form) * (1.05 if grain == "block:4x4" else 1)


def test_patterns_of_two_in_four_fit_their_format_and_denser_ones_do_not():
    plan, kept, _ = made("nm:4", 0.5)
    two = bytes_by_format(plan, kept)
    assert two["2:4 fp32"] == two[BY_UNITS]
    assert two["2:4 fp16"] < two["2:4 fp32"] < two["dense fp32"]
    plan, kept, _ = made("nm:4", 0.25)
    assert np.isnan(bytes_by_format(plan, kept)["2:4 fp32"])
