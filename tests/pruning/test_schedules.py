"""Schedules: their curves, what they ask of a session, and every sensible combination."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import (
    GRAINS,
    NETWORKS,
    Training,
    assert_pruned,
    data,
    made,
    policy_of,
    pruner_of,
    traced,
)

from automl.graph.trace import trace
from automl.model_folder import load_pruned, save_pruned
from automl.models import load_model
from automl.pruning import schedules
from automl.pruning.masks import masks_of
from automl.pruning.pruner import Pruner, policy_from_ratios
from automl.pruning.refine import Refinement, Refiner
from automl.pruning.schedules.gradual import RAMPS, Gradual
from automl.pruning.schedules.lottery import Lottery
from automl.pruning.schedules.rigl import RigL
from automl.pruning.schedules.session import open_session, regrown
from automl.training.config import FinetuneConfig
from automl.training.finetune import finetune
from automl.types import InputError

SCHEDULES = schedules.names()
EPOCHS = 6


class Recorder:
    """A session that writes down what it is asked for."""

    def __init__(self) -> None:
        self.said: list[object] = []

    def prune(self, ratio):
        self.said.append(round(ratio(0.8), 4))

    def train(self, epochs, *, last=False, after_step=None):
        self.said.append(("train", epochs, last))
        for step in range(epochs if after_step else 0):
            after_step(step + 1)

    def finish(self):
        return torch.nn.Identity()

    def __getattr__(self, name):
        return lambda *arguments: self.said.append((name, *arguments))


def said(schedule, epochs):
    session = Recorder()
    schedule.run(session, epochs)
    return session.said


# ---- curves


def test_ramps_are_those_of_the_papers():
    linear, cubic, exponential = (Gradual(ramp, 4) for ramp in RAMPS)
    assert [round(linear.ratio(t, 0.8), 4) for t in (1, 2, 3, 4)] == [0.2, 0.4, 0.6, 0.8]
    # Zhu and Gupta, equation 1: s_f + (s_i - s_f) (1 - t / n)^3, s_i = 0
    wanted = [0.8 - 0.8 * (1 - t / 4) ** 3 for t in (1, 2, 3, 4)]
    assert [cubic.ratio(t, 0.8) for t in (1, 2, 3, 4)] == pytest.approx(wanted)
    kept = [1 - exponential.ratio(t, 0.8) for t in (0, 1, 2, 3, 4)]
    assert [b / a for a, b in itertools.pairwise(kept)] == pytest.approx([0.2**0.25] * 4)


@given(st.sampled_from(RAMPS), st.integers(1, 20), st.floats(0, 0.999))
def test_ramps_rise_and_end_at_the_final_ratio_exactly(ramp, stages, final):
    ratios = [Gradual(ramp, stages).ratio(stage, final) for stage in range(1, stages + 1)]
    assert ratios[-1] == final
    assert all(0 <= a <= b + 1e-12 for a, b in itertools.pairwise(ratios))


def test_the_updates_of_rigl_fade():
    fractions = [RigL(drop=0.3, updates=4).fraction(update) for update in range(5)]
    assert fractions[0] == pytest.approx(0.3) and fractions[4] == pytest.approx(0)
    assert fractions == sorted(fractions, reverse=True)


# ---- what they ask for


def test_schedules_share_epochs_among_stages():
    assert said(schedules.load("one_shot"), 0) == [0.8]
    assert said(schedules.load("one_shot"), 3) == [0.8, ("train", 3, True)]
    assert said(Gradual("linear", 2), 5) == [
        0.4, ("train", 2, False), 0.8, ("train", 3, True)
    ]  # fmt: skip
    assert said(schedules.load("progressive", stages=2), 2) == [
        ("blend", 0.5), ("train", 1, False), ("blend", 1.0), ("train", 1, True)
    ]  # fmt: skip


def test_lottery_tickets_are_rewound_after_every_round_but_not_at_the_end():
    assert said(Lottery(stages=2, rewind_epochs=1), 7) == [
        ("start_anew",), ("train", 1, False), ("remember",),
        ("train", 2, False), round(1 - 0.2**0.5, 4), ("rewind",),
        ("train", 2, False), 0.8, ("rewind",),
        ("train", 2, True),
    ]  # fmt: skip


def test_rigl_regrows_at_its_steps_and_then_leaves_the_mask_alone():
    rigl = RigL(every=2, drop=0.4, updates=2)
    found = [entry for entry in said(rigl, 9) if isinstance(entry, tuple)]
    assert found == [("train", 9, True), ("regrow", 0.4, 1), ("regrow", pytest.approx(0.2), 2)]


# ---- moving masks


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_regrowing_moves_the_least_weights_to_the_largest_gradients(seed, fraction):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(6, 7, generator=generator) > 0.6
    weight = torch.randn(6, 7, generator=generator) * mask
    gradient = torch.randn(6, 7, generator=generator)
    after = regrown(mask, weight, gradient, fraction)
    assert int(after.sum()) == int(mask.sum())
    gone, new = mask & ~after, after & ~mask
    assert int(gone.sum()) <= int(fraction * int(mask.sum()))
    stay = mask & after
    if gone.any() and stay.any():
        # What stays was larger, or its gradient brought it back.
        pull = gradient.abs()
        back = stay & (weight.abs() < weight.abs()[gone].max())
        assert not back.any() or pull[back].min() >= pull[gone].max()
    if new.any():
        assert gradient.abs()[new].min() >= gradient.abs()[~after].max()


# ---- sessions


@pytest.fixture(scope="module")
def traces():
    return {name: traced(name) for name in NETWORKS}


def names_of(grains: str) -> list[str]:
    return grains.split("+")


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("grain", GRAINS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_granularity_with_every_schedule(traces, network, grain, name):
    schedule, trace = schedules.load(name), traces[network]
    if name == "rigl" and grain != "unstructured":
        with pytest.raises(InputError, match="rigl moves single weights, not"):
            schedule.check(names_of(grain), EPOCHS)
        return
    if network == "vit" and grain == "vector":
        grain = "unstructured"  # the only kernels are those of the patches
    schedule.check(names_of(grain), EPOCHS)
    pruner = pruner_of(trace, grain)
    policy = policy_of(pruner, 0.5)
    session = open_session(pruner, policy, Training(network))
    pruned = schedule.run(session, EPOCHS)
    assert session.policy.kept(pruner.plan.targets).tolist() == (
        policy.kept(pruner.plan.targets).tolist()
    )
    assert not pruned.training and pruned(data()[0]).isfinite().all()
    assert_pruned(pruner, policy, pruned)
    again = open_session(pruner, policy, Training(network))
    assert_equal(schedule.run(again, EPOCHS), pruned)


def assert_equal(first, second):
    ours, theirs = first.state_dict(), second.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_what_is_pruned_stays_pruned_through_the_stages(traces):
    pruner = pruner_of(traces["cnn"], "unstructured")
    session = open_session(pruner, policy_of(pruner, 0.8), Training("cnn"))
    before = None
    for stage in (1, 2, 3, 4):
        session.prune(lambda final, stage=stage: final * stage / 4)
        masks = {name: mask.clone() for name, mask in masks_of(session.network).items()}
        if before is not None:
            assert all(bool((masks[name] <= before[name]).all()) for name in masks)
            assert any(int(masks[n].sum()) < int(before[n].sum()) for n in masks)
        before = masks
        session.train(1)


@pytest.mark.parametrize(
    ("network", "grain"),
    [
        ("cnn", "channel"),
        ("cnn", "unstructured"),
        ("cnn", "channel+unstructured"),
        ("vit", "unstructured"),  # its channels run through layer norms
    ],
)
def test_repair_between_stages_does_not_undo_what_was_learned(traces, network, grain):
    """What is pruned no further computes what it did; repair used to aim at the dense network."""
    pruner = pruner_of(traces[network], grain, repairs=True)
    session = open_session(pruner, policy_of(pruner, 0.5), Training(network))
    images = data()[0]
    session.prune(lambda final: final / 2)
    repaired = session.network(images).detach()
    session.train(3)
    learned = session.network(images).detach()
    assert (learned - repaired).norm() > 0.1 * learned.norm()
    session.prune(lambda final: final / 2)
    assert (session.network(images).detach() - learned).norm() < 0.01 * learned.norm()


def test_channels_cut_in_stages_are_named_by_the_dense_networks_numbers(traces, tmp_path):
    torch.manual_seed(0)
    dense = load_model("small.cnn", input_shape=(1, 8, 8))

    pruner = Pruner(trace(dense.model, dense.example_inputs))
    session = open_session(pruner, policy_from_ratios(pruner, 0.5, 1), Training("cnn"))
    network = Gradual("linear", 3).run(session, 3)
    policy = session.policy
    assert all(d.indices is not None and d.kept == d.units // 2 for d in policy.decisions)
    save_pruned(tmp_path, network, dense=dense, plan=pruner.plan, policy=policy)
    images = data()[0]
    with torch.no_grad():
        assert torch.equal(load_pruned(tmp_path, trust=("small",))(images), network(images))


def test_progressive_masks_approach_the_structure(traces):
    pruner = pruner_of(traces["cnn"], "kernel")
    policy = policy_of(pruner, 0.5)
    session = open_session(pruner, policy, Training("cnn"))
    left = []
    for share in (0.25, 0.5, 1.0):
        session.blend(share)
        session.train(1)
        left.append(sum(int(mask.sum()) for mask in masks_of(session.network).values()))
    dense = sum(mask.numel() for mask in masks_of(session.network).values())
    removed = np.diff([dense, *left])
    assert removed.tolist() == pytest.approx([-dense / 8, -dense / 8, -dense / 4], abs=8)
    for mask in masks_of(session.network).values():
        assert set(mask.flatten(2).sum(2).flatten().tolist()) == {0, 9}


def test_rewound_tickets_have_the_first_weights(traces):
    pruner = pruner_of(traces["cnn"], "unstructured")
    session = open_session(pruner, policy_of(pruner, 0.5), Training("cnn"))
    session.start_anew()
    session.remember()
    session.train(2)
    session.prune(lambda final: final)
    session.rewind()
    first = made("cnn", seed=1).state_dict()
    masks = masks_of(session.network)
    assert masks
    for name, value in session.network.named_parameters():
        expected = first[name] * masks[name] if name in masks else first[name]
        assert torch.equal(value, expected), name


def test_regrown_weights_start_at_zero_and_learn(traces):
    pruner = pruner_of(traces["cnn"], "unstructured")
    session = open_session(pruner, policy_of(pruner, 0.9), Training("cnn"))
    session.prune(lambda final: final)
    before = {name: mask.clone() for name, mask in masks_of(session.network).items()}
    session.regrow(0.5, 1)
    after = masks_of(session.network)
    name = "blocks.1.conv2.weight"
    new = after[name] & ~before[name]
    assert int(after[name].sum()) == int(before[name].sum()) and new.any()
    assert (session.network.get_parameter(name)[new] == 0).all()
    session.train(2)
    assert (session.network.get_parameter(name)[new] != 0).any()
    assert (session.network.get_parameter(name)[~after[name]] == 0).all()


@dataclass
class Cut:
    """Trains with checkpoints, and is cut after an epoch; writes down which batches are drawn."""

    checkpoint: Path
    after: int | None = None
    drawn: list[int] = field(default_factory=list)

    def __call__(self, network, epochs, last, after_step) -> None:
        def progress(row):
            if row.epoch == self.after:
                raise KeyboardInterrupt

        images, labels = data()
        batches = list(zip(images.split(8), labels.split(8), strict=True))
        config = FinetuneConfig(epochs=epochs, lr=0.05)
        finetune(
            network, batches, config,
            checkpoint=self.checkpoint, progress=progress, after_step=after_step,
        )  # fmt: skip

    def batch(self, number):
        self.drawn.append(number)
        generator = torch.Generator().manual_seed(number)
        return torch.randn(8, 1, 8, 8, generator=generator), torch.arange(8)


def test_rigl_goes_on_where_it_was_cut_to_the_same_bits(traces, tmp_path):
    pruner = pruner_of(traces["cnn"], "unstructured")
    policy, rigl = policy_of(pruner, 0.8), RigL(every=3, updates=4)

    def run(training):
        return rigl.run(open_session(pruner, policy, training), 4)

    whole = run(Cut(tmp_path / "whole.pt"))
    with pytest.raises(KeyboardInterrupt):
        run(Cut(tmp_path / "cut.pt", after=2))
    training = Cut(tmp_path / "cut.pt")
    assert_equal(run(training), whole)
    assert training.drawn == [3, 4]  # of 16 steps, 8 are done, with 2 updates


@pytest.mark.parametrize("repairs", [False, True])
def test_the_last_stage_of_progressive_trains_the_network_that_is_returned(traces, repairs):
    """Layer norms over pruned channels compute something else with zeros in their place."""
    pruner = pruner_of(traces["vit"], "channel", repairs=repairs)
    training, images, left = Training("vit"), data()[0], []

    class Watched(Training):
        def __call__(self, network, epochs, last, after_step):
            training(network, epochs, last, after_step)
            with torch.no_grad():
                left.append(network.eval()(images))

    session = open_session(pruner, policy_of(pruner, 0.5), Watched("vit"))
    network = schedules.load("progressive", stages=2).run(session, 2)
    assert torch.equal(network(images), left[-1])


def test_masks_that_stop_halfway_are_cut_at_the_end(traces):
    pruner = pruner_of(traces["vit"], "channel")
    policy = policy_of(pruner, 0.5)
    session = open_session(pruner, policy, Training("vit"))
    session.blend(0.5)
    assert_pruned(pruner, policy, session.finish())


@pytest.mark.parametrize("grain", ["channel", "channel+unstructured", "unstructured"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_networks_are_refined_where_all_is_pruned_at_once_and_not_in_stages(
    traces, monkeypatch, name, grain
):
    if name == "rigl" and grain != "unstructured":
        pytest.skip("rigl moves single weights")
    refined = []
    monkeypatch.setattr(Refiner, "__call__", lambda *arguments: refined.append(arguments))
    pruner = pruner_of(traces["cnn"], grain, refine=Refinement(steps=1))
    session = open_session(pruner, policy_of(pruner, 0.5), Training("cnn"))
    schedules.load(name).run(session, EPOCHS)
    assert len(refined) == (1 if name in ("one_shot", "rigl") else 0)


@pytest.mark.parametrize("name", ["one_shot", "linear", "progressive"])
def test_channels_of_a_masked_network_go_in_stages_and_its_zeros_stay(traces, name):
    pruner = pruner_of(traces["cnn"], "unstructured")
    sparse = trace(pruner.prune(policy_of(pruner, 0.5)), torch.zeros(2, 1, 8, 8))
    channels = pruner_of(sparse, "channel")
    session = open_session(channels, policy_of(channels, 0.5), Training("cnn"))
    network = schedules.load(name).run(session, EPOCHS)
    masks, before = masks_of(network), masks_of(sparse.model)
    assert masks.keys() == before.keys()
    for name, mask in masks.items():
        assert mask.numel() < before[name].numel()
        assert (network.get_parameter(name)[~mask] == 0).all() and not mask.all()


def test_a_network_that_was_kept_is_copied_where_all_is_pruned_at_once(traces):
    pruner = pruner_of(traces["cnn"], "unstructured")
    policy, asked = policy_of(pruner, 0.5), []
    kept = pruner.prune(policy)

    def ready():
        asked.append(kept)
        return kept

    for name, times in (("linear", 0), ("one_shot", 1)):
        session = open_session(pruner, policy, Training("cnn"), ready)
        assert schedules.load(name).run(session, EPOCHS) is not kept
        assert len(asked) == times


@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_rigl_moves_nothing_in_layers_that_are_frozen_or_not_masked(ratio):
    network = made("cnn")
    frozen = next(n for n, p in network.named_parameters() if p.dim() > 1)
    network.get_parameter(frozen).requires_grad_(False)
    pruner = pruner_of(trace(network.eval(), torch.zeros(2, 1, 8, 8)), "unstructured")
    policy = policy_of(pruner, ratio)
    before = masks_of(pruner.prune(policy))
    session = open_session(pruner, policy, Training("cnn"))
    after = masks_of(RigL(every=2, drop=0.5, updates=2).run(session, 6))
    moved = {name for name in before if not after[name].equal(before[name])}
    assert after.keys() == before.keys()
    assert moved == before.keys() - {frozen}


# ---- refusals


@pytest.mark.parametrize(
    ("name", "settings", "epochs", "says"),
    [
        ("cubic", {}, 3, "schedule cubic trains in 4 stages, but finetune.epochs is 3"),
        ("linear", {"stages": 9}, 8, "finetune.epochs is 8"),
        ("progressive", {}, 0, "finetune.epochs is 0"),
        ("lottery", {"rewind_epochs": 2}, 5, "trains in 6 stages"),
        ("rigl", {}, 0, "finetune.epochs is 0"),
    ],
)
def test_fewer_epochs_than_stages_are_refused(name, settings, epochs, says):
    with pytest.raises(InputError, match=says):
        schedules.load(name, **settings).check(["unstructured"], epochs)


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("cubics", {}, "no schedule is called 'cubics'; did you mean 'cubic'"),
        ("cubic", {"stage": 3}, "did you mean 'stages'"),
        ("cubic", {"stages": 0}, "stages must be a whole number >= 1"),
        ("cubic", {"ramp": "steep"}, "ramp must be one of"),
        ("progressive", {"stages": 1}, "stages must be a whole number >= 2"),
        ("lottery", {"rewind_epochs": -1}, "rewind_epochs must be"),
        ("rigl", {"drop": 1.0}, r"drop must be a number in \(0, 1\)"),
        ("rigl", {"every": 0}, "every must be"),
    ],
)
def test_settings_that_make_no_sense_are_refused(name, settings, says):
    from hydra.errors import InstantiationException

    with pytest.raises((InputError, InstantiationException), match=says):
        schedules.load(name, **settings)
