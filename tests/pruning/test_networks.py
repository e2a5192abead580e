"""Handwritten networks of all kinds: candidates that share work, and what refinement compares.

Some are of this file: what a candidate of theirs repairs, or changes in place, was read before
the cut.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import automl
from automl.cost.arithmetic import MacsCost
from automl.graph.trace import Trace
from automl.models.gpt import NextToken
from automl.problem import Problem
from automl.pruning import continuation
from automl.pruning.laid_back import computes_the_same, laid_back
from automl.pruning.pruner import Pruner, policy_from_ratios
from automl.pruning.refine import Refinement, Refiner
from automl.racing import Racing
from automl.scoring import ClassifierScorer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "graph"))

from networks import CASES
from oracle import randomise

IMAGES = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(1))
TOKENS = torch.randint(0, 11, (24, 6), generator=torch.Generator().manual_seed(1))


class Watched(ClassifierScorer):
    """Remembers what it was given."""

    seen: tuple[str, ...] = ()

    def __call__(self, model):
        self.seen = (*self.seen, type(model).__name__)
        return super().__call__(model)


def problem(trace, inputs, *, reuse=True, racing=None, scorer=None) -> Problem:
    pruner = Pruner(trace, calibration=inputs[:8])
    scorer = scorer or Watched(inputs, None, score="kl", dense=trace.model, batch_size=10)
    return Problem(
        trace.plan, pruner, scorer, {"macs": 0.5}, {"macs": MacsCost(trace.plan)}, rounding=1,
        prepare=pruner.for_inference, reuse=reuse, racing=racing, max_failures=99,
    )  # fmt: skip


def outcomes(problem, share=1.0, at_least=1) -> list:
    """Of candidates that each have one target halved beside a share of every target."""
    near = (problem.space.units * share).astype(int).clip(1)
    policies = []
    for index in range(max(len(near), at_least)):
        kept = near.copy()
        target, less = index % len(near), index // len(near)
        kept[target] = max(1, kept[target] // 2 - less)
        policies.append(problem.policy(kept))
    trials = problem.evaluate_many(policies, allow_over_budget=True, near=problem.policy(near))
    return [(trial.status, trial.score) for trial in trials]


def agree(trace, inputs, share) -> tuple[str, ...]:
    """What the scorer was given with reuse, whose scores must be those without."""
    apart, together = (problem(trace, inputs, reuse=reuse) for reuse in (False, True))
    assert outcomes(together, share, 4) == outcomes(apart, share, 4)
    return together._scorer.seen


class Flat(nn.Module):
    """The outputs of a network side by side."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).flatten(1)


SINGLE = [name for name, case in CASES.items() if len(case.inputs()) == 1]


@cache
def traced(name: str) -> tuple[Trace, Tensor]:
    """The trace, of which no test changes anything, and inputs of the network."""
    case = CASES[name]
    torch.manual_seed(3)
    example = case.inputs()[0]
    if example.is_floating_point():
        inputs = torch.randn(24, *example.shape[1:])
    else:
        inputs = torch.randint(0, int(example.max()) + 1, (24, *example.shape[1:]))
    return automl.trace(Flat(randomise(case.make()).float().eval()), inputs[:1]), inputs


@pytest.mark.parametrize("name", SINGLE)
def test_every_network_scores_the_same_to_the_bit(name, monkeypatch):
    monkeypatch.setattr("automl.evaluation._FEWEST_NEAR", 1)
    agree(*traced(name), 0.6)


@pytest.mark.parametrize("name", SINGLE)
def test_the_same_function_is_recognised_as_the_same(name):
    """What refinement compares has its channels in one order: nothing to refine is found."""
    trace, inputs = traced(name)
    model, inputs, pruner = trace.model, inputs[:12], Pruner(trace)
    plan, policy = pruner.plan, policy_from_ratios(pruner, 0.5, rounding=1)
    kept, units = policy.kept(plan.targets), pruner.units_of(policy)
    slim = pruner.materialise.module_form(units)
    network = pruner.materialise.finish(slim, kept)
    if not plan.targets:
        pytest.skip("nothing can be pruned")
    whole = laid_back(network, model, plan, units)
    refinement = Refinement(layers=1, steps=2, batch_size=4)
    made = Refiner(whole, plan, inputs, refinement, pruner.fitted_together)
    found = made(slim, kept, units)
    assert all(one.after <= one.before for one in found)
    if computes_the_same(network, whole, inputs):
        assert found == []
    # And against the network that it was pruned from, all of it runs.
    made = Refiner(model, plan, inputs, refinement, pruner.fitted_together)
    assert all(one.after <= one.before for one in made(slim, kept, units))


