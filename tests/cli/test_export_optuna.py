import json

import pytest
from command import SEARCH

from automl.cli import main
from automl.journal import Journal
from automl.policy import Policy
from automl.runs import JOURNAL, POLICY

optuna = pytest.importorskip("optuna")
SMALL = [part for part in SEARCH if not part.startswith("trials")]


def test_optuna_loads_the_trials_of_a_run(tmp_path, capsys):
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    run, out = tmp_path / "run", tmp_path / "out"
    assert main([*SMALL, "trials=3", f"run_dir={run}"]) == 0
    with Journal(run / JOURNAL) as journal:  # after three and uniform's, one that failed
        last = list(journal)[-1]
        failed = {**last, "key": "f", "index": 4, "status": "failed", "error": "no memory"}
        journal.append({**failed, "score": None, "metrics": None, "costs": None})
    assert main(["export", str(run), "--format", "optuna", "--out", str(out)]) == 0
    assert "5 trials" in capsys.readouterr().out

    storage = JournalStorage(JournalFileBackend(str(out / "optuna.log")))
    study = optuna.load_study(study_name=None, storage=storage)
    rows = [json.loads(line) for line in (run / JOURNAL).read_text().splitlines()]
    dense, *trials = sorted(rows, key=lambda row: row["index"])
    names = [one.target for one in Policy.load(run / POLICY).decisions]
    assert study.user_attrs["dense"]["costs"] == dense["costs"]
    for row, trial in zip(trials[:4], study.trials, strict=False):
        assert trial.value == row["score"] and trial.user_attrs["metrics"] == row["metrics"]
        assert trial.params == dict(zip(names, row["kept"], strict=True))
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 4 + ["FAIL"]
    assert study.best_value == max(row["score"] for row in trials[:4])
    assert study.trials[4].user_attrs["error"] == "no memory"
