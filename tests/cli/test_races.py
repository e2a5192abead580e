"""Races as the command holds them."""

import json

import pytest
from command import SEARCH

from automl.cli import main
from automl.journal import Journal
from automl.runs import JOURNAL, POLICY

PLAIN = (*SEARCH, "repair=none", "trials=20")
RACE = (*PLAIN, "scoring.racing=true", "scoring.racing_round=4")


def rows(run) -> dict:
    return {
        (row["key"], row["status"]): (row["index"], row["score"], row["metrics"])
        for row in Journal.read(run / JOURNAL)
    }


@pytest.mark.parametrize("strategy", ["random", "amc"])
def test_a_race_has_the_same_result_with_every_engine_and_a_winner_that_saw_everything(
    strategy, tmp_path
):
    settings = [*RACE, f"strategy={strategy}"]
    serial, process = tmp_path / "serial", tmp_path / "process"
    assert main([*settings, "engine=serial", f"run_dir={serial}"]) == 0
    assert main([*settings, "engine=process", "engine.n=2", f"run_dir={process}"]) == 0
    assert (serial / POLICY).read_bytes() == (process / POLICY).read_bytes()
    assert rows(serial) == rows(process)
    found = [row for row in Journal.read(serial / JOURNAL) if row["index"] >= 0]
    lost = [row for row in found if row["status"] == "discarded"]
    assert json.loads((serial / "result.json").read_text())["discarded"] == len(lost) > 0
    winner = max((row for row in found if row["status"] == "ok"), key=lambda row: row["score"])
    assert all(row["score"] < winner["score"] for row in lost)


def test_races_find_what_is_found_without_them(tmp_path):
    plain, raced = tmp_path / "plain", tmp_path / "raced"
    assert main([*PLAIN, f"run_dir={plain}"]) == 0
    assert main([*RACE, f"run_dir={raced}"]) == 0
    assert (plain / POLICY).read_bytes() == (raced / POLICY).read_bytes()


def test_the_last_round_has_as_many_places_as_it_asks_for(tmp_path):
    run = tmp_path / "run"
    settings = ("scoring.images=128", "scoring.finalists=3")
    assert main([*RACE, *settings, f"run_dir={run}"]) == 0
    found = [row for row in Journal.read(run / JOURNAL) if row["status"] == "ok"]
    assert len(found) >= 4  # with the dense network
    again = Journal.read(run / "finalists.jsonl")
    assert all(row["status"] == "ok" for row in again)
