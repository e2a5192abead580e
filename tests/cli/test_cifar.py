import pytest

pytestmark = pytest.mark.data


def test_a_cifar_network_is_found_scored_and_pruned(cli, data_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = cli(
        "search", "model=resnet20", f"data.root={data_root}", "data.limit=200", "trials=2",
        "threads=1", "repair.calibration_images=32", "latency_budget_s=0.01", "run_dir=run",
        "device=cpu",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert "resnet20 on cifar10" in result.out
    assert "200 test images" in result.out
