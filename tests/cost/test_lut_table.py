import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from automl.cost.lut.calibration import calibrate
from automl.cost.lut.entry import Entry
from automl.cost.lut.fingerprint import Fingerprint
from automl.cost.lut.signature import Signature
from automl.cost.lut.table import Table, json_file
from automl.types import InputError

HERE = Fingerprint("cpu", "AMD EPYC", "AVX512", 2, 1, "2.13.0+cpu")


def conv(into: int, out: int) -> Signature:
    return Signature(
        "conv2d", 1, into, out, 8, 8, (3, 3), (1, 1), fused=("relu",), detail='{"bias":true}'
    )


ROWS = [(conv(8, 16), Entry(12, 30.5, 1.25, 30.0)), (conv(16, 16), Entry(12, 41.0, 2.0, 40.0))]


def counts(sums):
    return np.arange(2 * len(sums)).reshape(-1, 2)


@pytest.fixture
def table(tmp_path):
    table = Table(tmp_path / "a.json", HERE)
    table.add(ROWS)
    return table


def test_what_was_added_is_read_back(table):
    assert Table.load(table.path).entries == dict(ROWS)
    assert Table.load(table.rows_path).fingerprint == HERE


def test_a_signature_that_is_there_is_not_changed(table):
    table.add([(conv(8, 16), Entry(1, 99.0, 0.0)), (conv(4, 4), Entry(1, 5.0, 0.0))])
    entries = Table.load(table.path).entries
    assert entries[conv(8, 16)].median_us == 30.5 and entries[conv(4, 4)].median_us == 5.0


def test_two_processes_add_to_one_table(table):
    other = Table.load(table.path)
    other.add([(conv(4, 4), Entry(1, 5.0, 0.0))])
    table.add([(conv(4, 8), Entry(1, 6.0, 0.0)), (conv(4, 4), Entry(1, 9.0, 0.0))])
    entries = Table.load(table.path).entries
    assert len(entries) == 4 and entries[conv(4, 4)].median_us == 5.0
    assert table.entries == entries


def test_rows_that_were_never_sealed_are_dropped_and_measured_again(table):
    with open(table.rows_path, "a") as file:
        file.write("conv2d,1,2,3x3,1x")  # a process that was killed in the middle
    again = Table.load(table.path)
    assert again.entries == dict(ROWS)
    again.add([(conv(4, 4), Entry(1, 5.0, 0.0))])
    assert len(Table.load(table.path).entries) == 3


def test_calibrations_are_kept_beside_the_rows(table):
    sums = np.array([1.0, 0.5, 0.7, 0.2])
    calibration = calibrate(counts(sums), sums, 2 * sums + 0.1, 2)
    table.calibrate("net", calibration)
    table.add([(conv(4, 4), Entry(1, 5.0, 0.0))])
    assert Table.load(table.path).calibrations == {"net": calibration}


def test_a_copy_grows_without_the_original(table, tmp_path):
    copy = table.copy_to(tmp_path / "elsewhere" / "b.json")
    copy.add([(conv(4, 4), Entry(1, 5.0, 0.0))])
    assert len(Table.load(copy.path).entries) == 3
    assert Table.load(table.path).entries == dict(ROWS)


