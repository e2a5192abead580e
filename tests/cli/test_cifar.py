import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import reproduce_cifar
import train_cifar

from automl.commands.build import Bench
from automl.commands.compose import compose

pytestmark = pytest.mark.data


def test_a_cifar_network_is_found_scored_and_pruned(cli, data_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = cli(
        "search", "model=resnet20", f"data.root={data_root}", "data.limit=200", "trials=2",
        "threads=1", "repair.calibration_images=32", "repair.refine.steps=3",
        "latency_budget_s=0.01", "run_dir=run",
        "device=cpu",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert "resnet20 on cifar10" in result.out
    assert "200 test images" in result.out


def test_an_experiment_ends_in_its_rows_and_is_not_run_twice(data_root, tmp_path, capsys):
    command = [
        "experiment=resnet20_50", "--fast", "--seeds", "1", "--strategies", "uniform,random",
        "trials=2", f"data.root={data_root}", "device=cpu", "latency_budget_s=0",
        "--out", str(tmp_path), "--policies", str(tmp_path / "policies"),
    ]  # fmt: skip
    assert reproduce_cifar.main(command) == 0
    out = capsys.readouterr().out
    assert "| random | 1 |" in out and "AMC, in its paper" not in out
    found = json.loads((tmp_path / "policies" / "resnet20_50-random.json").read_text())
    assert len(found["decisions"]) == 14
    assert reproduce_cifar.main(command) == 0
    assert "1 done before" in capsys.readouterr().out


def test_an_unknown_experiment_is_one_line(capsys):
    assert reproduce_cifar.main(["seed=1"]) == 2
    err = capsys.readouterr().err
    assert "resnet56_50" in err and err.count("\n") == 1


def test_a_network_is_trained_on_what_is_not_held_out_and_can_be_searched(
    data_root, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("PRUNEPILOT_DATA", str(data_root))
    out = tmp_path / "weights" / "a.safetensors"
    call = [
        "model=resnet20", "threads=1", "data.limit=100", "finetune.epochs=2", "device=cpu",
        "--out", str(out),
    ]  # fmt: skip

    def cut(row, epochs, report=train_cifar.report):
        report(row, epochs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(train_cifar, "report", cut)
        assert train_cifar.main(call) == 130
    assert not out.exists()
    assert "epoch 1/2" in capsys.readouterr().err
    assert train_cifar.main(call) == 0
    output = capsys.readouterr()
    assert "epoch 1/2" not in output.err
    assert "epoch 2/2" in output.err
    assert "resnet20, 2 epochs of 100 images, seed 0: validation top-1 " in output.out
    assert [file.name for file in out.parent.iterdir()] == ["a.safetensors"]
    bench = Bench(compose(["model=resnet20", f"model.checkpoint={out}", "model.trained_on=train"]))
    assert bench.data.split == "holdout"
    state = bench.complete.model.state_dict()
    assert int(state["bn1.num_batches_tracked"]) == 2
    assert train_cifar.main(call) == 2
    assert "exists; choose another file" in capsys.readouterr().err
