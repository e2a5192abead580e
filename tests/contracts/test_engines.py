"""What every engine keeps: one result per item, those of serial bit for bit, and no hangs."""

import contextlib
import os
import signal
import threading
import time
import warnings
from contextlib import closing
from pathlib import Path
from typing import ClassVar
from unittest import mock

import engine_jobs as jobs
import numpy as np
import pytest
import torch
import toy

from automl.engines import load, names
from automl.engines.serial import Serial
from automl.problem import SearchStopped
from automl.types import InputError


def layer() -> jobs.Layer:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 3, 3, 3, generator=generator)
    return jobs.Layer(weight, torch.randn(20, 3, 9, 9, generator=generator))


@pytest.fixture(scope="class")
def cluster():
    ray = pytest.importorskip("ray")
    tests = Path(jobs.__file__).parent  # workers import what the tests define
    here = {"PYTHONPATH": os.pathsep.join([str(tests), str(tests / "contracts")])}
    with warnings.catch_warnings(), mock.patch.dict(os.environ, here):
        warnings.simplefilter("ignore")  # its own, of the next releases
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="class")
def engine(request):
    with closing(load(request.cls.name, **request.cls.settings)) as engine:
        yield engine


class Fussy(toy.Scorer):
    """Fails for policies by what they keep, wherever they are scored."""

    def __call__(self, model):
        kept = model.decisions[0].kept
        if kept in (2, 3, 5, 6, 7):
            raise ValueError(f"no {kept}")
        return super().__call__(model)


def searched(engine, counts, **settings):
    """Everything that a search leaves behind, and the journal's rows in the order of trials."""
    log: list = []
    problem = toy.problem(
        scorer=Fussy(np.linspace(1, 2, 4)),
        budget={"macs": 1.0},
        rounding=1,
        journal=log,
        engine=engine,
        **settings,
    )
    _ = problem.dense
    error = None
    try:
        trials = problem.evaluate_many([problem.policy(np.full(4, n)) for n in counts])
    except SearchStopped as stopped:
        trials, error = [], str(stopped)
    ran = [(t.index, t.score, t.status, t.error, t.cached) for t in trials]
    return ran, [t.index for t in problem.trials], error, log


