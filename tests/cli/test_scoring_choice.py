"""Type and batch size of trials: chosen once, written down, and gone on with."""

import json

import pytest
import torch
from command import SEARCH

from automl.cli import main
from automl.commands import scoring_choice
from automl.commands.build import Bench
from automl.commands.compose import compose
from automl.commands.scoring_choice import ScoringChoice, chosen
from automl.journal import Journal
from automl.runs import FINALISTS, JOURNAL, POLICY, SCORING

QUICK = (*SEARCH, "repair=none", "trials=4")
AUTO = (*QUICK, "scoring.precision=auto", "scoring.batch_size=auto")


def scores(run, name=JOURNAL):
    return [row["score"] for row in Journal.read(run / name)]


def test_what_was_chosen_is_written_and_gone_on_with(tmp_path, capsys):
    run = tmp_path / "run"
    assert main([*AUTO, f"run_dir={run}"]) == 0
    document = json.loads((run / SCORING).read_text())
    assert document["dtype"] in ("float32", "bfloat16") and document["batch_size"] >= 64
    assert f"trials are scored in {document['dtype']}" in capsys.readouterr().err

    before = scores(run)
    for name in ("result.json", JOURNAL, FINALISTS):  # as if it had been cut at its first trial
        (run / name).unlink(missing_ok=True)
    other = {"float32": "bfloat16", "bfloat16": "float32"}[document["dtype"]]
    (run / SCORING).write_text(json.dumps({"dtype": other, "batch_size": 32, "why": "asked for"}))
    capsys.readouterr()
    assert main(["resume", str(run)]) == 0
    assert f"trials are scored in {other} (asked for)" in capsys.readouterr().err
    assert scores(run) != before and len(scores(run)) == len(before)


def test_trials_in_bfloat16_are_scored_again_in_float32(tmp_path):
    whole, half = tmp_path / "whole", tmp_path / "half"
    assert main([*QUICK, "scoring.precision=float32", f"run_dir={whole}"]) == 0
    assert main([*QUICK, "scoring.precision=bfloat16", f"run_dir={half}"]) == 0
    assert not (half / SCORING).exists()  # nothing was measured
    assert scores(whole) != scores(half)
    exact = dict(zip(scores(whole), scores(half), strict=True))
    assert all(abs(a - b) < 0.05 * abs(a) + 1e-2 for a, b in exact.items())
    assert set(scores(half, FINALISTS)) <= set(scores(whole))
    assert not (whole / FINALISTS).exists()


def test_auto_gives_the_same_result_with_every_engine(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    settings = (*QUICK, "scoring.precision=bfloat16", "strategy=random")
    assert main([*settings, f"run_dir={first}"]) == 0
    assert main([*settings, "engine=process", "engine.n=2", f"run_dir={second}"]) == 0
    assert (first / POLICY).read_bytes() == (second / POLICY).read_bytes()
    assert sorted(scores(first)) == sorted(scores(second))


@pytest.fixture
def bench():
    return Bench(compose([*AUTO[1:], "device=cpu"] if AUTO[0] == "search" else list(AUTO)))


def slower(monkeypatch, alike):
    """Fixed times, so that the choice depends on the ranks alone."""

    def timed(scorers, networks):
        assert len(networks) == 8
        least = {way: 2.0 if way[0] == "float32" else 1.0 for way in scorers}
        ranks = [float(i) for i in range(8)]
        other = ranks if alike else ranks[::-1]
        return least, {way[0]: ranks if way[0] == "float32" else other for way in scorers}

    monkeypatch.setattr(scoring_choice._Measuring, "_timed", staticmethod(timed))
    monkeypatch.setattr(scoring_choice, "_computes_bfloat16", lambda device: True)


@pytest.mark.parametrize(("alike", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_a_faster_type_must_rank_as_the_slower_does(alike, dtype, bench, monkeypatch):
    slower(monkeypatch, alike)
    assert chosen(bench, None).dtype == dtype


def test_without_bfloat16_nothing_is_chosen(bench, monkeypatch):
    monkeypatch.setattr(scoring_choice, "_computes_bfloat16", lambda device: False)
    assert chosen(bench, None).dtype == "float32"
    assert bench.scorer.dtype == torch.float32


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("scoring.precision=half", "scoring.precision must be null, auto, float32 or bfloat16"),
        ("scoring.batch_size=0", "scoring.batch_size must be null, auto or a whole number >= 1"),
        ("scoring.batch_size=fast", "scoring.batch_size must be null, auto or a whole number"),
    ],
)
def test_settings_that_are_off_are_refused(setting, says, tmp_path, capsys):
    assert main([*QUICK, setting, f"run_dir={tmp_path / 'run'}"]) == 2
    err = capsys.readouterr().err
    assert says in err and len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "[" * 100_000, '{"dtype": "int3"}', '{"dtype": "float32", "batch_size": -1}',
     '{"dtype": "float32", "more": 1}'],
)  # fmt: skip
def test_a_damaged_choice_is_refused(text, tmp_path, bench):
    file = tmp_path / SCORING
    file.write_text(text)
    with pytest.raises(scoring_choice.InputError, match=r"scoring\.json is damaged"):
        chosen(bench, file)


def test_a_choice_is_read_as_it_was_written():
    choice = ScoringChoice("bfloat16", 128, "why")
    assert ScoringChoice.from_dict(json.loads(json.dumps(choice.to_dict())), "x") == choice
