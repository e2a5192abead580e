"""Trials that begin where another network was end as they would have without."""

from __future__ import annotations

import pickle
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import automl
from automl.cost.arithmetic import MacsCost
from automl.models.cifar import BasicBlock, CifarNet
from automl.problem import Problem
from automl.pruning import continuation
from automl.pruning.pruner import Pruner
from automl.pruning.reconstruct import Reconstruction
from automl.racing import Racing
from automl.scoring import ClassifierScorer, UserScorer

IMAGES = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(24) % 10


class Watched(ClassifierScorer):
    """Remembers what it was given."""

    def __call__(self, model):
        self.seen = [*getattr(self, "seen", ()), type(model).__name__]
        return super().__call__(model)


@pytest.fixture(scope="module")
def trace():
    torch.manual_seed(0)
    network = CifarNet(BasicBlock, 14, 10).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return automl.trace(network, IMAGES[:1])


def problem(trace, *, reuse=True, fold=True, scorer=None, racing=None, **settings) -> Problem:
    pruner = Pruner(trace, calibration=IMAGES[:8], **settings)
    if scorer is None:
        scorer = Watched(IMAGES, LABELS, score="kl", dense=trace.model, batch_size=10)
    return Problem(
        trace.plan,
        pruner,
        scorer,
        {"macs": 0.5},
        {"macs": MacsCost(trace.plan)},
        rounding=1,
        prepare=pruner.for_inference if fold else None,
        reuse=reuse,
        racing=racing,
    )


