import contextlib
import io
import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from command import SEARCH, start, wait_for_trials

from automl.cli import main
from automl.commands.intact import fault_of
from automl.journal import Journal
from automl.model_folder import load_pruned
from automl.report import curves
from automl.runs import FINALISTS, JOURNAL, POLICY, RESULT, RunFolder

ROWS = ["dense", "uniform", "found"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A search that ran to its end without a break; its folder and what it printed."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([*SEARCH, f"run_dir={run}"])
    assert code == 0, err.getvalue()
    return run, out.getvalue(), err.getvalue()


def scores(run):
    """Policy and score of every trial, in order: all that may not differ between runs."""
    return [(row["policy"], row["score"]) for row in Journal.read(run / JOURNAL)]


def test_the_folder_holds_all_files(finished):
    run, _, _ = finished
    names = {file.name for file in run.iterdir() if not file.name.endswith(".lock")}
    assert names == {
        "config.yaml", "environment.json", "trials.jsonl", "trials.parquet", "plan.json",
        "policy.json", "policy_uniform.json", "model.safetensors", "rebuild.json", "result.json",
    }  # fmt: skip


def test_the_environment_tells_no_paths(finished):
    run, _, _ = finished
    assert "/" not in (run / "environment.json").read_text()


def test_the_result_is_within_the_budget_and_shown(finished):
    run, out, _ = finished
    result = json.loads((run / RESULT).read_text())
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows) == ROWS
    for name in ("uniform", "found"):
        assert rows[name]["macs"] <= 0.5 * rows["dense"]["macs"]
        assert rows[name]["latency_ratio"] > 0
        assert f" {name} " in out
    assert result["failed"] == 0
    assert str(run) in out


def test_the_saved_network_scores_as_the_table_says(finished):
    from automl.data import load_data

    run, _, _ = finished
    network, data = load_pruned(run), load_data("digits")
    row = json.loads((run / RESULT).read_text())["rows"][-1]
    assert sum(p.numel() for p in network.parameters()) == row["params"]
    (x, y), *_ = data.test.batches(len(data.test), mean=data.mean, std=data.std)
    with torch.no_grad():
        top1 = (network(x).argmax(1) == y).double().mean().item()
    assert top1 == pytest.approx(row["test_top1"], abs=0.003)


def test_a_pipe_gets_a_few_plain_lines(finished):
    _, out, err = finished
    lines = err.splitlines()
    assert lines[0] == "trials 0/12"
    assert lines[-1].startswith("trials 12/12  best: kl ")
    assert len(lines) < 15
    assert "\x1b" not in out + err


def test_a_finished_run_shows_its_result_again_and_computes_nothing(finished, cli):
    run, out, _ = finished
    before = {file.name: file.stat().st_mtime_ns for file in run.iterdir()}
    again = cli(*SEARCH, f"run_dir={run}")
    assert again.code == 0
    assert again.out.splitlines() == [*out.splitlines()[1:-1], f"finished before: {run}"]
    assert before == {file.name: file.stat().st_mtime_ns for file in run.iterdir()}


@pytest.mark.parametrize(
    ("name", "keeps", "fault"),
    [("model.safetensors", None, "missing"), ("policy.json", 20, "damaged")],
)
def test_a_finished_run_that_lost_a_file_writes_it_again_from_its_trials(
    finished, cli, tmp_path, name, keeps, fault
):
    whole, _, _ = finished
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    file = run / name
    if keeps is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:keeps])
    command = ["resume", run] if keeps else [*SEARCH, f"run_dir={run}"]
    again = cli(*command)
    assert again.code == 0 and "finished before" not in again.out
    assert f"{file} is {fault}: the last phase runs again, from the trials" in again.out
    assert scores(run) == scores(whole)
    assert file.read_bytes() == (whole / name).read_bytes()
    assert f"finished before: {run}" in cli("resume", run).out


def test_every_file_of_a_result_is_looked_at(finished, tmp_path):
    whole, _, _ = finished
    names = [
        "model.safetensors", "policy.json", "policy_uniform.json", "plan.json", "rebuild.json",
        "result.json", "trials.parquet",
    ]  # fmt: skip
    run = RunFolder(Path(shutil.copytree(whole, tmp_path / "run")))
    assert fault_of(run) is None
    for name in names:
        content = run.file(name).read_bytes()
        for damage in (b"", b"junk", content[:-20]):
            run.file(name).write_bytes(damage)
            assert fault_of(run) == f"{run.file(name)} is damaged"
        run.file(name).unlink()
        assert fault_of(run) == f"{run.file(name)} is missing"
        run.file(name).write_bytes(content)


def test_other_settings_do_not_take_over_a_run(finished, cli):
    run, _, _ = finished
    result = cli(*SEARCH, "budget.macs=0.4", f"run_dir={run}")
    assert result.code == 2
    assert "budget.macs: 0.5 there, 0.4 here" in result.err


