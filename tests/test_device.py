import pytest
import torch

from automl.device import resolve_device, resolve_dtype
from automl.types import InputError

CPU = torch.device("cpu")


@pytest.fixture
def two_gpus(monkeypatch):
    """A machine with two CUDA devices, as far as torch's queries tell."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_auto_is_the_cpu_where_there_is_no_gpu(no_gpu):
    assert resolve_device("auto") == CPU
    assert resolve_device() == CPU


def test_auto_is_the_current_gpu_where_there_is_one(two_gpus):
    assert resolve_device("auto") == torch.device("cuda", 0)


def test_cuda_devices_carry_their_index(two_gpus):
    assert resolve_device("cuda") == torch.device("cuda", 0)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    assert resolve_device(torch.device("cuda", 1)) == torch.device("cuda", 1)


def test_cpu_is_the_cpu_even_beside_a_gpu(two_gpus):
    assert resolve_device("cpu") == CPU


@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test_cuda_without_a_gpu_is_refused_with_what_to_do(no_gpu, name):
    with pytest.raises(InputError, match="no CUDA device here; use device=cpu"):
        resolve_device(name)


def test_an_index_that_is_not_there_is_refused_with_what_is(two_gpus):
    with pytest.raises(InputError, match="cuda:0 to cuda:1"):
        resolve_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "mps", "", "cpu:0"])
def test_unknown_devices_are_refused_in_one_line(two_gpus, name):
    with pytest.raises(InputError, match="device must be auto, cpu, cuda or cuda:INDEX") as caught:
        resolve_device(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_dtypes_by_name_and_by_type(name):
    expected = getattr(torch, name)
    assert resolve_dtype(name, CPU) == expected
    assert resolve_dtype(expected, CPU) == expected


@pytest.mark.parametrize("name", ["float64", "half", "int8"])
def test_unknown_dtypes_are_refused(name):
    with pytest.raises(InputError, match="dtype must be float32, bfloat16, float16"):
        resolve_dtype(name, CPU)


def test_float16_is_refused_on_the_cpu():
    with pytest.raises(InputError, match="float16 needs a CUDA device"):
        resolve_dtype("float16", CPU)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_real_gpu_computes_on_the_resolved_device():
    device = resolve_device("auto")
    assert torch.ones(2, device=device, dtype=resolve_dtype("float16", device)).sum().item() == 2