def is_running(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def rows(log):
    unlike = ("seconds", "time")
    plain = [{k: v for k, v in row.items() if k not in unlike} for row in log]
    return sorted(plain, key=lambda row: row["index"])


class EngineContract:
    """An engine with two workers; the fixture ``engine`` is made once per class."""

    settings: ClassVar[dict] = {}
    name = ""

    def run(self, engine, function, items, data=0):
        done = list(engine.submit(function, items, engine.put(data)))
        assert sorted(one.index for one in done) == list(range(len(items)))
        return sorted(done, key=lambda one: one.index)

    def test_every_item_gives_one_result_also_of_more_items_than_workers(self, engine):
        done = self.run(engine, jobs.times, range(50), 3.0)
        assert [one.value for one in done] == [3.0 * item for item in range(50)]
        assert all(one.error is None and one.attempts == 1 for one in done)

    def test_no_items_give_no_results(self, engine):
        assert self.run(engine, jobs.times, []) == []

    def test_results_equal_those_of_serial_bit_for_bit(self, engine):
        scales = [0.1 * i for i in range(1, 8)]
        expected = [one.value for one in self.run(Serial(), jobs.output, scales, layer())]
        assert [one.value for one in self.run(engine, jobs.output, scales, layer())] == expected

    def test_an_exception_fails_its_item_alone(self, engine):
        done = self.run(engine, jobs.odd_only, range(5))
        assert [one.value for one in done] == [None, 1, None, 3, None]
        assert done[2].error == "ValueError: 2 is even"
        assert "odd_only" in done[2].detail and done[2].attempts == 1

    def test_equal_data_are_put_once(self, engine):
        data = layer()
        assert engine.put(data) == engine.put(data) != engine.put(layer())

    def test_functions_and_data_of_a_script_or_notebook_can_be_run(self, engine):
        done = self.run(engine, lambda data, item: data + item, [1, 2], 10)
        assert [one.value for one in done] == [11, 12]

    def test_giving_up_early_leaves_the_engine_usable(self, engine):
        results = engine.submit(jobs.times, range(4), engine.put(2.0))
        next(results)
        results.close()
        assert [one.value for one in self.run(engine, jobs.times, [5], 2.0)] == [10.0]

    def test_an_unknown_handle_is_refused(self, engine):
        with pytest.raises(ValueError, match="handle must be one that put returned, got 99"):
            engine.submit(jobs.times, [1], 99)

    def test_trials_of_a_search_are_those_of_serial(self, engine):
        here, there = (searched(one, [1, 2, 4, 3, 4, 8, 9]) for one in (None, engine))
        assert here[:3] == there[:3] and rows(here[3]) == rows(there[3])
        assert [ran[2] for ran in there[0]].count("failed") == 2
        assert [ran[4] for ran in there[0]].count(True) == 1

    def test_failures_stop_a_search_where_serial_stops_whatever_finishes_first(self, engine):
        here, there = (searched(one, [1, 5, 6, 7, 8, 9, 10, 11]) for one in (None, engine))
        assert here[:3] == there[:3] and "3 trials in a row failed" in there[2]
        written = {row["index"]: row["status"] for row in there[3]}
        assert [written[index] for index in range(4)] == ["ok", "failed", "failed", "failed"]

    def test_a_closed_engine_refuses(self):
        engine = load(self.name, **self.settings)
        handle = engine.put(1)
        engine.close()
        engine.close()
        for call in (lambda: engine.put(2), lambda: engine.submit(jobs.times, [1], handle)):
            with pytest.raises(RuntimeError, match="is closed"):
                call()


class IsolatedContract(EngineContract):
    """An engine whose functions run in other processes; ``settings`` allow one retry."""

    patience_s = 2.0
    owns_processes = True

    def test_what_cannot_be_sent_is_said_before_anything_runs(self, engine):
        with pytest.raises(InputError, match="item 1 cannot be sent to another process"):
            engine.submit(jobs.times, [1, threading.Lock()], engine.put(1.0))
        with pytest.raises(InputError, match="what the trials share cannot be sent"):
            engine.put((threading.Lock(),))

    def test_a_result_that_cannot_be_sent_fails_its_item(self, engine):
        (done,) = self.run(engine, jobs.unsendable, [1])
        assert done.value is None and "the result cannot be sent" in done.error

    def test_a_result_whose_own_code_fails_costs_no_worker(self, engine):
        first, second = self.run(engine, jobs.stubborn, [False, True])
        assert "not me" in first.error and "not here" in second.error
        assert first.attempts == second.attempts == 1

    def test_a_function_that_ends_the_process_is_an_exception(self, engine):
        (done,) = self.run(engine, jobs.leaves, [1])
        assert done.error == "SystemExit: 3" and done.attempts == 1

    def test_a_killed_worker_is_replaced_and_its_item_tried_again_or_given_up(
        self, engine, tmp_path
    ):
        done = self.run(engine, jobs.killed, range(7), str(tmp_path))
        assert [one.value for one in done] == [0, 1, 2, 3, None, 5, 6]
        assert [one.attempts for one in done] == [1, 1, 2, 1, 2, 1, 1]
        assert done[4].error.startswith("WorkerLost: ")
        assert done[4].error.endswith("(tried 2 times)")

    def test_a_hung_worker_is_given_up_with_its_item_and_all_end_with_the_engine(self):
        settings = {**self.settings, "timeout_s": self.patience_s, "retries": 0}
        with closing(load(self.name, **settings)) as engine:
            done = self.run(engine, jobs.hangs, range(4))
        assert [one.value is None for one in done] == [False, True, False, False]
        for process in {one.value for one in done if one.value is not None}:
            assert not (self.owns_processes and is_running(process))
        assert done[1].error == (
            f"WorkerLost: no result within {self.patience_s:g} s; engine.timeout_s allows more"
        )


class TestSerial(EngineContract):
    name = "serial"


class TestProcesses(IsolatedContract):
    name = "process"
    settings: ClassVar[dict] = {"n": 2, "retries": 1, "timeout_s": 60.0}

    def test_counts_of_numpy_are_counts(self):
        counts = dict.fromkeys(("n", "retries", "threads"), np.int64(2))
        with closing(load(self.name, **counts)) as engine:
            assert type(engine.workers) is int and engine.workers == 2

    def test_workers_read_tensors_from_one_shared_memory(self, engine):
        places = {one.value for one in self.run(engine, jobs.mapped_from, range(4), layer())}
        assert len(places) == 1 and places.pop().startswith("/dev/shm/")

    def test_a_worker_killed_from_outside_in_the_middle_of_its_item_is_replaced(
        self, engine, tmp_path
    ):
        def kill_the_first():
            while not (at_work := os.listdir(tmp_path)):
                time.sleep(0.01)
            os.kill(int(at_work[0]), signal.SIGKILL)

        killer = threading.Thread(target=kill_the_first)
        killer.start()
        done = self.run(engine, jobs.works, [0.5, 0.5, 0.0], str(tmp_path))
        killer.join()
        assert [one.value for one in done] == [0.5, 0.5, 0.0]
        assert sum(one.attempts for one in done) == 4

    @pytest.mark.parametrize("retries", [2, 3])
    def test_workers_killed_while_they_start_are_replaced_as_often_as_items_are_tried(
        self, retries
    ):
        with closing(load(self.name, n=1, retries=retries)) as engine:
            killer = threading.Thread(target=kill_the_next, args=(engine._pool, 3))
            killer.start()
            if retries < 3:
                with pytest.raises(InputError, match=r"workers do not start: .* by SIGKILL"):
                    self.run(engine, jobs.times, [2], 3.0)
            else:
                assert [one.value for one in self.run(engine, jobs.times, [2], 3.0)] == [6.0]
            killer.join()


def kill_the_next(pool, count):
    """Kills so many workers, each as soon as it is there."""
    killed = set()
    while len(killed) < count:
        for worker in list(pool):
            with contextlib.suppress(ValueError):  # it is known to be dead meanwhile
                if worker.process.pid not in killed:
                    os.kill(worker.process.pid, signal.SIGKILL)
                    killed.add(worker.process.pid)
        time.sleep(0.001)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
class TestRay(IsolatedContract):
    """Starts a cluster of its own, which takes a quarter of a minute."""

    name = "ray"
    settings: ClassVar[dict] = {"address": "local", "n": 2, "retries": 1, "timeout_s": 60.0}
    patience_s = 20.0  # a process's start counts
    owns_processes = False  # they are the cluster's, and stay


def test_every_engine_of_conf_keeps_the_contract():
    tested = {one.name for one in (TestSerial, TestProcesses, TestRay)}
    assert tested == set(names())
