"""Freed memory is used again; in processes of their own, because it stays so."""

import os
import platform
import subprocess
import sys

import pytest

from automl import allocator

CODE = """
import resource
import torch
from automl.allocator import keep_freed_memory

torch.set_num_threads(1)
done = {call}
layers = torch.nn.Sequential(*[torch.nn.ReLU() for _ in range(4)])
x = torch.ones(40 << 20 >> 2)  # above the 32 MiB that glibc serves from the heap by itself
for _ in range(20):  # the heap grows until every block finds a place
    layers(x)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
layers(x)
print(done, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")


def ran(call, **environment):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUN"))}
    code = CODE.format(call=call)
    result = subprocess.run(
        [sys.executable, "-c", code], env=kept | environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    done, faults = result.stdout.split()
    return done == "True", int(faults)


@glibc
def test_a_pass_takes_no_fresh_pages():
    done, faults = ran("keep_freed_memory()")
    assert done and faults < 200
    assert ran("False")[1] > 1000  # every activation has 10,240 of them


@glibc
def test_what_the_environment_says_stays():
    done, _ = ran("keep_freed_memory()", MALLOC_TRIM_THRESHOLD_="131072")
    assert not done


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert allocator.keep_freed_memory() is False
