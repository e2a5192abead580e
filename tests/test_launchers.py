import multiprocessing
import operator
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from automl.engines.process import _named_spawn
from automl.launchers import Basic, Joblib, Slurm
from automl.types import InputError


@dataclass(frozen=True)
class Square:
    """A cell's work; picklable."""

    deadly: int | None = None

    def __call__(self, cell: int) -> int:
        if cell == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return cell**2


@dataclass(frozen=True)
class Mark:
    """A cell's work that takes a while, and leaves a file."""

    folder: Path

    def __call__(self, cell: int) -> int:
        time.sleep(0.2)
        (self.folder / str(cell)).touch()
        return cell


def outcomes(launcher, tmp_path, run=Square(), cells=(1, 2, 3)):
    return dict(launcher.launch(run, list(cells), tmp_path))


def test_basic_goes_through_the_cells_in_order(tmp_path):
    assert list(Basic().launch(Square(), [3, 1], tmp_path)) == [(3, 9), (1, 1)]


def test_joblib_runs_all_cells(tmp_path):
    assert outcomes(Joblib(jobs=2), tmp_path) == {1: 1, 2: 4, 3: 9}


def test_joblib_reports_the_cell_that_killed_its_worker_and_runs_the_others(tmp_path):
    found = outcomes(Joblib(jobs=2), tmp_path, Square(deadly=2), (1, 2, 3, 4))
    assert isinstance(found.pop(2), Exception)
    assert found == {1: 1, 3: 9, 4: 16}


@pytest.mark.parametrize("jobs", [1, 2])
def test_joblib_runs_no_more_cells_once_the_sweep_is_interrupted(tmp_path, jobs):
    launched = Joblib(jobs=jobs).launch(Mark(tmp_path), list(range(20)), tmp_path)
    next(launched)
    launched.close()  # as an exception in the loop over it does
    left = sorted(path.name for path in tmp_path.iterdir())
    assert 1 <= len(left) < 20
    time.sleep(0.6)
    assert sorted(path.name for path in tmp_path.iterdir()) == left


def test_slurm_runs_cells_as_jobs(tmp_path):
    pytest.importorskip("submitit", reason="needs the extra slurm")
    launcher = Slurm(cluster="local", minutes=1, setup=[])
    # Importable by a job's process, as test modules are not.
    assert outcomes(launcher, tmp_path, operator.neg, (1, 2)) == {1: -1, 2: -2}
    assert (tmp_path / "slurm").is_dir()


@dataclass(frozen=True, eq=False)
class FakeJob:
    """A job of a cluster; those that are not waited for are done."""

    cell: int
    running: set

    def done(self):
        self.running.discard(self.cell)
        return True

    def exception(self):
        return None

    def result(self):
        return -self.cell

    def cancel(self):
        raise AssertionError


class FakeExecutor:
    """Counts how many jobs have been handed out and are not done."""

    running, most = set(), 0

    def __init__(self, folder, cluster):
        pass

    def update_parameters(self, **parameters):
        pass

    def map_array(self, run, cells):
        self.running.update(cells)
        FakeExecutor.most = max(self.most, len(self.running))
        return [FakeJob(cell, self.running) for cell in cells]


def test_jobs_on_this_machine_are_no_more_at_once_than_asked_for(tmp_path, monkeypatch):
    submitit = pytest.importorskip("submitit", reason="needs the extra slurm")
    monkeypatch.setattr(submitit, "AutoExecutor", FakeExecutor)
    found = outcomes(Slurm(cluster="local", at_once=2), tmp_path, operator.neg, range(5))
    assert found == {cell: -cell for cell in range(5)}
    assert FakeExecutor.most == 2


@pytest.mark.parametrize("cluster", [None, "slurm"])
def test_slurm_is_refused_where_it_is_not_installed(tmp_path, monkeypatch, cluster):
    pytest.importorskip("submitit", reason="needs the extra slurm")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"no sbatch here; launcher\.cluster=local runs"):
        outcomes(Slurm(cluster=cluster), tmp_path)


def test_the_number_of_processes_is_checked():
    with pytest.raises(InputError, match=r"launcher\.jobs must be a whole number >= 1, got 0"):
        Joblib(jobs=0)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"minutes": 0}, "minutes must be a whole number >= 1"),
        ({"minutes": "abc"}, "minutes must be a whole number >= 1"),
        ({"memory_gb": 0}, "memory_gb must be above 0"),
        ({"setup": "abc"}, "setup must be a list of lines"),
    ],
)
def test_slurms_settings_are_checked_before_anything_is_submitted(settings, says):
    with pytest.raises(InputError, match=says):
        Slurm(**settings)


@dataclass(frozen=True)
class Start:
    """A cell's work: starts a process as the process engine does."""

    def __call__(self, cell: int) -> int | None:
        process = multiprocessing.get_context("spawn").Process(target=os.getpid)
        with _named_spawn():
            process.start()
        process.join(60)
        return process.exitcode


def test_workers_of_joblib_can_start_workers_of_their_own(tmp_path):
    assert outcomes(Joblib(jobs=1), tmp_path, Start(), (1,)) == {1: 0}


SWEEP = """
import sys
from pathlib import Path
from test_launchers import Mark
from automl.launchers import Joblib
folder = Path(sys.argv[1])
list(Joblib(jobs=1).launch(Mark(folder), list(range(100)), folder))
"""


def test_workers_of_a_sweep_that_is_killed_end_with_it(tmp_path):
    here = Path(__file__).resolve()
    path = os.pathsep.join(map(str, (here.parent, here.parents[1])))
    sweep = subprocess.Popen(
        [sys.executable, "-c", SWEEP, tmp_path], env={**os.environ, "PYTHONPATH": path}
    )
    while not (tmp_path / "1").exists():
        assert sweep.poll() is None
        time.sleep(0.05)
    sweep.kill()
    sweep.wait()
    time.sleep(2)  # the worker looks for its parent every second
    done = len(list(tmp_path.iterdir()))
    time.sleep(1)
    assert len(list(tmp_path.iterdir())) == done < 90
