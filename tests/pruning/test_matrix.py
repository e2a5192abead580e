"""The matrix: every criterion, granularity and schedule together, on a CNN and a transformer.

What makes sense runs to exactly the zeros and sizes that were asked for; what makes none is
refused by name before anything is pruned.
"""

from __future__ import annotations

import pytest
from small import GRAINS, NETWORKS, Training, assert_pruned, data, policy_of, pruner_of, traced

from automl.pruning import criteria, schedules
from automl.pruning.criteria import UnitCriterion
from automl.pruning.granularities import CHANNEL
from automl.pruning.schedules.session import open_session
from automl.types import InputError

EPOCHS = 2
#: Fewer stages than by default, so that two epochs are enough.
SETTINGS = {
    "linear": {"stages": 2},
    "cubic": {"stages": 2},
    "exponential": {"stages": 2},
    "progressive": {"stages": 2},
    "lottery": {"stages": 1},
    "rigl": {"every": 1, "updates": 1},
}
#: What a transformer lacks.
NEEDS_A_CNN = {
    "bn_scale": "needs a batch norm with scales .* patch_embedding.proj",
    "slimming": "needs a batch norm with scales .* patch_embedding.proj",
    "apoz": "counts zeros behind a ReLU, and patch_embedding.proj",
}


@pytest.fixture(scope="module")
def traces():
    return {name: traced(name) for name in NETWORKS}


def refusal(network: str, criterion: str, grain: str) -> str | None:
    """What the refusal says; None where they go together."""
    if grain != CHANNEL and isinstance(criteria.load(criterion), UnitCriterion):
        return "scores whole channels and heads, not single weights"
    return NEEDS_A_CNN.get(criterion) if network == "vit" else None


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("grain", GRAINS)
@pytest.mark.parametrize("criterion", criteria.names())
def test_every_criterion_with_every_granularity_and_schedule(traces, network, grain, criterion):
    trace, says = traces[network], refusal(network, criterion, grain)
    if says is not None:
        with pytest.raises(InputError, match=says):
            policy_of(pruner_of(trace, grain, criterion), 0.5)
        return
    pruner = pruner_of(trace, grain, criterion)
    policy = policy_of(pruner, 0.5)
    for name in schedules.names():
        schedule = schedules.load(name, **SETTINGS.get(name, {}))
        if name == "rigl" and grain != "unstructured":
            with pytest.raises(InputError, match="rigl moves single weights, not"):
                schedule.check(grain.split("+"), EPOCHS)
            continue
        schedule.check(grain.split("+"), EPOCHS)
        session = open_session(pruner, policy, Training(network))
        pruned = schedule.run(session, EPOCHS)
        assert pruned(data()[0]).isfinite().all(), name
        assert_pruned(pruner, session.policy, pruned)
