import os
import signal

import pytest

from automl.signals import Terminated, as_exceptions, exit_code, word


@pytest.mark.parametrize(
    ("number", "kind", "code"),
    [
        (signal.SIGINT, KeyboardInterrupt, 130),
        (signal.SIGTERM, Terminated, 143),
        (signal.SIGHUP, Terminated, 129),  # a terminal that was closed
    ],
)
def test_signals_become_exceptions_and_exit_codes(number, kind, code):
    # In the background or under nohup they are ignored, and would be left so.
    usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, usual)
    try:
        with pytest.raises(kind) as caught, as_exceptions():
            os.kill(os.getpid(), number)
    finally:
        signal.signal(number, before)
    assert exit_code(caught.value) == code
    assert word(caught.value) == ("interrupted" if number == signal.SIGINT else "terminated")
