import json

import pytest


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    from automl.cli import main

    folder = tmp_path_factory.mktemp("bench") / "sparse"
    settings = ["model=digits", "granularity=unstructured", "ratio=0.9", "criterion=l1"]
    assert main(["prune", *settings, "repair=none", "device=cpu", f"run_dir={folder}"]) == 0
    return folder


def test_a_sparse_run_is_timed_against_dense_and_written(cli, pruned):
    done = cli("bench", pruned, "--seconds", "0.1", "--formats", "csc", "--baselines", "onednn")
    assert done.code == 0 and f"wrote {pruned / 'bench.json'}" in done.out
    found = json.loads((pruned / "bench.json").read_text())
    assert found["dense_ms"] > 0 and found["sparse_ms"] > 0 and found["threads"] == 1
    assert found["largest_error"] < 1e-5 and found["device"]
    row = found["rows"][-1]
    assert {"layer", "format", "dense_ms", "sparse_ms", "used"} <= set(row)
    assert 0.05 < row["density"] < 0.15
    assert "automl.compile uses" in done.out and row["layer"] in done.out
    assert found["networks"]["dense"]["rounds"] >= 15
    sparse = [row for row in found["rows"] if row["format"] not in ("dense", "onednn")]
    assert all(row["sparse_bytes"] < row["dense_bytes"] for row in sparse)


def test_settings_in_place_of_a_run(cli, tmp_path):
    out = tmp_path / "slim.json"
    settings = ["model=digits", "granularity=channel", "ratio=0.5"]
    done = cli(
        "bench",
        *settings,
        "--seconds",
        "0.1",
        "--formats",
        "csc",
        "--baselines",
        "eager",
        "--out",
        out,
    )
    assert done.code == 0, done.err
    found = json.loads(out.read_text())
    assert "pruned, dense kernels" in found["networks"]
    assert found["sparse_bytes"] < found["dense_bytes"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "bench takes RUN, or settings"),
        (["RUN", "model=digits", "ratio=0.5"], "not both"),
        (["nowhere"], "nowhere is no folder"),
        (["RUN", "--formats", "pel"], "did you mean 'pell'"),
        (["RUN", "--baselines", "onedn"], "did you mean 'onednn'"),
        (["RUN", "--batch", "0"], "--batch must be >= 1"),
        (["RUN", "--seconds", "0"], "--seconds must be above 0"),
        (["RUN", "--out", "no/such/folder.json"], "cannot be written"),
        (["model=digits"], "takes ratio=0.9"),
    ],
)
def test_wrong_arguments_are_one_line(cli, pruned, arguments, message):
    done = cli("bench", *(str(pruned) if one == "RUN" else one for one in arguments))
    assert done.code == 2 and message in done.err and "Traceback" not in done.err


def test_a_folder_without_a_network(cli, tmp_path):
    done = cli("bench", tmp_path)
    assert done.code == 2 and "holds no pruned network" in done.err


def test_a_network_on_point_clouds(cli, tmp_path):
    out = tmp_path / "clouds.json"
    settings = ["model=shapes_tiny", "granularity=unstructured", "ratio=0.6"]
    done = cli("bench", *settings, "--seconds", "0.1", "--baselines", "onednn", "--out", out)
    assert done.code == 0, done.err
    found = json.loads(out.read_text())
    formats = {row["layer"]: row["format"] for row in found["rows"]}
    assert formats["stem"] == "spconv3d" and "its own kernel" in done.out
    assert found["largest_error"] < 1e-5 and found["clock"] in ("processor", "wall")
