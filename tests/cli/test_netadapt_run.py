import csv
import json
import shutil

import pytest

from automl.journal import Journal
from automl.policy import Policy
from automl.runs import JOURNAL, POLICY, RESULT

SEARCH = (
    "search", "model=digits", "data=digits", "strategy=netadapt", "budget=none",
    "budget.energy_mj=0.4", "trials=24", "threads=1", "device=cpu",
    "repair.calibration_images=64", "repair.refine=null", "latency_budget_s=0",
)  # fmt: skip


def family(run):
    with (run / "family.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An energy-limited search that ran without a break."""
    from automl.cli import main

    run = tmp_path_factory.mktemp("runs") / "whole"
    assert main([*SEARCH, f"run_dir={run}"]) == 0
    return run


def test_energy_is_a_budget_and_the_family_leads_down_to_it(finished):
    result = json.loads((finished / RESULT).read_text())
    limit = result["limits"]["energy_mj"]
    rows = family(finished)
    energies = [float(row["energy_mj"]) for row in rows]
    assert energies == sorted(energies, reverse=True)
    assert energies[-1] <= limit < energies[-2]
    assert energies[0] == pytest.approx(limit / 0.4)
    last = Policy.load(finished / rows[-1]["policy"])
    assert last == Policy.load(finished / POLICY)


def test_a_member_of_the_family_can_be_pruned_to(finished, cli, tmp_path):
    policy = finished / family(finished)[1]["policy"]
    result = cli(
        "prune", "model=digits", "threads=1", "device=cpu", "repair=none",
        "--policy", policy, "--out", tmp_path / "slim",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert Policy.load(tmp_path / "slim" / POLICY) == Policy.load(policy)


def test_cut_in_the_middle_it_resumes_to_the_same_family(finished, cli, tmp_path):
    run = tmp_path / "cut"
    run.mkdir()
    shutil.copy(finished / "config.yaml", run)
    lines = (finished / JOURNAL).read_bytes().splitlines(keepends=True)
    (run / JOURNAL).write_bytes(b"".join(lines[:6]))
    assert cli("resume", run).code == 0
    assert (run / "family.csv").read_bytes() == (finished / "family.csv").read_bytes()
    assert (run / POLICY).read_bytes() == (finished / POLICY).read_bytes()
    scores = [[(r["key"], r["score"]) for r in Journal.read(f / JOURNAL)] for f in (run, finished)]
    assert scores[0] == scores[1]


def test_trials_that_train_are_other_trials(finished, cli, tmp_path):
    run = tmp_path / "trained"
    few = [word for word in SEARCH if not word.startswith("trials=")]
    result = cli(*few, "trials=1", "short_term=brief", "short_term.images=64", f"run_dir={run}")
    assert result.code == 0, result.err
    keys = [{row["key"] for row in Journal.read(folder / JOURNAL)} for folder in (run, finished)]
    assert not keys[0] & keys[1]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("strategy.winner=best", "no winner is called 'best'"),
        ("strategy.step=2", "NetAdapt.step must be None or in (0, 1]"),
        ("short_term.finetune.lr=-1", "FinetuneConfig.lr must be > 0"),
        ("short_term.images=0", "short_term.images must be a whole number >= 1"),
        ("energy.sram_pj=[1]", "energy.sram_pj must be one number per sram_bytes"),
    ],
)
def test_bad_settings_end_with_one_line_and_no_folder(cli, tmp_path, override, says):
    result = cli(*SEARCH, "short_term=brief", override, f"run_dir={tmp_path / 'run'}")
    assert result.code == 2 and says in result.err
    assert result.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