def candidates(problem, near) -> list:
    """Each with one target smaller than near has it."""
    found = []
    for target in range(len(near)):
        kept = near.copy()
        kept[target] = max(1, kept[target] // 2)
        found.append(problem.policy(kept))
    return found


def scores(problem, near) -> list:
    trials = problem.evaluate_many(
        candidates(problem, near), allow_over_budget=True, near=problem.policy(near)
    )
    assert all(trial.status == "ok" for trial in trials), [trial.error for trial in trials]
    return [(trial.score, dict(trial.measurement.metrics)) for trial in trials]


SETTINGS = {
    "default": {},
    "readers": {"reconstruct": Reconstruction(scope="readers", shortcut=False)},
    "lookup": {"reconstruct": Reconstruction(inputs="dense")},
    "none": {"reconstruct": None},
    "batchnorm": {"reconstruct": None, "batchnorm_recalibration": True},
    "both": {"batchnorm_recalibration": True},
    "not folded": {"fold": False},
}


@pytest.mark.parametrize(("name", "share"), [("default", 1.0), *((name, 0.6) for name in SETTINGS)])
def test_scores_are_those_of_trials_from_the_start_to_the_bit(trace, name, share):
    apart, together = (problem(trace, reuse=reuse, **SETTINGS[name]) for reuse in (False, True))
    near = (apart.space.units * share).astype(int)
    assert scores(together, near) == scores(apart, near)
    seen = together._scorer.seen
    assert seen.count("_Recorder") == 1
    assert seen.count("_Continued") > len(trace.targets) / 2
    assert not {"_Recorder", "_Continued"} & set(apart._scorer.seen)


@pytest.mark.parametrize("most", [0, 150_000, 400_000])
def test_what_does_not_fit_is_computed_again(trace, monkeypatch, most):
    monkeypatch.setattr(continuation, "_MOST_KEPT", most)
    apart, together = (problem(trace, reuse=reuse) for reuse in (False, True))
    near = apart.space.units.copy()
    assert scores(together, near) == scores(apart, near)
    reference = together._evaluation._runner.continuation._reference
    for recording in (reference.refitting, reference.scoring):
        kept = sum(v.numel() * 4 for batch in recording.values for v in batch.values())
        assert kept <= most
    assert ("_Continued" in together._scorer.seen) == (most > 0)


def test_processes_on_all_processors_leave_half_of_the_memory(monkeypatch):
    monkeypatch.setattr(continuation.os, "cpu_count", lambda: 16)
    for free, most in ((64 << 30, 512 << 20), (8 << 30, 128 << 20), (0, 0)):
        monkeypatch.setattr(continuation, "available_memory", lambda free=free: free)
        assert continuation.room() == most


def test_one_reference_at_a_time_is_kept(trace):
    found = problem(trace)
    dense, smaller = found.space.units.copy(), (found.space.units * 0.7).astype(int)
    scores(found, dense)
    first = found._evaluation._runner.continuation._reference
    scores(found, smaller)
    second = found._evaluation._runner.continuation._reference
    assert first.policy != second.policy
    found.evaluate(found.policy(found.fit([0.3] * len(dense))))
    assert found._evaluation._runner.continuation._reference is None


def test_other_processes_get_none_of_it(trace):
    found = problem(trace)
    scores(found, found.space.units.copy())
    copy = pickle.loads(pickle.dumps(found._evaluation._runner))
    assert "continuation" not in vars(copy)
    policies = candidates(found, found.space.units)
    assert copy.scored(policies[5], found.policy(found.space.units))[0] == found.trials[5].score


def test_few_trials_do_without(trace):
    found = problem(trace)
    near = found.space.units.copy()
    policies = candidates(found, near)[:3]
    found.evaluate_many(policies, allow_over_budget=True, near=found.policy(near))
    assert set(found._scorer.seen) == {"CifarNet"}


def test_what_cannot_race_is_reused_in_a_problem_with_races(trace):
    apart, together = (problem(trace, reuse=reuse, racing=Racing()) for reuse in (False, True))
    dense = apart.space.units.copy()
    assert scores(together, dense) == scores(apart, dense)  # all over the budget
    assert "_Continued" in together._scorer.seen
    small = apart.fit([0.2] * len(dense))
    together._scorer.seen = []
    assert scores(together, small) == scores(apart, small)
    assert not {"_Recorder", "_Continued"} & set(together._scorer.seen)


class Refusing(Watched):
    """Cannot score the reference."""

    def __call__(self, model):
        if type(model).__name__ == "_Recorder":
            raise RuntimeError("not this one")
        return super().__call__(model)


def test_a_reference_that_fails_fails_no_trial(trace):
    scorer = Refusing(IMAGES, LABELS, score="kl", dense=trace.model, batch_size=10)
    found, apart = problem(trace, scorer=scorer), problem(trace, reuse=False)
    near = found.space.units.copy()
    assert scores(found, near) == scores(apart, near)
    assert not {"_Recorder", "_Continued"} & set(scorer.seen)


class Shifted(nn.Module):
    """Computes something else than when it was traced."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (3, 8, 8, 8, 8)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(sizes))
        self.head, self.shift = nn.Linear(8, 10), 0.0

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x)) + self.shift
        return self.head(x.mean((2, 3)))


def test_a_network_whose_program_computes_something_else_is_run_itself():
    traced = automl.trace(Shifted().eval(), IMAGES[:1])
    traced.model.shift = 1.0
    settings = {"reconstruct": None}
    apart, together = (problem(traced, reuse=reuse, **settings) for reuse in (False, True))
    near = apart.space.units.copy()
    assert scores(together, near) == scores(apart, near)
    assert "_Continued" not in together._scorer.seen


def test_a_scorer_of_the_users_gets_networks(trace):
    seen = []

    def evaluate(model):
        seen.append(type(model).__name__)
        with torch.no_grad():
            return float(model(IMAGES).square().mean())

    found = problem(trace, scorer=UserScorer(evaluate, fingerprint="squares"))
    scores(found, found.space.units.copy())
    assert not {"_Recorder", "_Continued"} & set(seen)


class CalledAgain(nn.Module):
    """Two layers are called twice, with others before, between and behind."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.ModuleList(nn.Conv2d(a, b, 3) for a, b in ((3, 12), (12, 16)))
        self.again = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(2))
        self.between = nn.Conv2d(16, 16, 1)
        self.behind = nn.ModuleList(nn.Linear(a, b) for a, b in ((16, 24), (24, 24), (24, 10)))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.before:
            x = torch.relu(layer(x))
        for layer in (*self.again, self.between, *self.again):
            x = torch.relu(layer(x))
        x = x.mean((2, 3))
        for layer in self.behind:
            x = layer(torch.relu(x))
        return x


@pytest.mark.parametrize("name", SETTINGS)
def test_layers_that_are_called_again_are_repaired_alike(name):
    torch.manual_seed(0)
    traced = automl.trace(CalledAgain().eval(), IMAGES[:1])
    apart, together = (problem(traced, reuse=reuse, **SETTINGS[name]) for reuse in (False, True))
    for share in (1.0, 0.6):
        near = (apart.space.units * share).astype(int)
        assert scores(together, near) == scores(apart, near)
    assert "_Continued" in together._scorer.seen
