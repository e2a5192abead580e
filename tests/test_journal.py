import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from automl.journal import Journal
from automl.types import InputError


def row(key: str, **fields) -> dict:
    return {"key": key, "status": "ok", "score": 0.1 + 0.2, "kept": [1, 2], "error": None, **fields}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "trials.jsonl"


def written(path, *keys: str):
    with Journal(path) as journal:
        for key in keys:
            journal.append(row(key))
    return path


def test_rows_are_read_back_exactly(path):
    metrics = {"top1": 1 / 3, "loss": math.inf, "kl": math.nan, "gain": -math.inf}
    with Journal(path) as journal:
        journal.append(row("a", metrics=metrics, costs={"macs": 1e15 + 1}, error="nan"))
    with Journal(path) as journal:
        again = journal.get("a")
    assert again["score"] == 0.1 + 0.2 and again["kept"] == [1, 2] and again["error"] == "nan"
    assert again["costs"] == {"macs": 1e15 + 1}
    assert math.isnan(again["metrics"].pop("kl"))
    assert again["metrics"] == {"top1": 1 / 3, "loss": math.inf, "gain": -math.inf}


def test_it_is_a_mapping_from_keys_in_the_order_written(path):
    written(path, "b", "a")
    with Journal(path) as journal:
        journal.append(row("c"))
        assert [one["key"] for one in journal] == ["b", "a", "c"]
        assert len(journal) == 3 and "a" in journal and "d" not in journal
        assert journal.get("d") is None


def test_the_last_of_equal_keys_counts(path):
    with Journal(path) as journal:
        for score in (1.0, 2.0):
            journal.append(row("a", score=score))
        journal.append(row("b"))
    with Journal(path) as journal:
        assert len(journal) == 2 and journal.get("a")["score"] == 2.0
        assert journal.to_frame()["score"].tolist() == [2.0, 0.1 + 0.2]


@pytest.mark.parametrize("cut", [1, 2, 20])
def test_a_torn_last_line_is_dropped_with_a_warning_and_the_file_goes_on(path, cut):
    data = written(path, "a", "b").read_bytes()
    path.write_bytes(data[:-cut])
    with pytest.warns(UserWarning, match="line 2 was cut off"):
        journal = Journal(path)
    with journal:
        assert [one["key"] for one in journal] == ["a"]
        journal.append(row("b"))
    assert path.read_bytes() == data


def test_a_last_line_of_zeros_is_dropped_too(path):
    with written(path, "a").open("ab") as file:
        file.write(b"\0" * 100 + b"\n")
    with pytest.warns(UserWarning, match="line 2 was cut off"), Journal(path) as journal:
        assert len(journal) == 1


@given(cut=st.integers(0, 400))
def test_cut_anywhere_the_whole_lines_before_the_cut_survive(tmp_path_factory, cut):
    path = written(tmp_path_factory.mktemp("run") / "trials.jsonl", "a", "b", "c")
    data = path.read_bytes()[:cut]
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Journal(path) as journal:
            assert len(journal) == data.count(b"\n")


@pytest.mark.parametrize("damage", [b"{oops\n", b"\n", b"3\n", b'{"schema": 1}\n', b"[[1]]\n"])
def test_a_damaged_line_in_the_middle_is_an_error_that_names_it(path, damage):
    lines = written(path, "a", "b").read_bytes().splitlines(keepends=True)
    content = lines[0] + damage + lines[1]
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"trials.jsonl, line 2 is damaged") as caught:
        Journal(path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == content
    path.write_bytes(b"".join(lines))
    Journal(path).close()  # the refused opening left no lock behind


@pytest.mark.parametrize("schema", [2, None, "1"])
def test_another_schema_is_refused_and_left_alone(path, schema):
    content = json.dumps({**row("a"), "schema": schema}) + "\n"
    written(path).write_text(content)
    with pytest.raises(InputError, match=r"line 1 has schema .*, this release reads 1"):
        Journal(path)
    assert path.read_text() == content


def test_a_second_writer_is_refused_in_this_process_and_in_others(path):
    program = f"from automl.journal import Journal; Journal({str(path)!r})"
    with Journal(path):
        with pytest.raises(InputError, match="is being written by another run"):
            Journal(path)
        other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert "is being written by another run" in other.stderr
        assert Journal.read(path) == []
    Journal(path).close()


def test_kill_9_leaves_every_finished_row_and_no_lock(path):
    program = f"""
        import itertools
        from automl.journal import Journal
        journal = Journal({str(path)!r})
        for i in itertools.count():
            journal.append({{"key": str(i)}})
            print(i, flush=True)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True
    )
    for _ in range(20):
        last = int(process.stdout.readline())
    time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read().split("\n")[:-1]
    process.wait()
    process.stdout.close()
    last = max([last, *map(int, rest)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Journal(path) as journal:
            assert [one["key"] for one in journal][: last + 1] == [str(i) for i in range(last + 1)]


def test_a_failed_write_leaves_the_file_as_it_was(path, monkeypatch):
    with Journal(path) as journal:
        journal.append(row("a"))
        before = path.read_bytes()

        def full(_):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            with pytest.raises(OSError, match="No space"):
                journal.append(row("b"))
        assert path.read_bytes() == before and "b" not in journal
        journal.append(row("c"))
    assert [one["key"] for one in Journal.read(path)] == ["a", "c"]


def test_a_row_without_key_is_refused(path):
    with Journal(path) as journal, pytest.raises(ValueError, match="must be a string, got None"):
        journal.append({"score": 1.0})


def test_no_row_is_added_after_closing(path):
    journal = Journal(path)
    journal.close()
    with pytest.raises(ValueError, match="closed"):
        journal.append(row("a"))
    journal.close()


def test_places_that_cannot_be_written_or_read_are_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write journal"):
        Journal(tmp_path / "file" / "trials.jsonl")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="cannot write journal"):
        Journal(tmp_path / "folder")
    with pytest.raises(InputError, match="cannot read journal"):
        Journal.read(tmp_path / "none.jsonl")


def test_the_table_has_a_column_per_metric_and_cost(path):
    with Journal(path) as journal:
        journal.append(row("a", metrics={"top1": 0.5, "score": 7.0}, costs={"macs": 9.0}))
        journal.append(row("b", status="failed", score=None, metrics=None, costs=None, error="no"))
        journal.write_parquet(path.with_name("trials.parquet"))
        table = journal.to_frame()
    again = pd.read_parquet(path.with_name("trials.parquet"))
    for frame in (table, again):
        assert frame["top1"].iloc[0] == 0.5 and frame["macs"].iloc[0] == 9.0
        assert frame["metric_score"].iloc[0] == 7.0 and frame["score"].iloc[0] == 0.1 + 0.2
        assert frame["status"].tolist() == ["ok", "failed"] and math.isnan(frame["top1"].iloc[1])
        assert list(frame["kept"].iloc[0]) == [1, 2]
    assert sorted(p.name for p in path.parent.iterdir() if ".partial" in p.name) == []


def test_an_empty_journal_is_an_empty_table(path):
    with Journal(path) as journal:
        assert len(journal.to_frame()) == 0
        journal.write_parquet(path.with_name("trials.parquet"))
    assert len(pd.read_parquet(path.with_name("trials.parquet"))) == 0


def test_pandas_reads_the_file_as_it_is(path):
    assert pd.read_json(written(path, "a", "b"), lines=True)["key"].tolist() == ["a", "b"]
