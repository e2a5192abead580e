"""Several processes of this machine, each with the shared data mapped and one item at a time.

A pool of its own, because of what those at hand do when a worker dies: ``ProcessPoolExecutor`` and
joblib give up all work, ``multiprocessing.Pool`` waits for ever, and none takes a time limit. Here
the parent waits on all connections and on the processes themselves (``connection.wait``), so that
a dead worker is seen at once, replaced, and nothing but its own item is tried again.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import time
import traceback
import types
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing import connection as mp_connection
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from multiprocessing.util import Finalize
from typing import Any

from automl.engines import Done
from automl.engines.base import Isolated, Job, check_count
from automl.engines.errors import one_line, too_slow
from automl.engines.memory import Block, Message
from automl.engines.packing import Packed
from automl.engines.worker import RAISED, READY, UNUSABLE, main, torch_settings
from automl.types import InputError

#: Workers that may die in a row before one has started, unless items may lose more of them.
_STARTS = 3
#: Seconds that a worker may take to start, however long items may take.
_START_S = 300.0
#: What numeric libraries besides torch take for the number of threads when they are loaded.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(eq=False)
class _Worker:
    process: SpawnProcess
    connection: Connection
    since: float  # when it was started or got its job
    ready: bool = False
    job: Job | None = None
    holds: set[int] = field(default_factory=set)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()
        self.process.close()


class Processes(Isolated[Block]):
    """Runs items in ``n`` processes of this machine.

    They are started when the first items come, no more than there are items, and stay until
    ``close``. Each computes with ``threads`` threads, so that results are those of this process
    with as many, bit for bit.
    """

    def __init__(
        self,
        n: int | None = None,
        *,
        timeout_s: float | None = 3600.0,
        retries: int = 2,
        threads: int | None = 1,
    ) -> None:
        """Starts nothing yet.

        Args:
            n: How many processes; None: as many as this one may use CPUs.
            timeout_s: Seconds after which an item's process is taken to hang and killed; None:
                never.
            retries: How often an item is tried again whose process was killed or hung; so many
                processes, or two, may also die in a row while they start.
            threads: CPU threads of each process; None: as many as torch has here.

        Raises:
            ValueError: An argument breaks its rule.
        """
        super().__init__(timeout_s, retries, threads)
        self.workers = check_count("Processes.n", n, 1) or _cpus()
        self._pool: list[_Worker] = []
        self._failed_starts = 0
        # Also when the interpreter ends, and before it waits for child processes.
        self._stop = Finalize(self, _stop, args=(self._pool, self._blocks), exitpriority=10)

    def close(self) -> None:
        """See ``Engine``."""
        self._closed = True
        self._stop()
        self._data.clear()

    # ---- one submission

    def _keep(self, packed: Packed) -> Block:
        return Block(packed)

    def _run(self, function: bytes, waiting: deque[Job], handle: int) -> Iterator[Done]:
        left = len(waiting)
        try:
            while left:
                self._assign(function, waiting, handle)
                finished = self._wait(waiting)
                self._assign(function, waiting, handle)  # before the results are looked at
                left -= len(finished)
                yield from finished
        finally:
            for worker in [one for one in self._pool if one.job is not None]:
                self._remove(worker)

    def _assign(self, function: bytes, waiting: deque[Job], handle: int) -> None:
        """Gives waiting jobs to idle workers and starts as many workers as can be used."""
        idle = [worker for worker in self._pool if worker.job is None]
        for worker in [worker for worker in idle if worker.ready]:
            if not waiting:
                return
            job = waiting.popleft()
            if not self._give(worker, job, function, handle):
                waiting.appendleft(job)
        starting = sum(not worker.ready for worker in self._pool)
        for _ in range(min(self.workers - len(self._pool), len(waiting) - starting)):
            self._pool.append(_start(torch_settings(self._threads)))

    def _give(self, worker: _Worker, job: Job, function: bytes, handle: int) -> bool:
        """Sends a job; whether the worker was there to take it."""
        message: Message | None = None
        if handle not in worker.holds:
            message = self._blocks[handle].message
        try:
            worker.connection.send((handle, message, function, job.payload))
        except OSError:
            self._remove(worker)
            return False
        worker.holds.add(handle)
        worker.job, worker.since = job, time.monotonic()
        job.attempts += 1
        return True

    def _wait(self, waiting: deque[Job]) -> list[Done]:
        """Waits until something happens; returns the jobs that it ended."""
        sources: list[Any] = [worker.connection for worker in self._pool]
        sources += [worker.process.sentinel for worker in self._pool]
        happened = set(mp_connection.wait(sources, self._patience()))
        finished = []
        for worker in list(self._pool):
            dead = worker.process.sentinel in happened
            if worker.connection in happened:
                done = self._hear(worker, waiting)
            elif dead or time.monotonic() >= self._deadline(worker):
                done = self._lose(worker, waiting, dead)
            else:
                continue
            if done is not None:
                finished.append(done)
        return finished

    def _hear(self, worker: _Worker, waiting: deque[Job]) -> Done | None:
        try:
            kind, value, detail = worker.connection.recv()
        except (EOFError, OSError, pickle.UnpicklingError):  # it died, maybe while it spoke
            return self._lose(worker, waiting, dead=True)
        except Exception as error:  # what came is whole, and its own code does not take it back
            lost, worker.job = worker.job, None
            if lost is None:
                raise
            why = f"the result cannot be read: {one_line(error)}"
            return Done(lost.index, None, why, traceback.format_exc(), lost.attempts)
        if kind == READY:
            worker.ready, self._failed_starts = True, 0
            return None
        if kind == UNUSABLE:
            raise InputError(f"a worker cannot load what the trials share: {value}")
        job, worker.job = worker.job, None
        assert job is not None  # for the type checker: workers answer jobs
        if kind == RAISED:
            return Done(job.index, None, value, detail, job.attempts)
        return Done(job.index, value, attempts=job.attempts)

    # ---- workers that are lost

    def _deadline(self, worker: _Worker) -> float:
        if not worker.ready:
            return worker.since + _START_S
        if worker.job is None or self._timeout_s is None:
            return float("inf")
        return worker.since + self._timeout_s

    def _patience(self) -> float | None:
        """Seconds until the next worker is out of time; None where none can be."""
        next_one = min((self._deadline(worker) for worker in self._pool), default=float("inf"))
        return None if next_one == float("inf") else max(next_one - time.monotonic(), 0.0)

    def _lose(self, worker: _Worker, waiting: deque[Job], dead: bool) -> Done | None:
        """Removes a worker that died or hangs; its job waits again, or is given up."""
        started, job = worker.ready, worker.job
        code = self._remove(worker, wait=dead)
        reason = _how(code) if dead or self._timeout_s is None else too_slow(self._timeout_s)
        if not started:
            self._failed_starts += 1
            if self._failed_starts >= max(_STARTS, self._retries + 1):
                raise InputError(f"workers do not start: {reason}; choose engine=serial")
        return None if job is None else self._lost(job, waiting, reason)

    def _remove(self, worker: _Worker, wait: bool = False) -> int | None:
        """Takes a worker out of the pool, dead; returns its exit code where it died by itself."""
        self._pool.remove(worker)
        if wait:
            worker.process.join(1.0)
        code = worker.process.exitcode
        worker.kill()
        return code


def _cpus() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _how(code: int | None) -> str:
    """How a process ended."""
    if code is None or code >= 0:
        return f"its process ended with exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    hint = ", maybe for want of memory" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{hint}"


def _start(settings: dict[str, Any]) -> _Worker:
    context = multiprocessing.get_context("spawn")  # a fork would copy torch's locks, not threads
    here, there = context.Pipe()
    process = context.Process(target=main, args=(there, settings), name="prunepilot worker")
    with _environment(settings["threads"]), _no_interrupt(), _no_main_module(), _named_spawn():
        process.start()
    there.close()
    return _Worker(process, here, time.monotonic())


@contextlib.contextmanager
def _environment(threads: int) -> Iterator[None]:
    """Variables that a child process starts with."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _named_spawn() -> Iterator[None]:
    """Children are told the default's name; loky's own, in its workers, they do not know."""
    before = multiprocessing.get_start_method(allow_none=True)
    if before is None or before in multiprocessing.get_all_start_methods():
        yield
        return
    multiprocessing.set_start_method("spawn", force=True)
    try:
        yield
    finally:
        multiprocessing.set_start_method(before, force=True)


@contextlib.contextmanager
def _no_interrupt() -> Iterator[None]:
    """Children start with Ctrl-C blocked: it reaches all processes, but is for the parent."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _no_main_module() -> Iterator[None]:
    """Children do not run the user's script again, guarded by ``__main__`` or not.

    They need nothing of it: what comes from ``__main__`` is pickled with its code.
    """
    script = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def _stop(pool: list[_Worker], blocks: dict[int, Block]) -> None:
    for worker in pool:
        worker.kill()
    pool.clear()
    for block in blocks.values():
        block.free()
    blocks.clear()
