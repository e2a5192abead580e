"""What runs in a worker process: it answers jobs until its parent is gone."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

from automl.allocator import keep_freed_memory
from automl.engines.errors import one_line
from automl.engines.memory import open_block

#: What a worker says: that it waits for jobs, a result, an exception, or that it cannot go on.
READY, VALUE, RAISED, UNUSABLE = "ready", "value", "raised", "unusable"


def main(connection: Connection, settings: Mapping[str, Any]) -> None:
    """Reads (handle, block or None, function, item) and answers each.

    Args:
        connection: To the parent; its end is the worker's.
        settings: Of torch, from ``torch_settings``.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    apply_torch_settings(settings)
    keep_freed_memory()
    data: dict[int, Any] = {}
    kept: list[Any] = []
    # The parent is gone, or has closed the connection to let the worker go.
    with contextlib.suppress(EOFError, OSError):
        connection.send((READY, None, ""))
        while True:
            handle, message, function, item = connection.recv()
            try:
                if message is not None:
                    data[handle], memory = open_block(message)
                    kept.append(memory)
            except Exception as error:
                connection.send((UNUSABLE, one_line(error), traceback.format_exc()))
                continue
            _answer(connection, call(data[handle], function, item))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # tensors still point into shared memory, which Python would complain about


def call(data: Any, function: bytes, item: bytes) -> tuple[str, Any, str]:
    """Runs one job.

    Args:
        data: The function's first argument.
        function: Pickled.
        item: Its second argument, pickled.

    Returns:
        ``VALUE`` with the value, or ``RAISED`` with the error in one line; and the traceback.
    """
    try:
        return VALUE, pickle.loads(function)(data, pickle.loads(item)), ""
    except (Exception, SystemExit) as error:
        return RAISED, one_line(error), traceback.format_exc()


def _answer(connection: Connection, answer: tuple[str, Any, str]) -> None:
    try:
        content = ForkingPickler.dumps(answer)
    except Exception as error:  # a result's own code may raise anything
        content = ForkingPickler.dumps(
            (RAISED, f"the result cannot be sent: {one_line(error)}", "")
        )
    connection.send_bytes(content)


def _end_with_parent() -> None:
    """Ends this process, in the middle of whatever it does, when its parent has died."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def torch_settings(threads: int | None) -> dict[str, Any]:
    """What has to be equal in all processes for results to be equal.

    Args:
        threads: Of each worker; None: as many as this process has.
    """
    import torch

    return {
        "threads": threads or torch.get_num_threads(),
        "default_dtype": torch.get_default_dtype(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "mkldnn": bool(torch.backends.mkldnn.enabled),
    }


def apply_torch_settings(settings: Mapping[str, Any]) -> None:
    """Sets in this process what ``torch_settings`` read in another."""
    import torch

    torch.set_num_threads(settings["threads"])
    torch.set_default_dtype(settings["default_dtype"])
    torch.set_float32_matmul_precision(settings["matmul_precision"])
    torch.use_deterministic_algorithms(settings["deterministic"], warn_only=settings["warn_only"])
    torch.backends.mkldnn.enabled = settings["mkldnn"]
