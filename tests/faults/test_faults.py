"""Disks, memory, clocks and signals that misbehave: nothing finished is lost, one line says why."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from automl.cli import _known_or_raise, main
from automl.journal import Journal
from automl.paths import atomic_write
from automl.runs import RunFolder
from automl.signals import Terminated
from automl.types import InputError

ROOT = Path(__file__).resolve().parents[2]

#: A search that takes a second, as a program for this process and for others.
PROGRAM = """
import sys, torch
from torch import nn
from automl import Searcher
from automl.cli import _known_or_raise
from automl.signals import as_exceptions, exit_code

def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(32 * 16, 10),
    )

class Scorer:
    fingerprint = "the sum of the outputs"
    calls = 0

    def __init__(self, before=lambda call: None):
        self.before = before

    def __call__(self, model):
        self.calls += 1
        self.before(self.calls)
        with torch.no_grad():
            return float(model(torch.ones(1, 3, 8, 8)).sum()), {}

def searcher(folder, scorer=None):
    return Searcher(
        network(), torch.ones(2, 3, 8, 8), scorer or Scorer(), budget={"macs": 0.5}, rounding=1,
        run_dir=folder,
    )
"""


_names: dict = {}
exec(PROGRAM, _names)
searcher, Scorer = _names["searcher"], _names["Scorer"]


def python(code: str, *arguments: object, **settings) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM + textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        # Test runners in the background may hand down an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **settings,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The run folder of a search that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    searcher(folder).search(trials=30, seed=1)
    return folder


def outcome(folder: Path) -> list[tuple]:
    return [(row["policy"], row["score"]) for row in Journal.read(folder / "trials.jsonl")]


def require_same(folder: Path, whole: Path) -> None:
    assert (folder / "policy.json").read_bytes() == (whole / "policy.json").read_bytes()
    assert sorted(outcome(folder)) == sorted(outcome(whole))
    assert not [file.name for file in folder.iterdir() if file.name.endswith(".partial")]


# ---- disks


@contextlib.contextmanager
def limited(what: int, most: int):
    """Has the system itself refuse more."""
    before = resource.getrlimit(what)
    resource.setrlimit(what, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(what, before)


def test_a_file_that_may_not_grow_stops_the_search_which_then_goes_on(whole, tmp_path, capsys):
    """The limit is met in the middle of a line."""
    run = tmp_path / "run"
    with pytest.raises(OSError, match="File too large") as caught:
        with limited(resource.RLIMIT_FSIZE, 4000):
            searcher(run).search(trials=30, seed=1)
    assert _known_or_raise(caught.value) == 1
    assert capsys.readouterr().err == (
        "prunepilot: failed: File too large; what is finished is kept: mend that, then go on\n"
    )
    done = (run / "trials.jsonl").read_bytes()
    assert done.endswith(b"\n") and 3 < done.count(b"\n") < 30
    searcher(run).search(trials=30, seed=1)
    assert (run / "trials.jsonl").read_bytes().startswith(done)
    require_same(run, whole)


@pytest.fixture
def mounted(tmp_path):
    """Mounts a tiny file system with options; skips where that is not permitted."""
    place = tmp_path / "small"
    place.mkdir()

    def mount(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(place)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
            pytest.skip("mounting a file system is not permitted here")
        return place

    yield mount
    subprocess.run(["umount", str(place)], capture_output=True)


def test_a_full_disk_stops_the_search_which_then_goes_on(whole, mounted):
    place = mounted("size=24k")
    (place / "filler").write_bytes(b"x" * 8192)
    run = place / "run"
    with pytest.raises(OSError, match="No space left on device"):
        searcher(run).search(trials=30, seed=1)
    done = (run / "trials.jsonl").read_bytes()
    assert done.endswith(b"\n") and done.count(b"\n") < 30
    (place / "filler").unlink()
    subprocess.run(["mount", "-o", "remount,size=1m", str(place)], check=True)
    searcher(run).search(trials=30, seed=1)
    assert (run / "trials.jsonl").read_bytes().startswith(done)
    require_same(run, whole)


def test_a_read_only_disk_is_one_line(mounted):
    place = mounted("size=1m")
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    with pytest.raises(InputError, match="cannot be written: Read-only file system"):
        searcher(place / "run").search(trials=2)


# ---- memory


def without_memory(call):
    if call == 5:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        with limited(resource.RLIMIT_AS, used + 2**26):
            torch.ones(2**28)


def without_disk(call):
    if call == 5:
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("lack", [without_memory, without_disk])
def test_what_the_machine_lacked_is_not_held_against_a_policy(whole, tmp_path, lack):
    def until_ten(call):
        lack(call)
        if call == 10:
            raise KeyboardInterrupt

    run, first, second = tmp_path / "run", Scorer(until_ten), Scorer()
    with pytest.raises(KeyboardInterrupt):
        searcher(run, first).search(trials=30, seed=1)
    rows = Journal.read(run / "trials.jsonl")
    assert [row["status"] for row in rows] == ["ok"] * 4 + ["failed"] + ["ok"] * 4
    searcher(run, second).search(trials=30, seed=1)
    assert second.calls == len(outcome(whole)) - 8  # nine were scored, one of them in vain
    assert (run / "policy.json").read_bytes() == (whole / "policy.json").read_bytes()
    assert set(outcome(whole)) < set(outcome(run))


# ---- clocks


def test_a_clock_that_jumps_backwards_changes_nothing(whole, tmp_path, monkeypatch):
    import datetime

    import automl.runner

    class Backwards(datetime.datetime):
        hours = 0

        @classmethod
        def now(cls, tz=None):
            cls.hours += 7
            return datetime.datetime.now(tz) - datetime.timedelta(hours=cls.hours)

    real = time.time
    monkeypatch.setattr(automl.runner, "datetime", Backwards)
    monkeypatch.setattr(time, "time", lambda: real() - 3600 * Backwards.hours)
    searcher(tmp_path / "run").search(trials=30, seed=1)
    rows = Journal.read(tmp_path / "run" / "trials.jsonl")
    assert rows[-1]["time"] < rows[0]["time"]  # it did jump
    assert all(row["seconds"] >= 0 for row in rows)
    require_same(tmp_path / "run", whole)


# ---- signals, and two at once

WAITING = """
    import time
    stop = Scorer(lambda call: (print("scoring", flush=True), time.sleep(60)))
    from automl.commands import search

    class Run:
        @staticmethod
        def of(config):
            from pathlib import Path
            from automl.runs import RunFolder
            run = Run()
            run.folder = RunFolder(Path(config["run_dir"]))
            return run
        def execute(self):
            try:
                searcher(self.folder.path, stop).search(trials=3)
            finally:
                if "slow" in sys.argv:
                    print("ending", flush=True)
                    time.sleep(60)

    import automl.commands.running
    automl.commands.running.SearchRun = Run
    with as_exceptions():
        sys.exit(search.execute({"run_dir": sys.argv[1]}))
