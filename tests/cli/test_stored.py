"""Settings read back from run folders."""

from __future__ import annotations

import copy

import pytest

from automl.commands.compose import compose
from automl.commands.stored import check_shape, stored_settings
from automl.runs import CONFIG, SEARCHER, RunFolder, to_yaml
from automl.types import InputError


@pytest.fixture(scope="module")
def config():
    return compose(["strategy=netadapt", "budget.macs=0.5", "short_term=brief"])


def sections(config):
    return [name for name, value in config.items() if isinstance(value, dict)]


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["model=resnet20", "strategy=amc", "granularity=nm", "schedule=cubic", "finetune=short"],
        ["granularity=[channel,nm:4]", "engine=process", "latency.table=here", "budget=none"],
        ["model=my.package.factory", "data=imagefolder", "criterion=taylor", "logger=tensorboard"],
        ["experiment=resnet56_50"],
    ],
)
def test_composed_settings_are_whole(overrides):
    check_shape(compose(overrides), "config.yaml")


def test_a_section_or_key_that_is_missing_is_named(config):
    later = {"choices", "overrides", "experiment", "logger", "depth", "codebook"}
    for name in set(config) - later:
        left = {key: value for key, value in config.items() if key != name}
        with pytest.raises(InputError, match=f"config.yaml has no {name}: it is damaged"):
            check_shape(left, "config.yaml")
    damaged = copy.deepcopy(config)
    del damaged["scoring"]["images"]
    with pytest.raises(InputError, match=r"has no scoring\.images"):
        check_shape(damaged, "config.yaml")


@pytest.mark.parametrize("value", [None, 5, "text", [1, 2], True])
def test_a_value_in_place_of_a_section_is_named(config, value):
    for name in set(sections(config)) - {"choices", "experiment"}:
        with pytest.raises(InputError, match=f"{name} must be a section of settings"):
            check_shape({**config, name: value}, "config.yaml")
    damaged = {**config, "short_term": {**config["short_term"], "finetune": value}}
    with pytest.raises(InputError, match=r"short_term\.finetune must be a section"):
        check_shape(damaged, "config.yaml")


def test_runs_from_before_a_setting_was_there_are_read(config, tmp_path):
    old = {key: value for key, value in config.items() if key not in ("logger", "depth")}
    (tmp_path / CONFIG).write_text(to_yaml(old))
    assert stored_settings(RunFolder(tmp_path), ())["trials"] == config["trials"]


@pytest.mark.parametrize("verb", [["resume"], ["export", "--out", "new"]])
def test_a_damaged_run_is_refused_in_one_line(cli, config, tmp_path, monkeypatch, verb):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / CONFIG).write_text(to_yaml({**config, "finetune": "short"}))
    result = cli(verb[0], folder, *verb[1:])
    assert result.code == 2
    assert len(result.err.strip().splitlines()) == 1
    assert "finetune must be a section of settings, got 'short'" in result.err


def test_a_folder_that_python_began_says_how_it_goes_on(cli, tmp_path):
    started = {"started_by": SEARCHER, "model": "a" * 64, "budget": {"macs": 0.5}, "seed": 0}
    (tmp_path / CONFIG).write_text(to_yaml(started))
    for command in (["resume", tmp_path], ["export", tmp_path, "--out", tmp_path / "out"]):
        told = cli(*command)
        assert told.code == 2 and told.err.count("\n") == 1
        assert "was begun in Python: go on with the same automl.Searcher(...).search()" in told.err
    with pytest.raises(InputError, match=r"go on with that one: the same automl.Searcher\(\.\.\."):
        RunFolder(tmp_path).check_free_for({**started, "seed": 1})
