import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from automl.executors.latency import measure_latency
from automl.executors.threads import clock


class Sleeper(nn.Module):
    """Takes a known time."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds, self.threads = seconds, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.threads = torch.get_num_threads()
        time.sleep(self.seconds)
        return x


def test_medians_and_ratios_to_the_first():
    networks = {"slow": Sleeper(0.004), "fast": Sleeper(0.001)}
    found = measure_latency(networks, torch.zeros(1, 1), budget_s=0.0)
    assert found["slow"].ratio == 1
    assert found["slow"].median_ms >= 4
    # Sleeps may only be longer than asked for, on a busy machine by much.
    assert 1 <= found["fast"].median_ms
    assert 0 < found["fast"].ratio < 1
    assert found["slow"].rounds == found["fast"].rounds == 15
    assert 1 <= found["fast"].undisturbed_ms <= found["fast"].median_ms


def test_threads_are_limited_while_measuring_and_put_back():
    before = torch.get_num_threads()
    network = Sleeper(0)
    measure_latency({"a": network}, torch.zeros(1, 1), budget_s=0, threads=2)
    assert network.threads == 2
    assert torch.get_num_threads() == before


def test_nothing_to_measure_is_an_error():
    with pytest.raises(ValueError, match="must hold a network"):
        measure_latency({}, torch.zeros(1, 1))


def test_one_thread_is_timed_by_its_processor_time_where_that_is_fine_enough(monkeypatch):
    for resolution, expected in [(1e-9, time.thread_time), (1.6e-2, time.perf_counter)]:
        info = SimpleNamespace(resolution=resolution)
        monkeypatch.setattr(time, "get_clock_info", lambda name, info=info: info)
        assert clock(1) is expected and clock(2) is time.perf_counter
