"""Trials as tasks of a Ray cluster: how a search outgrows one machine.

Moritz et al., "Ray: A Distributed Framework for Emerging AI Applications", OSDI 2018 (arXiv
1712.05889). Ray moves the shared data to every machine once (``ray.put``), where all processes map
it; it starts processes, and says when one of them or a whole machine is lost. Which items are
tried again, and how often, is decided here, so that it is the same as with other engines.
"""

from __future__ import annotations

import contextlib
import sys
import time
import uuid
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from automl.allocator import keep_freed_memory
from automl.engines import Done
from automl.engines.base import Isolated, Job, check_count
from automl.engines.errors import one_line, too_slow
from automl.engines.packing import Packed, unpack
from automl.engines.worker import RAISED, UNUSABLE, apply_torch_settings, call, torch_settings
from automl.types import InputError

#: Seconds between two looks at how many CPUs the cluster has.
_LOOK_S = 10.0


class Ray(Isolated[tuple[Any, int]]):
    """Runs items as tasks of a Ray cluster, one CPU each.

    The same release of this package, of torch and of Python must be installed on all its machines,
    and so must the modules that the network and a scorer of the user's come from. Results are
    those of this process if the machines' processors are alike; where they are not, kernels may
    differ in the last bits.
    """

    def __init__(
        self,
        address: str | None = "auto",
        n: int | None = None,
        *,
        timeout_s: float | None = 3600.0,
        retries: int = 2,
        threads: int | None = 1,
    ) -> None:
        """Joins the cluster, unless this process has done so.

        Args:
            address: Of the cluster's head; ``auto``: the cluster that this machine belongs to;
                ``local``: a new one on this machine, which ends with this process.
            n: How many items run at a time; None: as many as the cluster has CPUs.
            timeout_s: Seconds after which a task is taken to hang, its process's start included;
                None: never.
            retries: How often an item is tried again whose process or machine was lost.
            threads: CPU threads of each task; None: as many as torch has here.

        Raises:
            InputError: Ray is not installed, or there is no such cluster.
            ValueError: An argument breaks its rule.
        """
        super().__init__(timeout_s, retries, threads)
        self._n = check_count("Ray.n", n, 1)
        self._ray = _import()
        self._joined = _join(self._ray, address or "auto", n)
        options = {"num_cpus": 1, "max_retries": 0, "max_calls": 0}
        self._task = self._ray.remote(**options)(_run)
        self._name = uuid.uuid4().hex
        self._looked, self._cpus = 0.0, 1

    @property
    def workers(self) -> int:
        """How many items run at a time: as the cluster grows and shrinks, unless ``n`` was set."""
        if self._n is not None:
            return self._n
        if time.monotonic() >= self._looked:
            self._looked = time.monotonic() + _LOOK_S
            self._cpus = max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        return self._cpus

    def close(self) -> None:
        """See ``Engine``; a cluster that was there before stays."""
        if not self._closed and self._joined:
            self._ray.shutdown()
        self._closed = True
        self._data.clear()
        self._blocks.clear()

    # ---- one submission

    def _keep(self, packed: Packed) -> tuple[Any, int]:
        """A reference to the block, and the bytes of its head."""
        import numpy as np

        block = np.empty(packed.size, np.uint8)
        packed.write(block)
        return self._ray.put(block), len(packed.head)

    def _run(self, function: bytes, waiting: deque[Job], handle: int) -> Iterator[Done]:
        running: dict[Any, Job] = {}
        settings = {**torch_settings(self._threads), "path": list(sys.path)}
        try:
            while waiting or running:
                while waiting and len(running) < self.workers:
                    job = waiting.popleft()
                    running[self._start(function, job, handle, settings)] = job
                yield from self._wait(running, waiting)
        finally:
            for task in running:
                self._cancel(task)

    def _start(self, function: bytes, job: Job, handle: int, settings: Mapping[str, Any]) -> Any:
        block, head = self._blocks[handle]
        job.attempts, job.since = job.attempts + 1, time.monotonic()
        key = f"{self._name}-{handle}"
        return self._task.remote(key, block, head, settings, function, job.payload)

    def _wait(self, running: dict[Any, Job], waiting: deque[Job]) -> list[Done]:
        """Waits until something happens; returns the jobs that it ended."""
        patience = _LOOK_S
        if self._timeout_s is not None:
            first = min(job.since for job in running.values())
            patience = min(patience, max(0.0, first + self._timeout_s - time.monotonic()))
        ready, _ = self._ray.wait(list(running), num_returns=1, timeout=patience)
        finished = [self._hear(task, running.pop(task), waiting) for task in ready]
        if self._timeout_s is not None:
            late = time.monotonic() - self._timeout_s
            for task in [task for task, job in running.items() if job.since <= late]:
                self._cancel(task)
                reason = too_slow(self._timeout_s)
                finished.append(self._lost(running.pop(task), waiting, reason))
        return [done for done in finished if done is not None]

    def _hear(self, task: Any, job: Job, waiting: deque[Job]) -> Done | None:
        try:
            kind, value, detail = self._ray.get(task)
        except self._ray.exceptions.RayTaskError as error:  # the result could not be pickled
            text = f"the result cannot be sent: {one_line(error.cause)}"
            return Done(job.index, None, text, str(error), job.attempts)
        except self._ray.exceptions.RayError as error:
            return self._lost(job, waiting, f"Ray lost the task ({type(error).__name__})")
        if kind == UNUSABLE:
            raise InputError(f"a worker cannot load what the trials share: {value}")
        if kind == RAISED:
            return Done(job.index, None, value, detail, job.attempts)
        return Done(job.index, value, attempts=job.attempts)

    def _cancel(self, task: Any) -> None:
        with contextlib.suppress(Exception):  # it may be over by now, or the cluster gone
            self._ray.cancel(task, force=True)


# ---- in the cluster's processes

#: Data that this process has opened, by engine and handle.
_OPENED: dict[str, Any] = {}


def _run(
    key: str, block: Any, head: int, settings: Mapping[str, Any], function: bytes, item: bytes
) -> tuple[str, Any, str]:
    """One task; the block's bytes lie in memory that all processes of the machine share."""
    # Modules beside the user's script or in an editable installation, where the machine has them.
    sys.path += [place for place in settings["path"] if place not in sys.path]
    if key not in _OPENED:
        try:
            _OPENED[key] = (unpack(block, head), block)
        except Exception as error:
            return UNUSABLE, one_line(error), ""
    apply_torch_settings(settings)
    keep_freed_memory()
    return call(_OPENED[key][0], function, item)


# ---- joining a cluster


def _import() -> Any:
    try:
        import ray
    except ImportError:
        raise InputError("engine=ray needs the package: pip install ray") from None
    return ray


def _join(ray: Any, address: str, n: int | None) -> bool:
    """Joins a cluster unless that was done before; whether it was done now."""
    if ray.is_initialized():
        return False
    settings: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False}
    if address == "local":
        settings["num_cpus"] = n
    try:
        ray.init(address, configure_logging=False, **settings)
    except Exception as error:  # Ray raises many kinds for clusters that it cannot reach
        raise InputError(
            f"engine.address={address}: no Ray cluster ({one_line(error)[:200]}); start one by "
            "'ray start --head', or choose engine.address=local"
        ) from error
    return True
