"""Where the cells of a sweep run: here one after the other, in processes, or on a cluster.

A launcher maps a function over cells and hands back results as they finish, in any order; cells do
not depend on each other. Packages are imported when a launcher starts.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from automl.types import InputError

#: Runs one cell; what it returns is handed on.
Run = Callable[[Any], Any]

_POLL_S = 1.0


class Launcher(Protocol):
    """Runs cells."""

    def launch(self, run: Run, cells: Sequence[Any], folder: Path) -> Iterator[tuple[Any, Any]]:
        """Runs every cell.

        Args:
            run: Takes a cell; picklable, and raises nothing of its own.
            cells: What it is called with.
            folder: The sweep's folder, for logs.

        Yields:
            (cell, what ``run`` returned, or the exception of a cell whose process was lost).

        Raises:
            InputError: A package that the launcher needs is not installed.
        """


@dataclass(frozen=True)
class Basic:
    """One cell after the other, in this process; traces and networks are shared between them."""

    def launch(self, run: Run, cells: Sequence[Any], folder: Path) -> Iterator[tuple[Any, Any]]:
        """See :class:`Launcher`."""
        for cell in cells:
            yield cell, run(cell)


@dataclass(frozen=True)
class Joblib:
    """Several cells at a time on this machine.

    A killed worker is reported with its cell, and the other cells go on in fresh ones.

    Attributes:
        jobs: Processes.
    """

    jobs: int = 2

    def __post_init__(self) -> None:
        """Checks the number of processes."""
        if not isinstance(self.jobs, int) or self.jobs < 1:
            raise InputError(f"launcher.jobs must be a whole number >= 1, got {self.jobs!r}")

    def launch(self, run: Run, cells: Sequence[Any], folder: Path) -> Iterator[tuple[Any, Any]]:
        """See :class:`Launcher`."""
        try:
            from joblib.externals.loky import FIRST_COMPLETED, wait
        except ImportError:
            raise _needs("joblib") from None

        run = _Tethered(run, os.getpid())
        waiting, suspects = list(cells), []
        running: dict[Any, Any] = {}  # by their futures
        while waiting:
            with _workers(self.jobs) as executor:
                while _fill(running, executor, run, waiting, self.jobs + 1):
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        cell = running.pop(future)
                        if future.exception() is None:
                            yield cell, future.result()
                        else:  # its worker died, or another's death broke the pool
                            suspects.append(cell)
        # One worker's death fails all cells that were running; alone, the guilty one shows itself.
        for cell in suspects:
            with _workers(1) as executor:
                future = executor.submit(run, cell)
                error = future.exception()
                yield cell, future.result() if error is None else error


@dataclass(frozen=True)
class _Tethered:
    """A cell's work that ends with the process that asked for it, however that one ends.

    Else a worker of a sweep that was killed outright would go on with cells that the same command
    wants to finish.
    """

    run: Run
    parent: int

    def __call__(self, cell: Any) -> Any:
        """Does the work."""
        ended = threading.Event()
        threading.Thread(target=self._watch, args=(ended,), daemon=True).start()
        try:
            return self.run(cell)
        finally:
            ended.set()

    def _watch(self, ended: threading.Event) -> None:
        while not ended.wait(_POLL_S):
            if os.getppid() != self.parent:
                os._exit(1)  # what is finished is on the disk


@contextmanager
def _workers(jobs: int) -> Iterator[Any]:
    """Processes that end with the block, whatever ends it.

    Those of a sweep that is interrupted would else run all cells that wait, before Python exits.
    """
    from joblib.externals.loky import get_reusable_executor

    executor = get_reusable_executor(max_workers=jobs, kill_workers=True)
    try:
        yield executor
    finally:
        executor.shutdown(kill_workers=True)


def _fill(
    running: dict[Any, Any], executor: Any, run: Run, waiting: list[Any], most: int
) -> dict[Any, Any]:
    """Hands out cells that wait until so many run; none where a worker's death broke the pool.

    One more than there are workers waits for the first that is free. All at once, loky's thread
    would stumble over those that it has not handed out yet when workers are killed.
    """
    from joblib.externals.loky import BrokenProcessPool

    with suppress(BrokenProcessPool):
        while waiting and len(running) < most:
            future = executor.submit(run, waiting[0])
            running[future] = waiting.pop(0)
    return running


@dataclass(frozen=True)
class Slurm:
    """Every cell a job, by submitit; its logs are in the sweep's folder under ``slurm``.

    Attributes:
        cluster: ``slurm``, or ``local`` (processes here, to try it); None is ``slurm``.
        partition: Where to submit to.
        minutes: Time limit of a job.
        cpus: Per job.
        memory_gb: Per job.
        gpus: Per job.
        at_once: Jobs that run at the same time.
        setup: Shell lines before a job starts.
    """

    cluster: str | None = None
    partition: str | None = None
    minutes: int = 1440
    cpus: int = 1
    memory_gb: float = 8
    gpus: int = 0
    at_once: int = 64
    setup: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Checks the numbers."""
        least = {"minutes": 1, "cpus": 1, "gpus": 0, "at_once": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise InputError(f"launcher.{name} must be a whole number >= {low}, got {value!r}")
        if not isinstance(self.memory_gb, int | float) or not self.memory_gb > 0:
            raise InputError(f"launcher.memory_gb must be above 0, got {self.memory_gb!r}")
        lines: Any = self.setup
        if isinstance(lines, str):
            raise InputError(
                f"launcher.setup must be a list of lines, as [module load cuda], got {self.setup!r}"
            )

    def launch(self, run: Run, cells: Sequence[Any], folder: Path) -> Iterator[tuple[Any, Any]]:
        """See :class:`Launcher`."""
        try:
            import submitit
        except ImportError:
            raise _needs("slurm") from None

        local = self.cluster == "local"
        if not local and shutil.which("sbatch") is None:
            raise InputError(
                "launcher=slurm: no sbatch here; launcher.cluster=local runs the cells on this "
                "machine, launcher=joblib in parallel"
            )
        try:
            # By name: left to itself, submitit takes this machine where it misses a command.
            executor = submitit.AutoExecutor(folder / "slurm", cluster=self.cluster or "slurm")
        except (RuntimeError, ValueError) as error:
            raise InputError(f"launcher=slurm: {error}; or set launcher.cluster=local") from None
        executor.update_parameters(name="prunepilot", timeout_min=self.minutes, **self._resources())
        waiting, jobs = list(cells), dict[Any, Any]()
        try:
            while waiting or jobs:
                # A cluster counts the jobs of an array by itself, this machine does not.
                some = waiting[: max(0, self.at_once - len(jobs))] if local else waiting
                if some:
                    jobs |= zip(executor.map_array(run, some), some, strict=True)
                    waiting = waiting[len(some) :]
                done = [job for job in jobs if job.done()]
                for job in done:
                    lost = job.exception()
                    yield jobs.pop(job), job.result() if lost is None else lost
                if not done:
                    time.sleep(_POLL_S)
        finally:
            for job in jobs:  # of a sweep that is interrupted; the same command runs them again
                job.cancel()

    def _resources(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "cpus_per_task": self.cpus,
            "mem_gb": self.memory_gb,
            "slurm_array_parallelism": self.at_once,
        }
        if self.gpus:
            found["gpus_per_node"] = self.gpus
        if self.partition:
            found["slurm_partition"] = self.partition
        if self.setup:
            found["slurm_setup"] = list(self.setup)
        return found


def _needs(extra: str) -> InputError:
    return InputError(f"launcher={extra} needs a package: pip install 'prunepilot[{extra}]'")
