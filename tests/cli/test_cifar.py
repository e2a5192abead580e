import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import reproduce_cifar

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