def damaged(table, how):
    rows, seal = table.rows_path, table.path
    document = json.loads(seal.read_text())
    if how == "truncated":
        rows.write_bytes(rows.read_bytes()[:-5])
    elif how == "changed":
        rows.write_text(rows.read_text().replace("30.5", "10.5"))
    elif how == "no rows":
        rows.unlink()
    elif how == "no table":
        seal.unlink()
    elif how == "torn":
        seal.write_text(seal.read_text()[:100])
    elif how == "of another kind":
        seal.write_text("[1, 2]")
    elif how == "no seal":
        del document["sha256"]
        seal.write_text(json.dumps(document))
    elif how == "odd fingerprint":
        document["fingerprint"]["cores"] = "two"
        seal.write_text(json.dumps(document))
    elif how == "odd calibration":
        document["calibrations"] = {"net": {"slope": "steep"}}
        seal.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("truncated", "is truncated"),
        ("changed", "is damaged: its rows"),
        ("no rows", "is missing beside"),
        ("no table", "there is no latency table"),
        ("torn", "is damaged: it is no JSON"),
        ("of another kind", "is no latency table of version 1"),
        ("no seal", "sha256 is missing"),
        ("odd fingerprint", "cores is 'two'"),
        ("odd calibration", "calibration is not readable"),
    ],
)
def test_damage_is_one_line_that_says_what(table, how, says):
    damaged(table, how)
    with pytest.raises(InputError, match=says) as refused:
        Table.load(table.path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("value", ["nan", "-1", "fast", ""])
def test_a_row_that_is_no_time_names_its_line(tmp_path, value):
    table = Table(tmp_path / "a.json", HERE)
    table.add(ROWS)
    text = table.rows_path.read_text().replace("41.0", value)
    table.rows_path.write_text(text)
    reseal(table)
    with pytest.raises(InputError, match="line 3 cannot be read"):
        Table.load(table.path)


def test_a_signature_twice_is_damage(table):
    lines = table.rows_path.read_text().splitlines()
    table.rows_path.write_text("\n".join([*lines, lines[-1]]) + "\n")
    reseal(table, rows=3)
    with pytest.raises(InputError, match="holds a signature twice"):
        Table.load(table.path)


def reseal(table, rows=2):
    import hashlib

    content = table.rows_path.read_bytes()
    document = json.loads(table.path.read_text())
    document |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    table.path.write_text(json.dumps(document | {"rows": rows}))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_said(table):
    table.path.parent.chmod(0o500)
    try:
        with pytest.raises(InputError, match=r"cannot be written.*latency\.table"):
            table.add([(conv(4, 4), Entry(1, 5.0, 0.0))])
    finally:
        table.path.parent.chmod(0o700)


def test_a_folder_that_is_a_file_is_said(tmp_path):
    (tmp_path / "lut").write_text("")
    with pytest.raises(InputError, match=r"cannot be written.*latency\.table"):
        Table(tmp_path / "lut" / "a.json", HERE).add(ROWS)


def test_killed_at_any_moment_the_table_stays_readable(tmp_path):
    """A process that adds rows for ever is killed; whatever it sealed is there."""
    code = textwrap.dedent(
        f"""
        from pathlib import Path
        from automl.cost.lut.entry import Entry
        from automl.cost.lut.fingerprint import Fingerprint
        from automl.cost.lut.signature import Signature
        from automl.cost.lut.table import Table
        table = Table(Path({str(tmp_path / "a.json")!r}), Fingerprint("cpu", "x", "", 1, 1, "2"))
        for i in range(1, 100000):
            table.add([(Signature("conv2d", 1, i, i, 8, 8), Entry(1, 1.0, 0.0))])
            print(i, flush=True)
        """
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if int(line) >= 5:
            process.kill()
            break
    last = max([5, *(int(line) for line in process.stdout if line.strip())])
    process.wait()
    process.stdout.close()
    entries = Table.load(tmp_path / "a.json").entries
    assert len(entries) in (last, last + 1)


# ---- fingerprints


def test_what_decides_times_is_in_the_name():
    assert HERE.name == "cpu-amd-epyc-avx512-1t-float32-torch2.13"
    assert "\\" not in HERE.name and "/" not in HERE.name


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"processor": "Xeon"}, "processor"),
        ({"dtype": "bfloat16"}, "dtype"),
        ({"torch": "2.12.0"}, "torch"),
        ({"threads": 4}, "threads"),
        ({"layout": "channels_last"}, "layout"),
    ],
)
def test_another_device_is_told_by_what_differs(change, says):
    other = Fingerprint(**{**HERE.to_dict(), **change})
    (difference,) = HERE.differences(other)
    assert difference.startswith(says)


@pytest.mark.parametrize("torch", ["2.13.7", "2.13.0+cu130", "2.13.0a0+git12"])
def test_patches_and_builds_of_torch_share_a_file_and_so_a_table(torch):
    here = Fingerprint(**{**HERE.to_dict(), "torch": "2.13.0+cpu"})
    other = Fingerprint(**{**HERE.to_dict(), "torch": torch})
    assert here.name == other.name and here.differences(other) == []


def test_the_day_and_the_repeats_do_not_make_another_device():
    other = Fingerprint(**{**HERE.to_dict(), "date": "2030-01-01", "repeats": 99, "cores": 64})
    assert HERE.differences(other) == []


# ---- entries


@given(st.lists(st.floats(1, 1e6), min_size=1, max_size=50))
def test_the_faster_half_counts(times):
    entry = Entry.of(np.array(times), None)
    half = sorted(times)[: (len(times) + 1) // 2]
    assert entry.count == len(half)
    assert half[0] - 0.001 <= entry.median_us <= half[-1] + 0.001


def test_waiting_is_wall_time_without_the_cpu():
    entry = Entry.of(np.full(8, 100.0), np.full(8, 60.0))
    assert entry.waited == pytest.approx(0.4)
    assert Entry.of(np.full(8, 100.0), None).waited == 0


def test_a_table_that_was_deleted_meanwhile_is_written_whole_again(table):
    known = dict(table.entries)
    table.path.unlink()
    table.rows_path.unlink()
    extra = Signature("linear", 1, 3, 7, 1, 1)
    table.add([(extra, next(iter(known.values())))])
    assert Table.load(table.path).entries == {**known, extra: next(iter(known.values()))}


@pytest.mark.parametrize(
    ("named", "file"),
    [
        ("lut/cpu-torch2.13", "lut/cpu-torch2.13.json"),
        ("lut/a.csv", "lut/a.json"),
        ("a.json", "a.json"),
    ],
)
def test_names_of_devices_may_have_dots(named, file):
    assert json_file(Path(named)) == Path(file)
    with pytest.raises(InputError, match="is no file"):
        json_file(Path("."))