"""


def test_a_second_process_is_refused_and_sigterm_says_how_to_go_on(tmp_path):
    process = python(WAITING, tmp_path / "run")
    assert process.stdout.readline() == "scoring\n"
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}
    with pytest.raises(InputError, match="is in use by another process; wait for it"):
        searcher(tmp_path / "run").search(trials=3)
    assert before == {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 143
    hint = f"go on with: {RunFolder(tmp_path / 'run').how_to_resume}"  # as Python began it
    assert err.strip() == f"prunepilot: terminated; {hint}"


def test_ctrl_c_twice_ends_at_once(tmp_path):
    process = python(WAITING, tmp_path / "run", "slow")
    assert process.stdout.readline() == "scoring\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "ending\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.strip() == "prunepilot: stopped at once; what is finished is on the disk"


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt, 130), (Terminated, 143)])
def test_a_signal_that_breaks_the_clean_up_of_a_library_is_still_one(
    monkeypatch, capsys, stop, code
):
    """Hydra closes a file in ``finally`` that it may not have opened yet."""

    def run(_args):
        try:
            raise stop
        finally:
            raise UnboundLocalError("f")

    monkeypatch.setattr("automl.commands.doctor.run", run)
    assert main(["doctor"]) == code
    word = "interrupted" if code == 130 else "terminated"
    assert capsys.readouterr().err == f"prunepilot: {word}\n"


def test_a_folder_where_a_file_is_written_is_one_line(tmp_path, capsys):
    with pytest.raises(IsADirectoryError) as caught:
        atomic_write(tmp_path, "")
    assert _known_or_raise(caught.value) == 2
    assert capsys.readouterr().err == (
        f"prunepilot: error: {tmp_path}: Is a directory; mend that or name another; "
        "what is finished is kept\n"
    )


def test_ctrl_c_behind_a_whole_line_leaves_it(tmp_path, monkeypatch):
    """The signal may come while the line is synced: then it is a finished trial."""
    path = tmp_path / "trials.jsonl"
    sync = os.fsync

    def interrupted(file):
        sync(file)
        raise KeyboardInterrupt

    with Journal(path) as journal:
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", interrupted)
            with pytest.raises(KeyboardInterrupt):
                journal.append({"key": "a", "score": 1.0})
    assert [row["key"] for row in Journal.read(path)] == ["a"]


def test_a_run_killed_before_it_was_one_can_be_started_again(whole, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "environment.json").write_text("{}")
    (run / ".lock").touch()
    (run / ".config.yaml.0123abcd.partial").write_text("seed: ")
    searcher(run).search(trials=30, seed=1)
    require_same(run, whole)
