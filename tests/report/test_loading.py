import json
from pathlib import Path

import pytest

import automl
from automl.report.comparing import cells, compare
from automl.report.loading import COLUMNS, finals, load_runs, problems
from automl.runs import CONFIG, FAILED, RESULT, RunFolder, config_hash, to_yaml
from automl.types import InputError


def test_a_run_gives_a_row_per_network(make_run):
    frame = automl.load_runs(make_run(seed=3))
    assert list(frame.columns) == list(COLUMNS)
    assert list(frame["network"]) == ["dense", "uniform", "found"]
    found = frame.iloc[-1]
    assert (found["strategy"], found["seed"], found["status"]) == ("amc", 3, "done")
    assert (found["macs_ratio"], found["size_bytes"], found["trials"]) == (0.5, 200.0, 200)


def test_a_network_that_is_two_has_a_row_for_each(make_run):
    assert list(load_runs(make_run("uniform"))["network"]) == ["dense", "found", "uniform"]


def test_tuned_networks_know_their_accuracy_before(make_run):
    folder = make_run("amc", top1=0.8)
    result = json.loads((folder / RESULT).read_text())
    for row in result["rows"][1:]:
        result["rows"].append({**row, "name": f"{row['name']}, tuned", "test_top1": 0.9})
    (folder / RESULT).write_text(json.dumps(result))
    frame = load_runs(folder)
    table = compare(finals(frame)).set_index(["strategy", "tuned"])
    assert frame[~frame["tuned"]]["untuned_test_top1"].isna().all()
    tuned = table.loc[("amc", True)]
    assert (tuned["test_top1"], tuned["untuned_test_top1"]) == (0.9, 0.8)
    headings, rows = cells(table.reset_index())
    assert "80.00" in [row[headings.index("before tuning")] for row in rows]


def test_sweeps_and_folders_of_runs_are_searched(make_run, tmp_path):
    make_run(seed=0)
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    make_run(seed=1).rename(deep / "cell")
    assert set(load_runs(tmp_path)["seed"]) == {0, 1}
    assert len(load_runs(tmp_path, deep)) == len(load_runs(tmp_path))  # none twice


def test_unfinished_failed_and_damaged_runs_are_listed_and_the_rest_goes_on(make_run, tmp_path):
    make_run(seed=0)
    (make_run(seed=1) / RESULT).unlink()
    failed = make_run(seed=2)
    (failed / RESULT).unlink()
    (failed / FAILED).write_text(json.dumps({"error": "no space"}))
    (make_run(seed=3) / RESULT).write_text("{ not json")
    make_run(seed=4, version=7)
    (make_run(seed=5) / RESULT).write_text(
        json.dumps({"schema": "prunepilot/result", "version": 1})
    )
    (make_run(seed=6) / CONFIG).write_text("[1, 2")
    make_run(seed=7, rows=[])
    (make_run(seed=8) / RESULT).write_bytes(b"\xff\xfe\x00")
    never_began = tmp_path / "seed=9"
    never_began.mkdir()
    (never_began / FAILED).write_text(json.dumps({"error": "bad"}))
    frame = load_runs(tmp_path)
    status = frame.drop_duplicates("run")["status"].value_counts().to_dict()
    assert status == {"done": 1, "unfinished": 1, "failed": 2, "damaged": 6}
    lines = list(problems(frame))
    assert len(lines) == 9
    assert any("no space" in line for line in lines)
    assert any("another version (7)" in line for line in lines)
    assert any("prunepilot resume" in line for line in lines)
    assert len(finals(frame)) == 2


def test_settings_that_are_not_the_defaults_name_the_strategy(make_run):
    frame = finals(load_runs(make_run(settings={"acting": 0.0, "tau": 0.01})))
    assert set(frame["strategy"]) == {"amc (acting=0.0)", "uniform"}


