"""Engines as the command uses them."""

import pytest
from command import SEARCH

from automl.cli import main
from automl.journal import Journal
from automl.runs import JOURNAL, POLICY


@pytest.mark.parametrize("strategy", ["random", "netadapt"])
def test_the_engine_changes_no_result(strategy, tmp_path):
    settings = [*SEARCH, f"strategy={strategy}", "trials=10"]
    serial, process = tmp_path / "serial", tmp_path / "process"
    assert main([*settings, "engine=serial", f"run_dir={serial}"]) == 0
    assert main([*settings, "engine=process", "engine.n=2", f"run_dir={process}"]) == 0
    assert (serial / POLICY).read_bytes() == (process / POLICY).read_bytes()
    scores = [
        {row["key"]: (row["index"], row["score"]) for row in Journal.read(run / JOURNAL)}
        for run in (serial, process)
    ]
    assert scores[0] == scores[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["engine=proces"], "no engine named 'proces'"),
        (["engine=process", "engine.n=0"], "Processes.n must be"),
    ],
)
def test_bad_engines_are_one_line(settings, message, tmp_path, capsys):
    assert main([*SEARCH, *settings, f"run_dir={tmp_path / 'run'}"]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
