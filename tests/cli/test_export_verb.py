import shutil

import pytest
import torch
from command import SEARCH

from automl.cli import main
from automl.model_folder import load_pruned

SMALL = [part for part in SEARCH if not part.startswith("trials")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = tmp_path_factory.mktemp("export") / "run"
    assert main([*SMALL, "trials=2", f"run_dir={run}"]) == 0
    return run


def test_the_pruned_network_is_written_checked_and_described(finished, tmp_path, capsys):
    out = tmp_path / "out"
    capsys.readouterr()
    assert main(["export", str(finished), "--format", "safetensors,pt2", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "load_pruned): differs by at most" in printed
    assert "model.pt2: differs by at most" in printed and "validation examples" in printed
    card = (out / "MODEL_CARD.md").read_text()
    assert "test top-1" in card and "model.pt2" in card and "Apache-2.0" in card
    assert str(tmp_path) not in card
    x = torch.rand(3, 1, 8, 8)
    program = torch.export.load(out / "model.pt2").module()
    with torch.no_grad():
        assert torch.allclose(program(x), load_pruned(out)(x), atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--out", "x"], "holds no run"),
        (["{run}", "--out", "{run}"], "is there already; choose a new folder"),
        (["{run}", "--format", "tflite", "--out", "{new}"], "cannot export as 'tflite'"),
    ],
)
def test_bad_input_is_one_line(finished, tmp_path, capsys, arguments, message):
    capsys.readouterr()
    named = [a.format(run=finished, new=tmp_path / "new") for a in arguments]
    assert main(["export", *named]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_a_run_that_lost_a_file_says_how_it_is_written_again(finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "policy.json").unlink()
    capsys.readouterr()
    assert main(["export", str(run), "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert "policy.json is missing; prunepilot resume" in err and err.count("\n") == 1


def test_without_the_data_inputs_are_made_up_and_it_says_so(
    finished, tmp_path, monkeypatch, capsys
):
    from automl.commands.build import Bench
    from automl.types import InputError

    def gone(_):
        raise InputError("the images are not there")

    monkeypatch.setattr(Bench, "data", property(gone))
    assert main(["export", str(finished), "--out", str(tmp_path / "out")]) == 0
    assert "made-up inputs (the images are not there)" in capsys.readouterr().out
