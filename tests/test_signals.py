import os
import signal
import subprocess
import sys
import time

import pytest

from automl.signals import Terminated, as_exceptions, behind, exit_code, unmasked, word


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


class Finalised:
    """An object whose finaliser is busy when a signal comes."""

    def __init__(self, number):
        self.number = number

    def __del__(self):
        os.kill(os.getpid(), self.number)
        time.sleep(0)  # the exception is raised here, where Python drops it


@pytest.mark.parametrize(
    ("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)]
)
def test_a_signal_in_a_finaliser_is_not_dropped(number, kind, capfd):
    usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before, hook = signal.signal(number, usual), sys.unraisablehook
    try:
        with pytest.raises(kind), as_exceptions():
            Finalised(number)
            time.sleep(60)
        assert signal.getsignal(number) is usual
    finally:
        signal.signal(number, before)
    assert sys.unraisablehook is hook
    assert capfd.readouterr().err == ""


def test_other_errors_of_finalisers_are_shown_as_before():
    code = (
        "from automl.signals import as_exceptions\n"
        "class Broken:\n"
        "    def __del__(self): raise ValueError('of a finaliser')\n"
        "with as_exceptions(): Broken()\n"
        "print('on it goes')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "on it goes\n")
    assert "ValueError: of a finaliser" in done.stderr


def signalled(number):
    """A library that makes another error of a signal, and does not say of which."""
    try:
        os.kill(os.getpid(), number)
        time.sleep(60)
    except KeyboardInterrupt:
        pass
    raise ValueError("could not determine the shape")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_error_after_a_signal_is_that_signal(number):
    usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, usual)
    try:
        with pytest.raises(KeyboardInterrupt) as caught, as_exceptions(), unmasked():
            signalled(number)
        assert exit_code(caught.value) == 128 + number
        assert isinstance(caught.value.__cause__, ValueError)
        # One that came earlier, to another command of this process, is of no account.
        with pytest.raises(ValueError, match="another"), as_exceptions(), unmasked():
            raise ValueError("another")
    finally:
        signal.signal(number, before)
    assert behind(ValueError("later")) is None
