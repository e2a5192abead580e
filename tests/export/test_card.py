"""The model card describes what was exported."""

import pytest

from automl.export.card import model_card


def result(*rows):
    whole = {"latency_ratio": 1.0, "test_top1": 0.9}
    return {
        "model": "net", "data": "images", "budget": "macs <= 50 %", "trials": 3, "device": "cpu",
        "validation_images": 10, "test_images": 10,
        "rows": [{"name": name, "macs": macs, "params": macs, **whole} for name, macs in rows],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "share"),
    [
        ([("dense", 100), ("uniform", 49), ("found", 50)], "50.0 %"),
        ([("dense", 100), ("found = uniform", 49)], "49.0 %"),
        # Training of the found network failed; what was saved is not the last row.
        ([("dense", 100), ("found", 50), ("uniform", 49), ("uniform, tuned", 49)], "50.0 %"),
    ],
)
def test_it_describes_the_network_that_was_found(rows, share):
    model = {"input_shape": [3, 8, 8], "factory": "a.b", "checkpoint": None}
    card = model_card(result(*rows), {"model": model}, [], {})
    assert f"net pruned to {share} of its MACs" in card
