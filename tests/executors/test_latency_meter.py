import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from automl.cost.lut.entry import Entry
from automl.cost.lut.signature import Signature, canonical
from automl.executors import latency_meter
from automl.executors.latency_meter import CpuMeter, Effort, laps
from automl.executors.latency_step import device_step, probes
from automl.executors.quiet import busy_cores, require_quiet
from automl.types import InputError

DETAIL = canonical({"bias": True, "dilation": [1, 1], "padding": [1, 1]})


def conv(into: int, out: int, size: int = 8) -> Signature:
    return Signature("conv2d", 1, into, out, size, size, (3, 3), (1, 1), detail=DETAIL)


NETWORK = [conv(8, 8, 16), conv(8, 8, 8), conv(8, 8, 4), conv(8, 8, 2)]
counts = st.integers(1, 64)


@given(st.lists(st.tuples(counts, counts, st.sampled_from([16, 8, 4, 2, 5])), max_size=40))
def test_everything_wanted_is_timed_once_in_the_order_of_the_network(wanted):
    signatures = list(dict.fromkeys(conv(*one) for one in wanted))
    places = {signature.height: i for i, signature in enumerate(NETWORK)}
    timed = []
    for lap in laps(signatures, NETWORK):
        known = [places[s.height] for s, _ in lap if s.height in places]
        assert known == sorted(known)
        timed += [signature for signature, is_timed in lap if is_timed]
    assert sorted(timed) == sorted(signatures)


def test_the_operators_ahead_run_too():
    (lap,) = laps([conv(4, 4, 4)], NETWORK)
    assert lap == [(NETWORK[0], False), (NETWORK[1], False), (conv(4, 4, 4), True)]


def test_each_operator_gets_an_entry_of_half_its_runs():
    wanted = [conv(4, 4), conv(4, 8), conv(8, 4)]
    found = dict(e for part in CpuMeter(effort=Effort(6, retries=0))(wanted, NETWORK) for e in part)
    assert set(found) == set(wanted)
    for entry in found.values():
        assert entry.count == 3 and entry.median_us > 0 and entry.cpu_us > 0


def test_threads_and_collector_are_put_back():
    import gc

    before = torch.get_num_threads()
    list(CpuMeter(2, Effort(3, retries=0))([conv(4, 4)], NETWORK))
    assert torch.get_num_threads() == before and gc.isenabled()


def test_noisy_operators_are_measured_again(monkeypatch):
    calls = []

    def passes(self, chunk):
        calls.append({one.signature for turn in chunk for one, _ in turn})
        spread = 50.0 if len(calls) < 3 else 1.0
        return {s: Entry(10, 100.0, spread if s == conv(4, 4) else 1.0) for s in calls[-1]}

    monkeypatch.setattr(CpuMeter, "_passes", passes)
    monkeypatch.setattr(latency_meter, "_TURN", 2)
    meter = CpuMeter(effort=Effort(retries=5))
    found = dict(e for part in meter([conv(4, 4), conv(8, 4, 2)], []) for e in part)
    assert len(calls) == 3
    assert found[conv(4, 4)].iqr_us == 1.0


@pytest.mark.parametrize(
    ("entry", "noisy"),
    [
        (Entry(9, 100.0, 5.0, 99.0), False),
        (Entry(9, 100.0, 20.0, 99.0), True),
        (Entry(9, 100.0, 5.0, 70.0), True),
        (Entry(9, 4.0, 1.0, 3.0), False),  # the clock's own scatter
    ],
)
def test_wide_quartiles_and_waiting_are_noise(entry, noisy):
    assert Effort().noisy(entry) is noisy


@pytest.mark.parametrize("settings", [{"repeats": 2}, {"retries": -1}])
def test_efforts_have_bounds(settings):
    with pytest.raises(ValueError, match="Effort"):
        Effort(**settings)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_cuda_device_times_operators_by_events():
    from automl.executors.latency_cuda import CudaMeter

    wanted = [conv(16, 16), conv(256, 256, 32)]
    meter = CudaMeter(torch.device("cuda", 0), Effort(10))
    found = dict(e for part in meter(wanted, NETWORK) for e in part)
    assert found[wanted[0]].median_us < found[wanted[1]].median_us
    assert all(entry.cpu_us == 0 for entry in found.values())


# ---- the device's step


@pytest.mark.parametrize("step", [8, 16, 32])
def test_the_step_of_a_staircase_is_found(step):
    times = {
        signature: 10.0 * -(-count // step) * step + 3.0 * (count % step > 0)
        for signature, (_, count) in probes().items()
    }
    assert device_step(times) == step


def test_where_every_channel_costs_no_coarse_step_is_offered():
    assert device_step({s: 10.0 * count for s, (_, count) in probes().items()}) <= 4


def test_a_step_must_be_free_in_every_layer():
    times = {
        signature: 10.0 * -(-count // (16 if layer else 8)) * (16 if layer else 8)
        for signature, (layer, count) in probes().items()
    }
    assert device_step(times) == 8


# ---- quiet machines


def stat_file(tmp_path, *lines):
    path = tmp_path / "stat"
    path.write_text(lines[0])
    return path


def test_busy_cores_are_ticks_that_were_not_idle(tmp_path, monkeypatch):
    path = stat_file(tmp_path, "cpu 100 0 50 900 10 0 0 0 0 0\n")
    monkeypatch.setattr("os.sysconf", lambda name: 100)
    # While this process sleeps, others use 15 ticks of 0.1 s: one and a half cores.
    monkeypatch.setattr("time.sleep", lambda s: path.write_text("cpu 110 0 55 905 10 0 0 0 0 0\n"))
    assert busy_cores(0.1, path) == pytest.approx(1.5)


def test_a_busy_machine_is_refused_with_what_to_do(tmp_path, monkeypatch):
    ticks = iter(range(1000, 10**6, 1000))
    path = stat_file(tmp_path, "cpu 0 0 0 0 0 0 0 0\n")
    monkeypatch.setattr(
        "time.sleep", lambda s: path.write_text(f"cpu {next(ticks)} 0 0 0 0 0 0 0\n")
    )
    with pytest.raises(InputError, match=r"not quiet.*wait_s.*allow_busy") as refused:
        require_quiet(stat=path)
    assert "\n" not in str(refused.value)


def test_waiting_ends_when_the_machine_is_quiet(tmp_path, monkeypatch):
    ticks = iter([1000, 2000, 3000, 3000, 3000, 3000])
    path = stat_file(tmp_path, "cpu 0 0 0 0 0 0 0 0\n")
    monkeypatch.setattr(
        "time.sleep", lambda s: path.write_text(f"cpu {next(ticks)} 0 0 0 0 0 0 0\n")
    )
    require_quiet(wait_s=60, stat=path)


def test_systems_that_do_not_tell_are_taken_to_be_quiet(tmp_path):
    assert busy_cores(0.0, tmp_path / "nothing") is None
    require_quiet(stat=tmp_path / "nothing")


def test_measured_runs_are_the_wall_times(monkeypatch):
    clock = iter(np.arange(0, 10**9, 5_000).tolist())
    monkeypatch.setattr("time.perf_counter_ns", lambda: int(next(clock)))
    (part,) = CpuMeter(effort=Effort(6, retries=0))([conv(4, 4)], [])
    assert part[0][1].median_us == 5.0
