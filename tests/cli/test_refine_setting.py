"""Networks that commands end with are refined as ``repair.refine`` says."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from command import SEARCH

from automl.cli import main
from automl.journal import Journal
from automl.model_folder import load_pruned
from automl.pruning.refine import Refiner
from automl.runs import JOURNAL, RESULT

REFINED = tuple(part for part in SEARCH if not part.startswith("repair.refine"))
FEW = (
    "repair.refine.steps=10", "repair.refine.batch_size=16", "trials=2",
    "repair.calibration_images=96",
)  # fmt: skip
#: Enough of them that the network gets better.
STEPS = (*FEW, "repair.refine.steps=40", "repair.calibration_images=256")


def searched(folder, *settings):
    """The result of a search, and the parameters of the network that it found."""
    assert main([*settings, f"run_dir={folder}"]) == 0
    result = json.loads((folder / RESULT).read_text())
    return result, load_pruned(folder)


def test_a_search_ends_with_refined_networks_but_does_not_search_them(tmp_path, capsys):
    plain, network = searched(tmp_path / "plain", *SEARCH, "trials=2", STEPS[-1])
    assert "refining" not in capsys.readouterr().err
    refined, better = searched(tmp_path / "refined", *REFINED, *STEPS)
    told = capsys.readouterr().err
    assert "refining found" in told and "refining 1/" in told
    runs = [Journal.read(tmp_path / run / JOURNAL) for run in ("plain", "refined")]
    trials = [[(row["policy"], row["score"]) for row in run] for run in runs]
    assert trials[0] == trials[1]
    assert [row["macs"] for row in plain["rows"]] == [row["macs"] for row in refined["rows"]]
    changed = [
        not torch.equal(one, other)
        for one, other in zip(network.parameters(), better.parameters(), strict=True)
    ]
    assert any(changed)


def test_training_begins_with_the_refined_network(tmp_path, capsys):
    tuning = ("finetune=short", "finetune.epochs=1", "finetune.lr=1e-9")
    result, _ = searched(tmp_path / "run", *REFINED, *STEPS, *tuning, "data.limit=100")
    rows = {row["name"]: row for row in result["rows"]}
    assert rows["found, tuned"]["score"] == pytest.approx(rows["found"]["score"], abs=0.02)
    assert capsys.readouterr().err.count("refining found") == 1  # and not once more to train it


def refuse(*arguments):
    raise AssertionError("refined a second time")


TUNING = ("finetune=short", "finetune.epochs=2", "data.limit=100")


def test_what_was_refined_is_not_refined_again_after_a_cut_in_training(
    tmp_path, monkeypatch, cut_in_training
):
    run, call = tmp_path / "run", [*REFINED, *STEPS, *TUNING]
    _, undisturbed = searched(tmp_path / "whole", *call)
    with cut_in_training():
        assert main([*call, f"run_dir={run}"]) == 130
    assert list(run.glob("refined-*"))
    # Whatever memory is free now would not be asked either.
    monkeypatch.setattr(Refiner, "__call__", refuse)
    assert main(["resume", str(run)]) == 0
    assert not list(run.glob("refined-*"))
    ours, theirs = load_pruned(run).state_dict(), undisturbed.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_training_after_a_moments_training_goes_on_from_what_was_refined(
    tmp_path, monkeypatch, cut_in_training
):
    run, refined, refine = tmp_path / "run", [], Refiner.__call__
    short = ("short_term=brief", "short_term.of=finalists", "short_term.images=16")
    with cut_in_training():
        assert main([*REFINED, *FEW, *TUNING, *short, f"run_dir={run}"]) == 130

    def counted(*arguments):
        refined.append(arguments)
        refine(*arguments)

    monkeypatch.setattr(Refiner, "__call__", counted)
    assert main(["resume", str(run)]) == 0
    assert len(refined) == 1  # the network whose training had not begun
    assert not list(run.glob("refined-*"))


def test_prune_goes_on_from_what_it_had_refined(tmp_path, monkeypatch, cut_in_training):
    settings = ["model=digits", "device=cpu", "threads=1", "ratio=0.5", *FEW[:2], FEW[3]]
    call = ["prune", *settings, *TUNING, "--out", str(tmp_path / "out")]
    with cut_in_training():
        assert main(call) == 130
    monkeypatch.setattr(Refiner, "__call__", refuse)
    assert main(call) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_training_that_diverges_leaves_the_run_with_its_untrained_networks(tmp_path, capsys):
    run = tmp_path / "run"
    settings = [*SEARCH, *TUNING, "trials=1", "finetune.lr=1e9", f"run_dir={run}"]
    assert main(settings) == 1
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line.startswith("prunepilot: failed: ")]
    assert len(lines) == len([name for name in lines if "diverged in epoch 1" in name]) > 0
    assert f"prunepilot apply {run} --fine-tune model=digits" in lines[0]
    names = [row["name"] for row in json.loads((run / RESULT).read_text())["rows"]]
    assert names[-1].startswith("found") and not any("tuned" in name for name in names)
    assert load_pruned(run)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert main(["resume", str(run)]) == 1  # and says so again
    assert "diverged in epoch 1" in capsys.readouterr().err


def test_training_that_diverges_is_one_line_of_prune_too(tmp_path, capsys):
    settings = ["model=digits", "ratio=0.5", "repair=none", *TUNING, "finetune.lr=1e9"]
    assert main(["prune", *settings, "--out", str(tmp_path / "out")]) == 1
    assert "prunepilot: failed: fine-tuning diverged in epoch 1" in capsys.readouterr().err


def test_a_run_from_before_the_setting_goes_on_without(tmp_path, capsys):
    run = tmp_path / "run"
    searched(run, *SEARCH, "trials=2")
    config = yaml.safe_load((run / "config.yaml").read_text())
    del config["repair"]["refine"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / RESULT).unlink()
    assert main(["resume", str(run)]) == 0
    assert "refining" not in capsys.readouterr().err
    assert (run / RESULT).is_file()


def test_apply_refines_too(tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "out"
    searched(run, *SEARCH, "trials=2")
    capsys.readouterr()
    settings = ["model=digits", "device=cpu", "threads=1", *FEW[:2], FEW[3]]
    call = ["apply", str(run), *settings, "--out", str(out)]
    assert main(call) == 0
    assert "refining 1/" in capsys.readouterr().err
    assert load_pruned(out)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("repair.refine.lr=2", "Refinement.lr must be in (0, 1), got 2"),
        ("repair.refine.steps=0", "Refinement.steps must be a whole number >= 1, got 0"),
        ("repair.refine.step=5", "did you mean 'repair.refine.steps'?"),
        ("repair.refine.precision=half", "Refinement.precision must be"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_anything_runs(
    tmp_path, capsys, setting, says
):
    run = tmp_path / "run"
    assert main([*REFINED, setting, f"run_dir={run}"]) == 2
    assert says in capsys.readouterr().err
    assert not (run / JOURNAL).exists() or not (run / JOURNAL).read_text()
