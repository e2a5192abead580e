"""The policies under docs/policies still say what docs/results.md says of them."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from automl.commands.build import Bench
from automl.commands.compose import compose
from automl.policy import Policy

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "policies"
KNOWN = json.loads((FOLDER / "index.json").read_text(encoding="utf-8"))


def config_of(name, *overrides):
    return compose([f"experiment={name.partition('-')[0]}", "device=cpu", *overrides])


@cache
def plan_of(network, root):
    """Structure is the same whatever the budget, and taken from the first experiment."""
    name = next(name for name in sorted(KNOWN) if name.startswith(f"{network}_"))
    return Bench(config_of(name, f"data.root={root}")).trace.plan


def test_every_policy_is_listed():
    assert {f"{name}.json" for name in KNOWN} == {p.name for p in FOLDER.glob("*-*.json")}


@pytest.mark.data
@pytest.mark.parametrize("name", sorted(KNOWN))
def test_a_policy_has_the_costs_that_are_published(name, data_root):
    config = config_of(name, f"data.root={data_root}")
    plan = plan_of(config["model"]["name"], data_root)
    kept = Policy.load(FOLDER / f"{name}.json").kept(plan.targets)
    assert int(plan.macs(kept)) == KNOWN[name]["macs"]
    assert int(plan.params(kept)) == KNOWN[name]["params"]
    budget = config["budget"]["macs"]
    if budget is not None:
        assert plan.macs(kept) <= budget * plan.macs(plan.dense)
    assert np.all(kept >= 1)


@pytest.mark.data
@pytest.mark.slow
def test_a_policy_gives_the_accuracy_that_is_published(data_root):
    name = "resnet20_50-sensitivity"
    # Images for the repair as in the table; test images as there, so the figure must come again.
    images = KNOWN[name]["repair_images"]
    settings = config_of(name, f"data.root={data_root}", f"repair.calibration_images={images}")
    bench = Bench(settings)
    network = bench.pruner.prune(Policy.load(FOLDER / f"{name}.json"))
    found = bench.test_scorer(bench.pruner.for_inference(network))[0]
    # Repairs differ in the last bits between processors: a few images of 5,000 may tip.
    assert found == pytest.approx(KNOWN[name]["test_top1"], abs=0.004)
