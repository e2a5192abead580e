"""The short form of scripts/fault_suite.py, and that its checks can fail."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import fault_suite  # noqa: E402


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """Four kills of real processes; the folder of its runs, and what it said."""
    root = tmp_path_factory.mktemp("faults")
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "fault_suite.py"), "--kills", "4", "--per-folder", "4",
         "--cases", "random", "--seed", "1", "--keep", str(root)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return root, done


def test_four_kills_lose_nothing_and_change_nothing(suite):
    _, done = suite
    assert done.returncode == 0, done.stderr
    assert "4 kills" in done.stdout and ", 0 went wrong" in done.stdout


def test_a_lost_line_a_second_scoring_and_other_bytes_are_seen(suite, tmp_path):
    root, done = suite
    assert done.returncode == 0, done.stderr
    whole, run = root / "random-0", tmp_path / "run"
    shutil.copytree(whole, run)
    fault_suite.require_same(run, whole)
    journal = run / "trials.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    before = fault_suite.journals(run)
    journal.write_bytes(b"".join(lines[::-1]))  # as workers may finish them
    fault_suite.require_same(run, whole)

    journal.write_bytes(b"".join([*lines[:2], *lines[3:]]))
    with pytest.raises(fault_suite.Lost, match="some are gone"):
        fault_suite.require_kept(before, run)
    with pytest.raises(fault_suite.Lost, match="trials differ"):
        fault_suite.require_same(run, whole)
    for folder in (run, tmp_path / "twice"):
        shutil.copytree(whole, folder, dirs_exist_ok=True)
        (folder / "trials.jsonl").write_bytes(b"".join([*lines, lines[-1]]))
    with pytest.raises(fault_suite.Lost, match="scored twice"):
        fault_suite.require_same(run, tmp_path / "twice")
    shutil.copytree(whole, run, dirs_exist_ok=True)
    (run / "policy.json").write_text("{}")
    with pytest.raises(fault_suite.Lost, match=r"policy.json differs"):
        fault_suite.require_same(run, whole)
