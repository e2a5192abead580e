import builtins
import contextlib
import io
import signal

import numpy as np
import pandas as pd
import pytest
from command import start, wait_for_trials

from automl.cli import main
from automl.journal import Journal
from automl.policy import Policy
from automl.runs import JOURNAL

SENSITIVITY = (
    "sensitivity", "model=digits", "data=digits", "trials=20", "threads=1", "device=cpu",
    "repair=none", "--budgets", "0.5,0.25,0.0001",
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An analysis that ran to its end; its folder and what it printed."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([*SENSITIVITY, f"run_dir={run}"])
    assert code == 0, err.getvalue()
    return run, out.getvalue(), err.getvalue()


def test_every_group_has_a_row_with_what_it_may_lose(finished):
    _, out, _ = finished
    frame = pd.read_csv(finished[0] / "sensitivity.csv")
    for name in frame["target"].unique():
        row = next(line for line in out.splitlines() if f" {name} " in line)
        assert row.count("%") == 7  # what it saves, three thresholds of kl, three of top-1
    assert "kl +0.03" in out and "top-1 -0.5" in out


def test_the_csv_holds_what_was_measured(finished):
    run, _, _ = finished
    frame = pd.read_csv(run / "sensitivity.csv")
    rows = Journal.read(run / JOURNAL)
    assert len(rows) == 20
    assert len(frame) == 19  # the dense network is one
    np.testing.assert_allclose(frame["kl_damage"], frame["kl"], atol=1e-6)
    scores = {round(row["metrics"]["kl"], 6) for row in rows}
    assert {round(kl, 6) for kl in frame["kl"]} <= scores
    assert (frame["keep"] == frame["kept"] / frame["units"]).all()


def test_the_plot_is_a_picture(finished):
    pytest.importorskip("matplotlib")
    from PIL import Image

    with Image.open(finished[0] / "sensitivity.png") as image:
        assert image.format == "PNG" and image.width > 600
        assert len(image.convert("RGB").getcolors(1 << 24)) > 20


def test_every_budget_gets_a_policy_that_can_be_applied(finished, cli, tmp_path):
    run, out, err = finished
    assert Policy.load(run / "policy-0.5.json") != Policy.load(run / "policy-0.25.json")
    for budget in ("macs <= 50 % of dense", "macs <= 25 % of dense"):
        cells = next(line for line in out.splitlines() if budget in line).split("│")
        best, threshold, uniform = (float(cell) for cell in cells[4:7])
        assert best <= min(threshold, uniform)
        assert float(cells[2].split("%")[0]) <= float(budget.split()[2])
    result = cli(
        "prune", "model=digits", "repair=none", "--policy", run / "policy-0.25.json",
        "--out", tmp_path / "slim",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert "below the least reachable" in err  # 0.0001 is said, and the others are answered
    assert not (run / "policy-0.0001.json").exists()


def test_again_it_scores_nothing_and_answers_other_budgets(finished, cli):
    run, _, _ = finished
    before = (run / JOURNAL).read_bytes()
    result = cli(*SENSITIVITY[:7], "--budgets", "0.4", "--drops", "0.03", f"run_dir={run}")
    assert result.code == 0, result.err
    assert (run / JOURNAL).read_bytes() == before
    assert "top-1 -3" in result.out and "macs <= 40 %" in result.out


def test_cut_it_resumes(finished, cli, tmp_path):
    whole, _, _ = finished
    run = tmp_path / "cut"
    process = start(*SENSITIVITY, f"run_dir={run}")
    wait_for_trials(run / JOURNAL, 4, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert f"prunepilot resume {run}" in err.splitlines()[-1]
    assert cli("resume", run).code == 0
    assert (run / "sensitivity.csv").read_bytes() == (whole / "sensitivity.csv").read_bytes()


def test_a_search_does_not_take_over_the_folder(finished, cli):
    run, _, _ = finished
    result = cli("search", *SENSITIVITY[1:7], f"run_dir={run}")
    assert result.code == 2
    assert "verb: sensitivity there" in result.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--budgets", "1.5"], "--budgets must be in (0, 1], got 1.5"),
        (["--budgets", "half"], "argument --budgets: numbers such as 0.5,0.25, got"),
        (["--budgets", "0"], "--budgets must be in (0, 1], got 0"),
        (["--drops", "nan"], "--drops must be in (0, 1], got nan"),
        (["--damages", "-1"], "--damages must be positive, got -1"),
        (["trials=0"], "trials must be a whole number >= 1"),
        (["budget=none"], "budget is empty"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_code_2(cli, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    result = cli("sensitivity", "repair=none", *arguments)
    assert result.code == 2
    assert says in result.err
    assert result.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_latency_is_corrected_for_each_budget_by_itself(cli, tmp_path, monkeypatch):
    aimed = []

    class Milliseconds:
        resource = "latency_ms"

        def __init__(self, plan):
            self.plan = plan

        def __call__(self, kept):
            return self.plan.macs(kept) / 1e6

    def latency_cost(bench):
        aimed.append(bench.config["budget"]["latency_ms"])
        return Milliseconds(bench.trace.plan)

    monkeypatch.setattr("automl.commands.latency.latency_cost", latency_cost)
    limits = ("budget.macs=null", "budget.latency_ms=0.5", "trials=10", "--budgets", "0.8,0.3")
    result = cli(*SENSITIVITY[:3], *SENSITIVITY[4:-2], *limits, f"run_dir={tmp_path / 'run'}")
    assert result.code == 0, result.err
    assert aimed == [0.5, {"fraction": 0.8}, {"fraction": 0.3}]


def test_without_matplotlib_it_says_what_to_install(finished, cli, monkeypatch):
    run, _, _ = finished
    real = builtins.__import__

    def absent(name, *rest):
        if name.startswith("matplotlib") or name == "automl.commands.sensitivity_plot":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    result = cli(*SENSITIVITY[:7], "--budgets", "0.5", f"run_dir={run}")
    assert result.code == 0
    assert "pip install 'prunepilot[plot]'" in result.err