def test_killed_in_the_middle_it_resumes_to_the_same_bytes(finished, cli, tmp_path):
    whole, _, _ = finished
    run = tmp_path / "cut"
    process = start(*SEARCH, f"run_dir={run}")
    wait_for_trials(run / JOURNAL, 6, process)
    process.kill()
    process.communicate()
    done = scores(run)
    assert 6 <= len(done) < len(scores(whole))
    assert not (run / POLICY).exists()

    assert cli("resume", run).code == 0
    assert (run / POLICY).read_bytes() == (whole / POLICY).read_bytes()
    assert scores(run) == scores(whole)
    assert scores(run)[: len(done)] == done


def test_ctrl_c_says_how_to_go_on_and_leaves_a_run(finished, cli, tmp_path):
    whole, _, _ = finished
    run = tmp_path / "cut"
    process = start(*SEARCH, f"run_dir={run}")
    wait_for_trials(run / JOURNAL, 4, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.splitlines()[-1] == (f"prunepilot: interrupted; go on with: prunepilot resume {run}")
    assert "Traceback" not in err

    assert cli("resume", run).code == 0
    assert (run / POLICY).read_bytes() == (whole / POLICY).read_bytes()


def test_a_run_in_use_is_refused(finished, cli):
    from automl.runs import RunFolder

    run, _, _ = finished
    (run / RESULT).rename(run / "hidden")
    try:
        with RunFolder(run).lock():
            result = cli("resume", run)
    finally:
        (run / "hidden").rename(run / RESULT)
    assert result.code == 2
    assert "in use by another process" in result.err


def test_fine_tuned_networks_get_rows_of_their_own(cli, tmp_path):
    run = tmp_path / "tuned"
    few = [word for word in SEARCH if not word.startswith(("trials=", "strategy="))]
    result = cli(
        *few, "trials=1", "strategy=uniform", "finetune=short", "finetune.epochs=1",
        f"run_dir={run}",
    )  # fmt: skip
    assert result.code == 0, result.err
    rows = json.loads((run / RESULT).read_text())["rows"]
    assert [row["name"] for row in rows] == ["dense", "found = uniform", "found = uniform, tuned"]
    assert rows[2]["validation_top1"] >= rows[1]["validation_top1"]
    assert not list(run.glob("finetune-*"))


def test_trials_that_all_fail_end_with_code_1_and_a_folder_to_resume(cli, tmp_path, monkeypatch):
    from automl.pruning.pruner import Pruner

    def prune(self, policy):
        if any(decision.kept < decision.units for decision in policy.decisions):
            raise RuntimeError("out of memory")
        return self.trace.model

    monkeypatch.setattr(Pruner, "prune", prune)
    result = cli(*SEARCH, f"run_dir={tmp_path / 'run'}")
    assert result.code == 1
    assert "out of memory" in result.err.splitlines()[-1]
    assert "Traceback" not in result.err


def test_the_best_trials_are_scored_again_on_all_validation_images(tmp_path):
    run = tmp_path / "run"
    settings = ["scoring.images=64", "scoring.finalists=3", "baselines=[random]"]
    assert main([*SEARCH, *settings, f"run_dir={run}"]) == 0
    result = json.loads((run / RESULT).read_text())
    assert result["search_images"] == 64 < result["validation_images"]
    assert result["finalists"] == 3
    again = Journal.read(run / "finalists.jsonl")
    assert 3 <= len(again) <= 8  # dense, uniform, and three of each search
    best = max((row["score"], row["policy"]) for row in again if row["index"] >= 0)
    found = next(row for row in result["rows"] if row["name"].startswith("found"))
    assert -found["score"] == pytest.approx(best[0])
    assert (run / "trials-random.jsonl").is_file()


def test_baselines_stand_in_the_table(finished, tmp_path, capsys):
    run = tmp_path / "run"
    assert main([*SEARCH, "baselines=[deep]", f"run_dir={run}"]) == 0
    rows = json.loads((run / RESULT).read_text())["rows"]
    assert [row["name"] for row in rows] == ["dense", "uniform", "deep", "found"]
    assert rows[-1] == {**rows[-1], "score": _found(finished[0])["score"]}
    assert " deep " in capsys.readouterr().out


def _found(run):
    return json.loads((run / RESULT).read_text())["rows"][-1]


def test_finalists_may_train_for_a_moment_before_one_is_chosen(tmp_path):
    run = tmp_path / "run"
    training = ["short_term=brief", "short_term.of=finalists", "short_term.images=64"]
    assert main([*SEARCH, *training, "trials=4", "scoring.finalists=2", f"run_dir={run}"]) == 0
    result = json.loads((run / RESULT).read_text())
    again = [row for row in Journal.read(run / "finalists.jsonl") if row["index"] >= 0]
    before = {row["policy"]: row["score"] for row in Journal.read(run / JOURNAL)}
    assert len(again) == 3  # uniform and two finalists
    assert all(row["score"] != before[row["policy"]] for row in again)
    found = next(row for row in result["rows"] if row["name"].startswith("found"))
    assert found["score"] == pytest.approx(-max(row["score"] for row in again[1:]))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["short_term.of=everything"], "short_term.of must be trials or finalists"),
        (
            ["short_term.of=finalists", "+short_term.finetune.early_stop_patience=2"],
            "short_term.finetune.early_stop_patience must be null",
        ),
    ],
)
def test_what_trains_is_checked(tmp_path, capsys, settings, says):
    run = tmp_path / "run"
    assert main([*SEARCH, "short_term=brief", *settings, f"run_dir={run}"]) == 2
    assert says in capsys.readouterr().err
    assert not run.exists()