def test_a_strategys_own_run_counts_before_its_network_beside_another(make_run, tmp_path):
    make_run("amc", uniform=0.7)
    make_run("uniform", uniform=0.8)
    frame = finals(load_runs(tmp_path))
    assert list(frame[frame["strategy"] == "uniform"]["test_top1"]) == [0.8]


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_folder_without_runs_is_refused_in_one_line(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"is no folder|holds no runs"):
        load_runs(tmp_path / name)


def test_a_folder_without_rights_is_told_of_and_the_rest_is_read(make_run, tmp_path, monkeypatch):
    made = make_run(seed=0)
    (tmp_path / "closed").mkdir()
    opened = Path.is_file

    def is_file(self):  # as for those who are not root
        if self.parent.name == "closed":
            raise PermissionError(13, "Permission denied")
        return opened(self)

    monkeypatch.setattr(Path, "is_file", is_file)
    frame = load_runs(tmp_path)
    status = dict(zip(frame["run"], frame["status"], strict=True))
    assert status == {str(made): "done", str(tmp_path / "closed"): "damaged"}
    assert any("Permission denied" in line for line in problems(frame))


def test_a_result_of_other_settings_is_damaged(make_run):
    folder = make_run(seed=0)
    config = RunFolder(folder).config()
    result = json.loads((folder / RESULT).read_text())
    (folder / RESULT).write_text(json.dumps({**result, "config_hash": config_hash(config)}))
    assert load_runs(folder)["status"].unique() == ["done"]
    (folder / CONFIG).write_text(to_yaml({**config, "seed": 7}))
    frame = load_runs(folder)
    assert list(frame["status"]) == ["damaged"]
    assert "of other settings than its config.yaml" in frame["problem"].iloc[0]
    with pytest.raises(InputError, match=r"of other settings .*prunepilot resume"):
        RunFolder(folder).result()


def test_a_folder_of_a_search_in_python_is_told_from_a_damaged_one(make_run, tmp_path):
    folder = tmp_path / "python"
    folder.mkdir()
    config = {"started_by": "automl.Searcher", "model": "a" * 64, "seed": 0, "strategy": {}}
    (folder / CONFIG).write_text(to_yaml(config))
    frame = load_runs(folder)
    assert list(frame["status"]) == ["python"]
    assert not list(problems(frame))
    make_run()
    assert set(finals(load_runs(tmp_path))["status"]) == {"done"}


def test_a_network_with_shared_weights_is_one_of_its_own(make_run):
    folder = make_run("amc", top1=0.8)
    result = json.loads((folder / RESULT).read_text())
    found = result["rows"][-1]
    for after, top1 in ((", tuned", 0.97), (", tuned, shared weights", 0.7)):
        result["rows"].append({**found, "name": f"found{after}", "test_top1": top1})
    (folder / RESULT).write_text(json.dumps(result))
    frame = finals(load_runs(folder))
    tuned = frame[frame["tuned"]].set_index("variant")["test_top1"]
    assert tuned.to_dict() == {"": 0.97, "shared weights": 0.7}
    assert set(frame[~frame["tuned"]]["variant"]) == {""}


def test_what_the_strategy_beside_it_took_is_not_told_of_a_baseline(make_run):
    frame = finals(load_runs(make_run())).set_index("strategy")
    assert frame.loc["amc", "search_seconds"] == 12.5
    assert frame.loc["uniform", ["search_seconds", "wall_seconds"]].isna().all()


def test_an_experiment_is_what_its_file_sets(make_run, tmp_path):
    def with_overrides(seed, *overrides):
        folder = make_run(seed=seed)
        config = RunFolder(folder).config()
        (folder / CONFIG).write_text(to_yaml({**config, "overrides": list(overrides)}))

    with_overrides(0, "experiment=resnet20_50", "budget.macs=0.3")
    with_overrides(1, "experiment=resnet20_30")
    frame = load_runs(tmp_path)
    assert set(frame["variant"]) == {""}  # budgets have a column
    with_overrides(2, "budget.macs=0.5", "latency.batch=8")
    variants = load_runs(tmp_path).groupby("seed")["variant"].first()
    assert "granularity.rounding=4" in variants[0] and "experiment" not in variants[0]
    assert variants[2] == "latency.batch=8"
