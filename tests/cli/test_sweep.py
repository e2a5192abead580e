import json
import math
import shutil
import time
from pathlib import Path

import pandas as pd
import pytest
from command import SEARCH, Result, start

from automl.cli import main
from automl.commands.compare_time import timed
from automl.commands.compose import compose
from automl.commands.sweep import (
    Cell,
    _key,
    _result_of,
    _run_dir,
    _shared_bench,
    cells_of,
    run_cell,
    sister_rows,
)
from automl.journal import Journal
from automl.report.loading import load_runs
from automl.runs import (
    FAILED,
    JOURNAL,
    PLAN,
    POLICY,
    POLICY_UNIFORM,
    RESULT,
    WEIGHTS,
    RunFolder,
    config_hash,
)
from automl.types import FailedError, InputError

SMALL = [part for part in SEARCH[1:] if not part.startswith(("strategy", "seed", "budget"))]
SWEEP = ["search", "-m", *SMALL, "strategy=random,uniform", "budget.macs=0.5", "trials=6"]


def finish(process) -> Result:
    out, err = process.communicate(timeout=300)
    return Result(process.returncode, out, err)


def policies(folder):
    return {file.parent.name: file.read_bytes() for file in folder.glob("*/policy.json")}


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A whole sweep, and what it printed."""
    folder = tmp_path_factory.mktemp("sweep") / "whole"
    done = finish(start(*SWEEP, "seed=0,1", f"run_dir={folder}"))
    assert done.code == 0, done.err
    return folder, done.out


def test_every_combination_is_a_run_in_a_folder_of_its_own(swept):
    folder, out = swept
    names = {path.name for path in folder.iterdir() if path.is_dir()}
    assert names == {f"strategy={s},seed={n}" for s in ("random", "uniform") for n in (0, 1)}
    assert "[4/4]" in out and "over uniform" in out
    frame = load_runs(folder)
    assert set(frame["status"]) == {"done"} and set(frame["seed"]) == {0, 1}


def test_cells_do_not_score_again_what_a_sister_has_scored(swept):
    folder, _ = swept
    first, second = (
        {row["key"]: row for row in Journal.read(folder / f"strategy=random,seed={n}" / JOURNAL)}
        for n in (0, 1)
    )
    both = set(first) & set(second)  # the dense network and the uniform policy, at least
    assert len(both) >= 2 and all(first[key]["time"] == second[key]["time"] for key in both)


def test_cells_are_what_single_searches_would_be(swept, tmp_path):
    folder, _ = swept
    settings = [*SMALL, "strategy=random", "budget.macs=0.5", "trials=6", "seed=1"]
    assert main(["search", *settings, f"run_dir={tmp_path / 'one'}"]) == 0
    there = (folder / "strategy=random,seed=1" / POLICY).read_bytes()
    assert (tmp_path / "one" / POLICY).read_bytes() == there


def test_a_killed_sweep_is_finished_by_the_same_command(swept, tmp_path):
    folder = tmp_path / "sweep"
    command = [*SWEEP, "seed=0,1", f"run_dir={folder}"]
    process, done = start(*command), folder / "strategy=random,seed=0" / RESULT
    while not done.is_file():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    first = done.stat().st_mtime_ns
    again = finish(start(*command))
    assert again.code == 0 and "done before" in again.out
    assert done.stat().st_mtime_ns == first
    assert policies(folder) == policies(swept[0])


def test_networks_of_all_cells_are_timed_side_by_side(swept, tmp_path, capsys):
    copy = tmp_path / "sweep"
    shutil.copytree(swept[0], copy)
    inside = [
        "granularity=unstructured",
        "repair=none",
        "strategy=uniform",
        "budget=none",
        "budget.params=0.5",
    ]
    settings = [part for part in SMALL if not part.startswith(("trials", "repair"))]
    assert main(["search", *settings, *inside, "trials=1", f"run_dir={copy / 'inside'}"]) == 0
    (copy / "strategy=random,seed=1" / PLAN).write_text("{}")
    capsys.readouterr()
    assert main(["compare", str(copy), "--time", "0.01", "--out", str(tmp_path / "tables")]) == 0
    err = capsys.readouterr().err
    whole = copy / "strategy=random,seed=0"
    distinct = {(whole / name).read_bytes() for name in (POLICY, POLICY_UNIFORM)}
    assert f"timing {1 + len(distinct)} networks side by side" in err
    (line,) = [line for line in err.splitlines() if "is not timed: " in line]
    assert "random,seed=1" in line and "plan" in line
    table = pd.read_csv(tmp_path / "tables" / "compare.csv").set_index(["budget", "strategy"])
    macs, params = (next(b for b, _ in table.index if b.startswith(k)) for k in ("macs", "params"))
    times = table["latency_ratio"]
    assert 0.1 < times[macs, "random"] < 2 and 0.1 < times[macs, "uniform"] < 2
    assert math.isnan(times[params, "uniform"])  # zeros inside layers save no time by themselves
    runs = load_runs(whole)
    again = timed(runs, 0.01)
    assert again["latency_ratio"][again["network"] == "dense"].item() == 1.0
    assert (again["test_top1"] == runs["test_top1"]).all()


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
def test_times_to_compare_for_are_checked(seconds, tmp_path, capsys):
    assert main(["compare", str(tmp_path), f"--time={seconds}"]) == 2
    assert capsys.readouterr().err.startswith(
        "prunepilot: error: --time must be a number of seconds"
    )


def test_a_failing_cell_stops_no_other_and_says_why(tmp_path, capsys):
    folder = tmp_path / "sweep"
    own = "package:weights/digits.safetensors"
    settings = [*SMALL, "strategy=uniform", "budget.macs=0.5", f"model.checkpoint=nowhere.pt,{own}"]
    assert main(["search", "-m", *settings, f"run_dir={folder}"]) == 1
    out = capsys.readouterr().out
    assert "FAILED: " in out and "\n1 cell failed" in out
    reason = json.loads((folder / "model.checkpoint=nowhere.pt" / FAILED).read_text())["error"]
    assert "nowhere.pt" in reason
    frame = load_runs(folder)
    assert set(frame["status"]) == {"done", "failed"}
    assert main(["search", "-m", *settings, f"run_dir={folder}"]) == 1
    again = capsys.readouterr().out
    assert "2 cells, 1 done before" in again and "FAILED: " in again


def test_a_cell_whose_network_could_not_be_trained_has_failed_however_often_it_is_run(
    tmp_path, capsys
):
    folder = tmp_path / "sweep"
    tuning = ["finetune=short", "finetune.epochs=1", "finetune.lr=1e9", "data.limit=100"]
    settings = [*SMALL, *tuning, "repair=none", "strategy=uniform", "budget.macs=0.5", "seed=0,1"]
    for _ in range(2):
        assert main(["search", "-m", *settings, f"run_dir={folder}"]) == 1
        out = capsys.readouterr().out
        assert out.count("fine-tuning diverged in epoch 1") >= 2 and "2 cells failed" in out


def test_a_strategy_is_not_credited_with_a_trained_baseline(swept, tmp_path):
    folder = Path(shutil.copytree(swept[0] / "strategy=random,seed=0", tmp_path / "cell"))
    result = json.loads((folder / RESULT).read_text())
    own = result["rows"][-1]
    assert own["name"].startswith("found")
    result["rows"].append({**own, "name": "uniform, tuned", "test_top1": own["test_top1"] / 2})
    (folder / RESULT).write_text(json.dumps(result))
    _, top1 = _result_of(Cell("cell", "", (), str(folder)))
    assert top1 == own["test_top1"]


def test_a_cell_whose_training_failed_is_trained_when_the_sweep_is_run_again(
    tmp_path, capsys, monkeypatch
):
    def no_memory(*_):
        raise FailedError("fine-tuning ran out of memory")

    folder = tmp_path / "sweep"
    tuning = ["finetune=short", "finetune.epochs=1", "data.limit=100"]
    settings = [*SMALL, *tuning, "strategy=uniform", "budget.macs=0.5", f"run_dir={folder}"]
    cell = folder / "only"
    with monkeypatch.context() as patch:
        patch.setattr("automl.commands.finishing._tuned", no_memory)
        assert main(["search", "-m", *settings]) == 1
    assert "out of memory" in json.loads((cell / FAILED).read_text())["error"]
    trials = (cell / JOURNAL).read_bytes()
    assert main(["search", "-m", *settings]) == 0
    assert "FAILED" not in capsys.readouterr().out.rpartition("sweep: ")[2]
    result = json.loads((cell / RESULT).read_text())
    assert result["failures"] == [] and result["rows"][-1]["name"].endswith(", tuned")
    assert not (cell / FAILED).exists() and (cell / JOURNAL).read_bytes() == trials
    assert main(["search", "-m", *settings]) == 0
    assert "1 done before" in capsys.readouterr().out


def test_a_sweep_is_not_put_into_a_single_run(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("{}")
    assert main([*SWEEP, f"run_dir={tmp_path}"]) == 2
    assert "holds a single run" in capsys.readouterr().err


def test_a_folder_of_a_sweep_is_not_made_of_settings(capsys):
    assert main([*SWEEP, "run_dir=runs/${seed}"]) == 2
    assert "one folder for all cells, got runs/${seed}" in capsys.readouterr().err


def test_damaged_rows_of_other_cells_are_left_out(swept, tmp_path):
    folder = Path(shutil.copytree(swept[0], tmp_path / "sweep"))
    rows = len(sister_rows(folder / "another"))
    journal = next(folder.glob("*random*/trials.jsonl"))
    first, *rest = journal.read_text().splitlines()
    damaged = {name: value for name, value in json.loads(first).items() if name != "time"}
    journal.write_text("\n".join([json.dumps(damaged), *rest]) + "\n")
    assert len(sister_rows(folder / "another")) == rows - 1


def test_ctrl_c_that_became_another_error_ends_the_sweep(monkeypatch, tmp_path):
    def interrupted(overrides):
        try:
            raise KeyboardInterrupt
        finally:
            raise AttributeError("of a library, on its way out")

    monkeypatch.setattr("automl.commands.sweep.compose", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_cell(Cell("only", "", (), str(tmp_path / "only")))
    assert not (tmp_path / "only").exists()


def test_a_cell_that_runs_elsewhere_is_left_alone(swept, capsys):
    folder = swept[0].parent / "busy"
    settings = [*SMALL, "strategy=uniform", "budget.macs=0.5", "seed=0,1"]
    with RunFolder(folder / "seed=1").lock():
        assert main(["search", "-m", *settings, f"run_dir={folder}"]) == 0
    out = capsys.readouterr().out
    assert "[2/2] seed=1: another command runs it, left alone" in out
    assert "\n1 cell left to another command; run this one again" in out
    assert "failed" not in out.lower().partition("another command runs it")[2]
    assert not (folder / "seed=1" / FAILED).exists()
    assert main(["search", "-m", *settings, f"run_dir={folder}"]) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["seed=0,0"], "two cells of the sweep would be the same"),
        (["strategy=amc,rondom"], "no strategy named 'rondom'"),
        (["budget.macs=0.5,0.0001"], "budget.macs=0.0001: budget cannot be met: macs "),
        (["trials=5,0"], "trials=0,strategy=random: trials must be a whole number >= 1"),
        (["strategy=random", "strategy.spread=-1,0.5"], "spread must be > 0"),
        (["launcher=slurm", "launcher.minutes=0"], "launcher.minutes must be a whole number >= 1"),
        (["launcher=joblib", "launcher.jobs=0"], "launcher.jobs must be a whole number >= 1"),
    ],
)
def test_bad_input_of_any_cell_is_one_line_before_anything_runs(
    tmp_path, capsys, settings, message
):
    folder = tmp_path / "sweep"
    assert main([*SWEEP, *settings, f"run_dir={folder}"]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not folder.exists()


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        (RESULT, "junk", "damaged"),
        (WEIGHTS, None, "missing"),
    ],
)
def test_a_cell_that_lost_files_of_its_result_is_made_again_from_its_trials(
    swept, tmp_path, capsys, name, content, fault
):
    copy = tmp_path / "sweep"
    shutil.copytree(swept[0], copy)
    cell = copy / "strategy=random,seed=1"
    if content is None:
        (cell / name).unlink()
    else:
        (cell / name).write_text(content)
    command = [*SWEEP, "seed=0,1", f"run_dir={copy}"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "3 done before" in out and "FAILED" not in out
    assert out.count(f"{cell / name} is {fault}: the last phase of its cell runs again") == 1
    assert policies(copy) == policies(swept[0])
    noted = json.loads((cell / RESULT).read_text())["config_hash"]
    assert noted == config_hash(RunFolder(cell).config())
    assert main(command) == 0
    assert "4 done before" in capsys.readouterr().out


def test_several_values_without_m_say_so(capsys):
    assert main(["search", "seed=0,1"]) == 2
    assert "add -m" in capsys.readouterr().err


def test_cells_are_named_after_what_varies(tmp_path):
    cells = cells_of(["model=digits", "strategy=amc,td3", "seed=range(2)"], tmp_path)
    assert [cell.name for cell in cells] == [
        "strategy=amc,seed=0", "strategy=amc,seed=1", "strategy=td3,seed=0", "strategy=td3,seed=1",
    ]  # fmt: skip
    with pytest.raises(InputError, match="cannot read"):
        cells_of(["seed"], tmp_path)


@pytest.mark.parametrize("folder", ["it's", 'a "b"', "both '\"", "a,b", "a b", "a\\b", "end\\"])
def test_a_sweep_goes_into_a_folder_of_any_name(folder):
    overrides = ["model=digits", "seed=0,1", f"run_dir=runs/{folder}"]
    assert _run_dir(overrides) == f"runs/{folder}"
    for cell in cells_of(overrides, Path("runs", folder)):
        assert cell.folder == str(Path("runs", folder, cell.name))
        assert compose(cell.overrides)["run_dir"] == cell.folder


@pytest.mark.parametrize("mark", ["", "+", "++"])
@pytest.mark.parametrize("value", ["runs/a", "'runs/a'", '"runs/a"'])
def test_the_folder_of_a_sweep_is_where_the_command_says(mark, value):
    overrides = ["model=digits", "seed=0,1", f"{mark}run_dir={value}"]
    assert _run_dir(overrides) == "runs/a"
    for cell in cells_of(overrides, Path("runs/a")):
        assert compose(cell.overrides)["run_dir"] == cell.folder


def test_cells_whose_folders_would_be_called_alike_are_kept_apart(tmp_path):
    def folders(values):
        cells = cells_of(["model=digits", f"data.root={values}"], tmp_path)
        return {cell.name: Path(cell.folder).name for cell in cells}

    found = folders("/a/b,/a_b,/c")
    assert len(set(found.values())) == 3 and found["data.root=/c"] == "data.root=_c"
    assert found["data.root=/a/b"].startswith("data.root=_a_b-")
    assert folders("/a_b,/c,/a/b") == found  # in whatever order


def test_cells_that_differ_in_the_seed_share_what_no_seed_changes():
    def key(*settings):
        return _key(compose(["model=digits", *settings]))

    def shared(*settings):
        return key("seed=0", *settings) == key("seed=1", *settings)

    assert shared() and shared("codebook=kmeans") and shared("finetune=short")
    assert not shared("short_term=brief")  # networks of trials are trained in another order
    assert not shared("criterion=random") and not shared("model.checkpoint=null")
    assert key() != key("repair=none")


def test_latency_near_one_budget_is_not_handed_to_the_cells_of_another(monkeypatch):
    monkeypatch.setattr(
        "automl.commands.latency.latency_cost", lambda bench: bench.config["budget"]["latency_ms"]
    )
    monkeypatch.setattr("automl.commands.sweep._BENCHES", {})

    def cell(budget, strategy="amc"):
        settings = ["model=digits", "budget=none", f"+budget.latency_ms={budget}"]
        return _shared_bench(compose([*settings, f"strategy={strategy}"]))

    first = cell(0.3)
    costs = first.costs
    assert first.latency == 0.3
    assert cell(0.6).latency == 0.6
    assert cell(0.6, "uniform").latency == 0.6
    assert cell(0.6).costs is costs  # all else is shared
    assert "latency_table" not in vars(cell(0.3))
