"""Networks whose forward never returns: Ctrl-C and the deadline end the command in one line."""

import signal
import time

import pytest
from command import start

NETWORK = """
from pathlib import Path

import torch
from torch import nn


class Endless(nn.Linear):
    def __init__(self, in_export):
        super().__init__(64, 10)
        self.in_export = in_export

    def forward(self, x):
        while torch.compiler.is_exporting() or not self.in_export:
            Path("began").touch()
        return super().forward(x.flatten(1))
"""


def endless(tmp_path, in_export, *more):
    """The command once it is within the forward."""
    (tmp_path / "mine.py").write_text(NETWORK)
    process = start(
        "search", "model=mine.Endless", f"model.kwargs.in_export={in_export}",
        "model.input_shape=[1,8,8]", "data=digits", "budget.macs=0.5", "device=cpu",
        f"run_dir={tmp_path / 'run'}", *more, cwd=tmp_path,
    )  # fmt: skip
    end = time.monotonic() + 120
    while not (tmp_path / "began").exists():
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            pytest.fail(f"the forward was never called: {process.communicate()}")
        time.sleep(0.01)
    return process


@pytest.mark.parametrize("in_export", [True, False])
def test_ctrl_c_ends_it(tmp_path, in_export):
    process = endless(tmp_path, in_export)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip() == "prunepilot: interrupted"


def test_the_deadline_ends_it(tmp_path):
    process = endless(tmp_path, False, "trace_deadline_s=0.5")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err.count("\n") == 1 and "trace_deadline_s" in err