def test_trials_may_repair_on_fewer_images_than_the_last_round(tmp_path):
    run = tmp_path / "run"
    settings = ("trials=4", "repair.trial_images=16", "scoring.finalists=2", f"run_dir={run}")
    assert main([*SEARCH, *settings]) == 0
    quick, last = (Journal.read(run / name) for name in (JOURNAL, FINALISTS))
    assert {row["policy"] for row in last} <= {row["policy"] for row in quick}
    assert not {row["key"] for row in last} & {row["key"] for row in quick}


def test_a_network_with_a_view_behind_a_convolution_is_searched(tmp_path, monkeypatch):
    """Images that are scored lie channels last only where the network runs on them."""
    source = """
from torch import nn

class Viewing(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.pool, self.fc = nn.MaxPool2d(2), nn.Linear(128, 10)

    def forward(self, x):
        x = self.pool(self.second(self.conv(x).relu()).relu())
        return self.fc(x.view(x.size(0), -1))
"""
    (tmp_path / "viewing_net.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = [part for part in SEARCH if not part.startswith(("model=", "trials="))]
    model = ["model=viewing_net.Viewing", "model.input_shape=[1,8,8]", "trials=3"]
    assert main([*settings, *model, f"run_dir={tmp_path / 'run'}"]) == 0
    rows = list(Journal.read(tmp_path / "run" / JOURNAL))
    assert {row["status"] for row in rows} == {"ok"}


def test_a_policy_that_is_tried_twice_counts_its_seconds_once_and_is_no_network_more(
    tmp_path, monkeypatch
):
    source = """
from automl.types import SearchResult

class Again:
    def search(self, problem, trials, seed):
        tried = [problem.evaluate(problem.policy(problem.space.low)) for _ in range(trials)]
        return SearchResult(tried[0].policy, tuple(tried))
"""
    (tmp_path / "again_strategy.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    own = ["strategy=uniform", "strategy._target_=again_strategy.Again", "trust=[again_strategy]"]
    run = tmp_path / "run"
    assert main([*SEARCH, *own, "trials=3", f"run_dir={run}"]) == 0
    result = json.loads((run / RESULT).read_text())
    assert (result["trials"], result["networks"]) == (3, 1)
    rows = Journal.read(run / JOURNAL)
    assert result["search_seconds"] == pytest.approx(rows[1]["seconds"], abs=1e-3)
    assert len(curves.scores(rows, result)) == 1 and len(rows) == 3  # dense, one, and uniform


def test_what_a_strategy_of_ones_own_returns_is_held_to_the_budget(tmp_path, monkeypatch, capsys):
    source = """
from automl.types import SearchResult

class Own:
    def __init__(self, share=1.0):
        self.share = share

    def search(self, problem, trials, seed):
        least, most = problem.space.low, problem.space.units
        tried = problem.evaluate(problem.policy(least))
        over = problem.evaluate(problem.policy(most), allow_over_budget=True)
        return SearchResult(problem.policy(problem.fit(most / most)) if self.share < 1 else
                            over.policy, (tried, over))
"""
    (tmp_path / "own_strategy.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    own = ["strategy=uniform", "strategy._target_=own_strategy.Own", "trust=[own_strategy]"]
    settings = [*SEARCH, *own, "scoring.images=64"]
    run = tmp_path / "over"
    assert main([*settings, f"run_dir={run}"]) == 2
    *_, told = capsys.readouterr().err.splitlines()
    assert "error: strategy Own chose a policy over the budget (macs " in told
    assert len(Journal.read(run / JOURNAL)) == 2
    run = tmp_path / "untried"
    assert main([*settings, "+strategy.share=0.5", f"run_dir={run}"]) == 0
    result = json.loads((run / RESULT).read_text())
    assert result["rows"][-1]["name"] == "found = uniform" and result["trials"] == 3


def test_the_found_network_may_end_with_shared_weights(tmp_path):
    run = tmp_path / "run"
    shared = ["codebook=kmeans", "codebook.finetune.epochs=1"]
    assert main([*SEARCH, *shared, "trials=2", f"run_dir={run}"]) == 0
    rows = json.loads((run / RESULT).read_text())["rows"]
    assert [row["name"] for row in rows][-1] == f"{rows[-2]['name']}, shared weights"
    network = load_pruned(run)
    sizes = [len(weight.unique()) for weight in network.parameters() if weight.dim() > 1]
    assert sizes and max(sizes) <= 16
    assert not list(run.glob("*.pt"))
