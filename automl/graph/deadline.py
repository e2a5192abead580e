"""Time limits of the analysis, which interrupt torch in the midst of its work."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from copy import copy
from typing import Any

import torch
from torch._guards import TracingContext, tracing
from torch._ops import _len_torch_dispatch_stack_pre_dispatch, _pop_mode_from_pre_dispatch
from torch.overrides import _pop_mode as _pop_mode_of_functions
from torch.utils._python_dispatch import _pop_mode

from automl.types import InputError

#: Timers of the system take no more than some centuries; nobody waits for one of three years.
_LONGEST_TIMER_S = 1e8
#: What torch.compiler says of itself while it works.
_FLAGS = ("_is_exporting_flag", "_is_compiling_flag")
#: Callbacks of weak references, and where.
_REMOVING = ("remove", "_remove")
_WEAK = ("weakref", "_weakrefset", "torch.utils.weak")
#: Between the exceptions that end code which swallows them.
_AGAIN_S = 0.5


@contextlib.contextmanager
def modes_restored() -> Iterator[None]:
    """Takes off the modes of torch that a block leaves on where it is cut in the midst of torch.

    Left on, the mode of an export that did not end would make fake tensors of all later ones.
    """
    # Functions of torch's own, without types.
    early_modes: Any = _len_torch_dispatch_stack_pre_dispatch
    pop_early: Any = _pop_mode_from_pre_dispatch
    pop: Any = _pop_mode
    pop_of_functions: Any = _pop_mode_of_functions
    dispatch, function = torch._C._len_torch_dispatch_stack(), torch._C._len_torch_function_stack()
    early = early_modes()
    flags = {name: getattr(torch.compiler, name, False) for name in _FLAGS}
    with torch.set_grad_enabled(torch.is_grad_enabled()), tracing(TracingContext.try_get()):
        try:
            yield
        finally:
            while early_modes() > early:
                pop_early()
            while torch._C._len_torch_dispatch_stack() > dispatch:
                pop()
            while torch._C._len_torch_function_stack() > function:
                pop_of_functions()
            for name, value in flags.items():
                setattr(torch.compiler, name, value)


def _is_freeing(frame: Any) -> bool:
    """Whether code that Python runs as it frees an object is under way."""
    while frame is not None:
        name, module = frame.f_code.co_name, frame.f_globals.get("__name__")
        if name == "__del__" or (name in _REMOVING and module in _WEAK):
            return True
        frame = frame.f_back
    return False


class Deadline:
    """A time limit for the analysis, checked between steps and, where possible, inside them."""

    def __init__(self, seconds: float) -> None:
        """Starts the clock."""
        if seconds <= 0:
            raise InputError(f"deadline_s must be > 0, got {seconds}")
        self.seconds = seconds
        self._ends: list[tuple[Callable[[], float], float]] = []
        self._set(time.monotonic, seconds)

    def of_computing(self, seconds: float) -> Deadline:
        """One that is over with this one, or when this thread has computed for so long.

        Whether a step is done in time is then not up to what else the machine does.
        """
        found = copy(self)
        found.seconds, found._ends = seconds, [*self._ends]
        found._set(time.thread_time, seconds)
        return found

    def _set(self, clock: Callable[[], float], seconds: float) -> None:
        self._ends.append((clock, clock() + seconds))

    @property
    def left(self) -> float:
        """Seconds that are left at least, more than 0."""
        return max(min(end - clock() for clock, end in self._ends), 1e-3)

    def check(self) -> None:
        """Raises InputError once the time is over."""
        if any(clock() > end for clock, end in self._ends):
            raise InputError(
                f"tracing took longer than {self.seconds:g} s; give it more (deadline_s, on the "
                "command line trace_deadline_s) or smaller example inputs"
            )

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Also interrupts code that never checks (POSIX, main thread; elsewhere a plain check)."""
        if threading.current_thread() is not threading.main_thread() or not hasattr(
            signal, "setitimer"
        ):
            yield
            self.check()
            return

        def over(signum: int, frame: Any) -> None:
            if not _is_freeing(frame):  # where what is raised would only be printed
                self.check()

        before = signal.signal(signal.SIGALRM, over)
        # Again and again, since code that runs at the time may swallow what is raised; not at once,
        # so that what cleans up behind the first is not cut too.
        signal.setitimer(signal.ITIMER_REAL, min(self.left + 1e-3, _LONGEST_TIMER_S), _AGAIN_S)
        with modes_restored():
            try:
                yield
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, before)
