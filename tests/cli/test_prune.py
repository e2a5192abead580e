"""``prunepilot prune``: grains, schedules, policies, and what is refused."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
import torch

from automl.commands.build import Bench
from automl.commands.compose import compose
from automl.commands.prune import _Pruning
from automl.model_folder import load_pruned
from automl.pruning.masks import masks_of, sparsity
from automl.types import InputError

QUICK = (
    "model=digits", "threads=1", "device=cpu", "repair.calibration_images=64", "repair.refine=null",
)  # fmt: skip


def prune(cli, out, *arguments):
    result = cli("prune", *QUICK, *arguments, "--out", out)
    assert result.code == 0, result.err
    return result.out


def test_single_weights_are_pruned_in_stages_and_shown_before_and_after(cli, tmp_path):
    out = tmp_path / "out"
    said = prune(
        cli, out, "granularity=unstructured", "ratio=.8", "criterion=l1", "schedule=cubic",
        "schedule.stages=2", "finetune=short", "finetune.epochs=2",
    )  # fmt: skip
    for text in ("dense", "pruned", "trained, cubic", "val top-1", "test top-1", f"wrote {out}"):
        assert text in said
    network = load_pruned(out)
    assert sparsity(network) == pytest.approx(0.8, abs=1e-3)
    for name, mask in masks_of(network).items():
        assert (network.get_parameter(name)[~mask] == 0).all()


def test_training_that_was_cut_goes_on_where_it_was(cli, tmp_path, cut_in_training):
    arguments = ("ratio=.5", "finetune=short", "finetune.epochs=2")
    prune(cli, tmp_path / "whole", *arguments)
    out = tmp_path / "cut"
    with cut_in_training():
        assert cli("prune", *QUICK, *arguments, "--out", out).code == 130
    assert not out.exists()
    assert (tmp_path / "cut.training-1.pt").exists()
    another = cli("prune", *QUICK, *arguments, "schedule=linear", "schedule.stages=1", "--out", out)
    assert another.code == 2 and another.err.count("\n") == 1
    assert "stage=1 of OneShot(), not 1 of Gradual(ramp=linear, stages=1)" in another.err
    result = cli("prune", *QUICK, *arguments, "--out", out)
    assert result.code == 0, result.err
    assert "2/2" in result.err and "1/2" not in result.err
    assert not (tmp_path / "cut.training-1.pt").exists()
    ours, theirs = (load_pruned(folder).state_dict() for folder in (out, tmp_path / "whole"))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_training_of_a_folder_without_a_name_goes_on_with_the_same_command(
    cli, tmp_path, monkeypatch, cut_in_training
):
    monkeypatch.chdir(tmp_path)
    arguments = ("prune", *QUICK, "ratio=.5", "finetune=short", "finetune.epochs=2")
    with cut_in_training():
        cut = cli(*arguments)
        assert cut.code == 130
        (checkpoint,) = (tmp_path / "runs").iterdir()
        name = checkpoint.relative_to(tmp_path)
        hint = f"prunepilot: interrupted; go on with: the same command, which finds {name}\n"
        assert cut.err.endswith(hint)
        assert cli(*arguments, "seed=1").code == 130  # it is another run, which begins
        assert len(list((tmp_path / "runs").iterdir())) == 2
    result = cli(*arguments)
    assert result.code == 0, result.err
    assert "2/2" in result.err and "1/2" not in result.err
    assert not checkpoint.exists()


def test_a_full_disk_leaves_no_half_folder_and_the_same_command_goes_on(cli, tmp_path):
    out = tmp_path / "out"
    arguments = ("prune", *QUICK, "ratio=.5", "finetune=short", "finetune.epochs=1", "--out", out)
    whole = resource.getrlimit(resource.RLIMIT_FSIZE)

    def filled(*_, **__):
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, whole[1]))

    with pytest.MonkeyPatch.context() as patch:
        save = _Pruning._save
        patch.setattr(_Pruning, "_save", lambda *given: (filled(), save(*given)))
        try:
            full = cli(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, whole)
    assert full.code == 1
    assert f"failed: {out / 'plan.json'}: File too large; what is finished is kept" in full.err
    assert [file.name for file in tmp_path.iterdir()] == ["out.training-1.pt"]
    again = cli(*arguments)
    assert again.code == 0 and "fine-tuning pruned 1/1" not in again.err
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="this system has no /proc")
@pytest.mark.parametrize(
    "arguments",
    [
        ("prune", "model=digits", "ratio=.5", "finetune=short", "--out"),
        ("storage", "model=digits", "--out"),
        ("trace", "model=digits", "--out"),
        ("bench", "model=digits", "ratio=.5", "--out"),
        ("compare", "runs", "--out"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_places_that_only_look_writable_are_refused_before_anything_is_computed(
    cli, monkeypatch, arguments
):
    def computed(*_):
        raise AssertionError("something is computed")

    monkeypatch.setattr(Bench, "loaded", property(computed))
    result = cli(*arguments, "/proc/x")
    assert result.code == 2
    assert "--out /proc/x cannot be" in result.err and "No such file" in result.err
    assert len(result.err.splitlines()) == 1


def test_what_rounding_leaves_of_a_ratio_is_said_where_it_is_far_from_it(cli, tmp_path):
    def said(name, *arguments):
        result = cli("prune", *QUICK, "repair=none", *arguments, "--out", tmp_path / name)
        assert result.code == 0, result.err
        return result.err

    line = "ratio=0.99: granularity.rounding=8 removes 75 to 87.5 % instead (8 of 8 targets); "
    assert said("a", "ratio=.99") == f"{line}granularity.rounding=1 comes nearer\n"
    assert "removes 75 % instead (1 of 1 targets)" in said("b", "ratio={blocks.0.conv1: .99}")
    for number, quiet in enumerate(["ratio=.7", "ratio=.99 granularity.rounding=1", "ratio=0"]):
        assert said(str(number), *quiet.split()) == ""


@pytest.mark.parametrize("grain", ["channel", "unstructured", "[channel,unstructured]"])
def test_every_target_keeps_what_min_keep_says(cli, tmp_path, grain):
    out, settings = tmp_path / "out", [f"granularity={grain}", "granularity.min_keep=0.5"]
    assert cli("prune", *QUICK, "repair=none", "ratio=.75", *settings, "--out", out).code == 0
    decisions = json.loads((out / "policy.json").read_text())["decisions"]
    assert {one["kept"] / one["units"] for one in decisions} == {0.5}


def test_the_current_folder_can_be_pruned_into(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = cli("prune", *QUICK, "ratio=.5", "repair=none", "--out", ".")
    assert result.code == 0, result.err
    assert load_pruned(tmp_path)(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def two_heads():
    """A network whose outputs are no logits."""

    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = torch.nn.Conv2d(1, 16, 3), torch.nn.Conv2d(16, 16, 3)
            self.one, self.other = torch.nn.Linear(16, 10), torch.nn.Linear(16, 4)

        def forward(self, x):
            x = torch.relu(self.second(torch.relu(self.first(x)))).mean((2, 3))
            return self.one(x), self.other(x)

    return Two()


def test_networks_that_cannot_be_scored_are_pruned_and_shown_without(cli, tmp_path):
    own = [f"model={__name__}.two_heads", "model.input_shape=[1,8,8]", "data=digits"]
    out = tmp_path / "out"
    result = cli("prune", *own, "ratio=.5", "repair=none", "device=cpu", "--out", out)
    assert result.code == 0, result.err
    assert "accuracy was not measured: the network returns tuple" in result.out
    assert f"wrote {out}" in result.out


def test_a_mixed_policy_is_pruned_again_without_saying_the_grain(cli, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    plain = ("granularity=[channel,block:1x4]", "granularity.layers={linear: nm:4}", "ratio=.5")
    prune(cli, first, *plain, "repair=none")
    policy = json.loads((first / "policy.json").read_text())
    kinds = {decision["granularity"] for decision in policy["decisions"]}
    assert kinds == {"channel", "block:1x4", "nm:4"}
    prune(cli, second, "repair=none", "--policy", first / "policy.json")
    ours, theirs = (load_pruned(folder) for folder in (first, second))
    example = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(ours(example), theirs(example))
    assert masks_of(ours).keys() == masks_of(theirs).keys()


def test_layers_get_a_finer_grain_after_the_channels_that_are_pruned_by_default(cli, tmp_path):
    plain, mixed = tmp_path / "plain", tmp_path / "mixed"
    layers = "granularity.layers={linear: nm:4}"
    prune(cli, plain, layers, "ratio=.5", "repair=none")
    prune(cli, mixed, "granularity=[channel]", layers, "ratio=.5", "repair=none")
    ours, theirs = (json.loads((out / "policy.json").read_text()) for out in (plain, mixed))
    assert ours["decisions"] == theirs["decisions"]
    assert {one["granularity"] for one in ours["decisions"]} == {"channel", "nm:4"}


def test_channels_are_reordered_for_patterns_where_that_is_asked_for(cli, tmp_path):
    grain = ("granularity=nm", "ratio=.5", "repair=none")
    prune(cli, tmp_path / "plain", *grain)
    arguments = (*QUICK, *grain, "granularity.permute=true", "--out", tmp_path / "reordered")
    result = cli("prune", *arguments)
    assert result.code == 0, result.err
    assert "groups reordered: N:M keeps" in result.err
    ours, plain = (load_pruned(tmp_path / name) for name in ("reordered", "plain"))
    assert sparsity(ours) == sparsity(plain)


def test_one_ranking_over_all_layers_gives_them_ratios_of_their_own(cli, tmp_path):
    out = tmp_path / "out"
    prune(cli, out, "granularity=kernel", "granularity.scope=global", "ratio=.7", "repair=none")
    policy = json.loads((out / "policy.json").read_text())
    removed = {round(1 - one["kept"] / one["units"], 2) for one in policy["decisions"]}
    assert len(removed) > 3


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["granularity=kernl"], "no granularity named 'kernl'; did you mean 'kernel'"),
        (["granularity=nm:2:4"], "2:4 is nm:4 at ratio=0.5"),
        (["granularity=[unstructured,nm:4]"], "two grains for the same layers"),
        (["granularity=nm", "granularity.m=1"], "whole groups of 2 to 256, got 1"),
        (["granularity=nm", "granularity.permute=2"], "granularity.permute must be true or false"),
        (["granularity=nm", "granularity.levels=1"], "granularity.levels must be a whole number"),
        (["granularity=mixed", "granularity.layers={conv1: nm:4}"], "'conv1' cannot be pruned"),
        (["granularity.layers={linearX: nm:4}"], "pattern 'linearX' matches no layer"),
        (["granularity=nm", "granularity.layers={linear: nm:8}"], "is not for granularity=nm"),
        (["granularity=mixed", "granularity.grains=channel"], "granularity.grains is a list"),
        (["granularity=unstructured", "granularity.scope=all"], "must be layer or global"),
        (["granularity.min_keep=half"], "min_keep must be in [0, 1], got 'half'"),
        (["granularity=unstructured", "granularity.min_keep=1.5"], "min_keep must be in [0, 1]"),
        (
            ["granularity=unstructured", "granularity.scope=global", "granularity.min_keep=-1"],
            "min_keep must be in [0, 1], got -1",
        ),
        (["granularity=unstructured", "criterion=apoz"], "scores whole channels"),
        (["granularity=nm", "ratio=.95"], "would empty blocks.0.conv1.weight"),
        (["schedule=cubic"], "schedule cubic trains in 4 stages, but finetune.epochs is 0"),
        (["schedule=rigl", "finetune=short"], "rigl moves single weights, not channel"),
        (["schedule=cubic", "schedule.stages=0"], "schedule.stages must be a whole number >= 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_makes_no_sense_is_refused_in_one_line(cli, tmp_path, overrides, says):
    ratio = () if any(text.startswith("ratio") for text in overrides) else ("ratio=.5",)
    result = cli("prune", *QUICK, "repair=none", *ratio, *overrides, "--out", tmp_path / "out")
    assert result.code == 2 and result.err.count("\n") == 1
    assert says in result.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["ratio=.5"], "ratio= is for prune"),
        (["granularity=nm", "granularity.scope=global"], "which is for prune"),
        (["schedule=linear"], "schedule linear trains in 4 stages"),
        (["granularity=nm", "schedule=rigl", "finetune=short"], "not nm:4"),
    ],
)
def test_settings_of_prune_are_refused_by_search(cli, tmp_path, overrides, says):
    result = cli("search", *QUICK, "repair=none", *overrides, f"run_dir={tmp_path / 'run'}")
    assert result.code == 2 and says in result.err
    assert not (tmp_path / "run").exists()


def test_the_folder_may_be_named_like_that_of_a_search(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick = (*QUICK, "repair=none", "granularity=kernel", "ratio=.5")
    assert cli("prune", *quick, "run_dir=here").code == 0
    assert cli("prune", *quick).code == 0
    (made,) = (tmp_path / "runs").iterdir()
    assert made.name.startswith("digits-kernel-")
    assert all(sparsity(load_pruned(folder)) > 0.49 for folder in (tmp_path / "here", made))
    twice = cli("prune", *quick, "run_dir=a", "--out", "b")
    assert twice.code == 2 and "give one of them" in twice.err


def test_grains_may_be_named_on_the_command_line():
    several = compose(["granularity=[channel,nm:8]"])["granularity"]
    assert several["name"] == "mixed" and several["grains"] == ["channel", "nm:8"]
    assert compose(["granularity=block:4x4"])["granularity"]["grains"] == ["block:4x4"]
    layers = compose(["granularity=mixed", "granularity.layers={linear: nm:4}"])["granularity"]
    assert layers["layers"] == {"linear": "nm:4"}
    assert compose(["granularity.layers={linear: nm:4}"])["granularity"] == {
        **layers, "grains": ["channel"]
    }  # fmt: skip
    kept = compose(["granularity=channel", "granularity.rounding=2", "granularity.layers={a: nm}"])
    assert kept["granularity"]["rounding"] == 2
    assert kept["choices"]["granularity"] == "mixed"
    with pytest.raises(InputError, match="no granularity named"):
        compose(["granularity=all"])


def test_weights_are_shared_trained_and_packed_exactly(cli, tmp_path):
    out = tmp_path / "out"
    said = prune(
        cli, out, "granularity=unstructured", "ratio=.8", "codebook=kmeans",
        "codebook.finetune.epochs=1",
    )  # fmt: skip
    assert "shared weights" in said
    network = load_pruned(out)
    masks = masks_of(network)
    for name, weight in network.named_parameters():
        if weight.dim() > 1:
            assert len(weight.unique()) <= 16 and (weight[~masks[name]] == 0).all()
    assert not list(tmp_path.glob("*.pt"))
    result = cli("bench", out, "--formats", "pell_codebook", "--seconds", "0.1")
    assert result.code == 0, result.err
    document = json.loads((out / "bench.json").read_text())
    assert document["largest_error"] < 1e-5


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["codebook=kmeans", "codebook.values=8"], "codebook.values must be null or 16, got 8"),
        (["codebook=kmeans", "codebook.finetune.lr=0"], "FinetuneConfig.lr must be > 0, got 0"),
        (["codebook=kmean"], "kmeans"),
    ],
)
def test_settings_of_a_codebook_that_are_off_are_refused(cli, tmp_path, settings, says):
    result = cli("prune", *QUICK, "ratio=.5", *settings, "--out", tmp_path / "out")
    assert result.code == 2 and says in result.err and len(result.err.splitlines()) == 1