class Parallel(nn.Module):
    """Its norms come after both convolutions, whose repair they take up."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a, self.b = (nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(2))
        self.norm_a, self.norm_b = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.c, self.head = nn.Conv2d(16, 8, 3, padding=1), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        a, b = self.a(x), self.b(x)
        x = torch.cat([torch.relu(self.norm_a(a)), torch.relu(self.norm_b(b))], 1)
        return self.head(torch.relu(self.c(x)).mean((2, 3)))


class Tied(nn.Module):
    """The last of its convolutions has the weight of the second."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, *inner = (nn.Conv2d(n, 8, 3, padding=1) for n in (3, 8, 8, 8, 8))
        self.inner, self.head = nn.ModuleList(inner), nn.Linear(8, 10)
        inner[-1].weight = inner[0].weight

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for layer in self.inner:
            x = torch.relu(layer(x))
        return self.head(x.mean((2, 3)))


class HandedOn(nn.Module):
    """Changes what a composed operator handed on, which is what went into it."""

    def __init__(self, operator) -> None:
        super().__init__()
        self.a, *inner = (nn.Conv2d(n, 8, 3, padding=1) for n in (3, 8, 8, 8))
        self.b, self.c, self.d = inner
        self.head, self.operator = nn.Linear(8, 10), operator

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        y = self.operator(x)
        z = torch.sigmoid(self.b(x))
        y.mul_(2)
        z = torch.relu(self.c(z))
        return self.head(torch.relu(self.d(z + torch.sigmoid(y) + x)).mean((2, 3)))


@pytest.mark.filterwarnings("ignore:atleast_3d:UserWarning")  # not known to the tracer
@pytest.mark.parametrize("share", [1.0, 0.6])
@pytest.mark.parametrize(
    "make",
    [Parallel, Tied, lambda: HandedOn(torch.atleast_3d), lambda: HandedOn(lambda x: x.type_as(x))],
    ids=["norms apart", "tied", "atleast_3d", "type_as"],
)
def test_what_crosses_a_cut_is_not_reused(make, share):
    torch.manual_seed(0)
    trace = automl.trace(randomise(make()).float().eval(), IMAGES[:1])
    agree(trace, IMAGES, share)


def test_a_language_model_with_a_tied_head():
    torch.manual_seed(0)
    model = NextToken(vocab_size=11, length=6, dim=32, depth=2, num_heads=4, hidden=64)
    trace = automl.trace(model.eval(), TOKENS[:1])
    agree(trace, TOKENS, 0.6)


class Selecting(nn.Module):
    """Goes on with one of 64 places: a view of all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.c, self.d, self.head = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.b(torch.relu(self.a(x)))).flatten(2).transpose(1, 2)[:, 0]
        return self.head(torch.relu(self.d(torch.relu(self.c(x)))))


@pytest.fixture(scope="module")
def selecting():
    torch.manual_seed(0)
    return automl.trace(Selecting().eval(), IMAGES[:1])


@pytest.mark.parametrize("most", [3072, 200_000])
def test_views_count_with_all_that_they_keep(selecting, monkeypatch, most):
    monkeypatch.setattr(continuation, "_MOST_KEPT", most)
    found = problem(selecting, IMAGES)
    outcomes(found, at_least=4)
    reference = found._evaluation._runner.continuation._reference
    for recording in (reference.refitting, reference.scoring):
        tensors = [value for batch in recording.values for value in batch.values()]
        held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        assert sum(held.values()) <= most


def test_trials_that_race_give_the_memory_back(selecting):
    found = problem(selecting, IMAGES, racing=Racing())
    outcomes(found, at_least=4)
    assert found._evaluation._runner.continuation._reference is not None
    found.evaluate_many([found.policy(found.fit([0.2] * len(found.space.units)))], race=True)
    assert found._evaluation._runner.continuation._reference is None


def test_a_batch_size_can_be_measured_on_the_network_that_others_start_from(selecting):
    images, labels = IMAGES.repeat(25, 1, 1, 1), torch.arange(600) % 10
    scorer = Watched(images, labels, score="top1", batch_size="auto")
    found = problem(selecting, images, scorer=scorer)
    outcomes(found, at_least=4)
    assert "_Continued" in found._scorer.seen


class Named(Selecting):
    """Has an attribute of a name that scorers once looked for."""

    batch = 32


def test_an_attribute_called_batch_is_the_networks_own():
    trace = automl.trace(Named().eval(), IMAGES[:1])
    assert {status for status, _ in outcomes(problem(trace, IMAGES), at_least=4)} == {"ok"}
