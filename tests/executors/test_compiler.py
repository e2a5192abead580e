import numpy as np
import pytest
import torch
from torch import nn

import automl
from automl.executors import autotune, compiler, whole
from automl.executors.latency import Latency
from automl.types import InputError


def compile(network, x, **settings):
    """Without what takes long, and with nothing remembered."""
    return automl.compile(network, x, **{"baselines": ["eager"], "remember": False} | settings)


def sparse(network, density=0.05):
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Linear):
            mask = torch.rand(module.weight.shape, generator=generator) < density
            module.weight.data *= mask
    return network.eval()


@pytest.fixture
def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 700), nn.ReLU()]
    return sparse(nn.Sequential(*layers, nn.Linear(700, 500, bias=False), nn.Linear(500, 10)))


@pytest.fixture
def times(monkeypatch):
    """Sets what every format takes on every layer, and that whole networks gain as layers do."""

    def set_times(wholes=None, **us):
        def layers(calls, prepare):
            return {name: [us[name]] for name in calls}

        def networks(given, inputs, **_):
            found = wholes or {name: 1.0 if "sparse" in name else 10.0 for name in given}
            first = found[next(iter(given))]
            return {n: Latency(found[n], found[n], found[n] / first, 15) for n in given}

        monkeypatch.setattr(autotune, "measure_us", layers)
        monkeypatch.setattr(whole, "measure_latency", networks)

    return set_times


@pytest.mark.parametrize("batch", [1, 5])
def test_the_compiled_network_computes_the_same(network, batch, times):
    times(dense=100, pell=20, csc=30, bitmap=40, nm24=50, spmm=10 if batch > 1 else 60)
    x = torch.randn(batch, 1, 8, 8)
    run = compile(network, x)
    assert run.choices[1].format == ("pell" if batch == 1 else "spmm")
    expected = network(x).detach()
    assert torch.allclose(run(x), expected, atol=1e-5)
    assert [choice.layer for choice in run.choices] == ["0", "3", "5", "6"]
    assert all(choice.batch == batch for choice in run.choices)


@pytest.mark.parametrize("kind", ["hook", "pre-hook", "forward"])
def test_layers_that_do_more_than_their_class_says_are_left_alone(network, times, kind):
    times(dense=100, pell=20, csc=30, bitmap=40, nm24=50, spmm=60)
    layer = network[3]
    if kind == "hook":
        layer.register_forward_hook(lambda module, inputs, output: output * 2)
    elif kind == "pre-hook":
        layer.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
    else:
        own = layer.forward
        layer.forward = lambda x: own(x) * 2
    x = torch.randn(1, 1, 8, 8)
    run = compile(network, x, remember=False)
    assert "3" not in [choice.layer for choice in run.choices if choice.is_sparse]
    assert torch.allclose(run(x), network(x).detach(), atol=1e-5)


def test_the_fastest_format_is_chosen_and_the_rest_is_left_alone(network, times):
    times(dense=100, pell=20, csc=30)
    x = torch.randn(2, 1, 8, 8)
    run = compile(network, x, executors=["pell", "csc"])
    assert [choice.format for choice in run.choices] == ["dense", "pell", "pell", "pell"]
    assert type(run.network[3]) is compiler.PackedModule and type(run.network[0]) is nn.Conv2d
    assert type(network[3]) is nn.Linear
    assert torch.allclose(run(x), network(x).detach(), atol=1e-5)
    table = run.table()
    assert table["us"].tolist()[1:] == [20] * 3 and table["dense_us"].tolist()[1:] == [100] * 3
    assert table["reason"][0] == "more than half of its weights are left"
    assert table["reason"][1] == "5.0 times as fast as dense"
    assert table["shape"].tolist() == ["4 x 1 x 3 x 3", "700 x 144", "500 x 700", "10 x 500"]


def test_formats_that_gain_no_more_than_noise_are_not_chosen(network, times):
    times(dense=100, pell=98)
    run = compile(network, torch.randn(1, 1, 8, 8), executors=["pell"])
    assert {choice.format for choice in run.choices} == {"dense"}
    assert all(type(module) is not compiler.PackedModule for module in run.modules())


def test_layers_that_do_not_fit_a_format_are_not_measured_in_it(network, times):
    times(dense=100, nm24=1, csc=50)
    network[5].weight.data[:] = 1  # Not 2:4; the others are too sparse to break it.
    for layer in (network[3], network[6]):
        layer.weight.data.view(-1, 4)[:, 2:] = 0
    run = compile(network, torch.randn(1, 1, 8, 8), executors=["nm24", "csc"])
    assert [choice.format for choice in run.choices] == ["dense", "nm24", "csc", "nm24"]


def test_other_types_stay_dense_and_say_so(network):
    run = compile(network.double(), torch.randn(1, 1, 8, 8).double())
    assert {choice.reason for choice in run.choices} == {"it is torch.float64, not float32"}
    assert run(torch.randn(1, 1, 8, 8).double()).dtype == torch.float64


def test_a_network_that_is_one_layer(times):
    times(dense=100, csc=10)
    layer = sparse(nn.Linear(40, 30), 0.2)
    run = compile(layer, torch.ones(3, 40), executors=["csc"])
    assert torch.allclose(run(torch.ones(2, 7, 40)), layer(torch.ones(2, 7, 40)).detach())


def test_several_inputs_and_gradients(times):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(20, 8), nn.Linear(30, 8)

        def forward(self, x, y):
            return self.a(x) + self.b(y)

    times(dense=100, csc=10)
    network = sparse(Two(), 0.3)
    inputs = torch.randn(4, 20, requires_grad=True), torch.randn(4, 30)
    run = compile(network, inputs, executors=["csc"])
    y = run(*inputs)
    assert torch.allclose(y, network(*inputs).detach(), atol=1e-6) and not y.requires_grad
    with pytest.raises(InputError, match="networks of one input"):
        run.latency()


def test_latency_compares_with_the_dense_network(network):
    run = compile(network, torch.randn(1, 1, 8, 8), executors=["csc"])
    latency = run.latency(budget_s=0.05)
    assert list(latency) == ["dense", "compiled"] and latency["dense"].ratio == 1


def test_weights_are_put_out_of_the_cache_only_if_they_do_not_stay_there(monkeypatch):
    small = nn.Linear(4, 4)
    assert compiler._preparation(small) == (compiler._nothing, False)
    monkeypatch.setattr(compiler, "last_level_cache", lambda: 16)
    assert compiler._preparation(small)[1]


def test_wrong_arguments_are_refused(network):
    with pytest.raises(InputError, match="did you mean 'pell'"):
        compile(network, torch.randn(1, 1, 8, 8), executors=["pel"])
    with pytest.raises(InputError, match=r"is on meta; executors run on the CPU"):
        compile(network.to("meta"), torch.randn(1, 1, 8, 8))


def test_rounding_formats_are_only_used_when_asked_for(network, times):
    times(dense=100, pell_int8=10)
    x = torch.randn(1, 1, 8, 8)
    run = compile(network, x, executors=["pell_int8"])
    assert {choice.format for choice in run.choices[1:]} == {"pell_int8"}
    assert 0 < float((run(x) - network(x).detach()).abs().max()) < 0.05
    assert not set(compiler.EXACT) & {"pell_int8", "pell_bf16", "pell_codebook", "eie"}


@pytest.mark.parametrize("stride", [1, 2])
def test_sparse_convolutions_are_packed(times, stride):
    times(dense=100, conv=40)
    torch.manual_seed(0)
    convolution = nn.Conv2d(6, 9, 3, stride, padding=1, groups=3)
    convolution.weight.data *= torch.rand(convolution.weight.shape) < 0.3
    network = nn.Sequential(convolution, nn.ReLU(), nn.Conv2d(9, 4, 1, padding_mode="reflect"))
    x = torch.randn(2, 6, 9, 11)
    run = compile(network, x)
    assert [choice.format for choice in run.choices] == ["conv", "dense"]
    assert run.choices[0].batch == 2 and run.choices[1].reason == "its padding is 'reflect', (0, 0)"
    assert torch.allclose(run(x), network(x).detach(), atol=1e-5)
    channels_last = x.to(memory_format=torch.channels_last)
    assert torch.allclose(run(channels_last), network(x).detach(), atol=1e-5)


def test_a_network_that_does_not_gain_as_a_whole_is_left_dense(network, times):
    times({"eager": 1.0, "onednn": 0.9, "sparse:all": 0.88}, dense=100, onednn=90, csc=30, conv=99)
    x = torch.randn(1, 1, 8, 8)
    run = compile(network, x, executors=["csc"], baselines=["onednn"])
    assert {choice.format for choice in run.choices} == {"dense"}
    assert run.choices[1].reason == (
        "the whole network is 1.02 times as fast as the best dense one (onednn)"
    )
    assert run.network is run.dense and run.verdict.dense == "onednn"
    assert torch.allclose(run(x), network(x).detach(), atol=1e-5)


def test_layers_that_hardly_gain_are_reverted_where_the_whole_gains_by_it(network, times):
    wholes = {"eager": 10.0, "sparse:all": 8.0, "sparse:clear": 4.0}
    times(wholes, dense=100, csc=80, nm24=20)
    network[5].weight.data.view(-1, 4)[:, 2:] = 0
    network[3].weight.data[:, :4] = 1  # Not 2:4.
    network[6].weight.data[:, :4] = 1
    x = torch.randn(1, 1, 8, 8)
    run = compile(network, x, executors=["csc", "nm24"])
    assert [choice.format for choice in run.choices] == ["dense", "dense", "nm24", "dense"]
    assert run.choices[1].reason.startswith("the whole network is faster without")
    kinds = [type(run.network[i]) for i in (3, 5, 6)]
    assert kinds == [nn.Linear, compiler.PackedModule, nn.Linear]
    assert run.choices[2].packed_bytes < run.choices[2].dense_bytes
    assert run.choices[1].packed_bytes == run.choices[1].dense_bytes


def test_a_memory_that_may_not_be_looked_into_is_a_warning(network, tmp_path, times, monkeypatch):
    times(dense=100, pell=20, csc=30, bitmap=40, nm24=50, spmm=60)

    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.exists", denied)
    with pytest.warns(UserWarning, match="what was measured before is not used"):
        compile(network, torch.randn(1, 1, 8, 8), remember=tmp_path)


def test_a_second_time_nothing_is_measured(network, tmp_path, monkeypatch):
    x = torch.randn(1, 1, 8, 8)
    settings = {"executors": ["csc", "pell"], "baselines": ["onednn"], "remember": tmp_path}
    first = compile(network, x, **settings)
    assert len(list(tmp_path.glob("autotuned-*.csv"))) == 1

    def fail(*_, **__):
        raise AssertionError("measured")

    monkeypatch.setattr(autotune, "measure_us", fail)
    monkeypatch.setattr(whole, "measure_latency", fail)
    second = compile(network, x, **settings)
    assert second.choices == first.choices and second.verdict == first.verdict
    with pytest.raises(AssertionError, match="measured"):
        compile(network, x, **{**settings, "executors": ["csc", "bitmap"]})


def test_a_memory_that_cannot_be_read_or_written_is_a_warning(network, tmp_path, times):
    times(dense=100, csc=10)
    x = torch.randn(1, 1, 8, 8)
    compile(network, x, executors=["csc"], remember=tmp_path)
    next(tmp_path.glob("*.json")).write_text("{")
    with pytest.warns(UserWarning, match="measured before is not used"):
        run = compile(network, x, executors=["csc"], remember=tmp_path)
    assert run.choices[1].format == "csc"
    taken = tmp_path / "file"
    taken.write_text("")
    with pytest.warns(UserWarning, match="is not remembered"):
        compile(network, x, executors=["csc"], remember=taken)


def test_batch_norms_are_folded_before_anything_is_compared(times):
    times(dense=100, conv=20)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    network[1].running_mean[:], network[1].running_var[:] = 0.3, 2.0
    for layer in (network[0], network[3]):
        layer.weight.data *= torch.rand(layer.weight.shape) < 0.3
    x = torch.randn(2, 3, 6, 6)
    run = compile(network.eval(), x)
    assert [choice.format for choice in run.choices] == ["conv", "conv"]
    assert not any(isinstance(module, nn.BatchNorm2d) for module in run.modules())
    assert torch.allclose(run(x), network(x).detach(), atol=1e-5)


def test_unusual_inputs_come_out_as_dense_has_them(times):
    times(dense=100, conv=10, csc=10)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 7))
    for layer in (network[0], network[3]):
        layer.weight.data *= torch.rand(layer.weight.shape) < 0.3
    network[3].weight.data[2] = 0  # An empty row.
    run = compile(network.eval(), torch.randn(1, 3, 6, 6), executors=["csc"])
    assert [choice.format for choice in run.choices] == ["conv", "csc"]
    wide = torch.randn(2, 6, 6, 6)
    holed = torch.randn(2, 3, 6, 6)
    holed[0, 1, 2, 3], holed[1, 0, 0, 0] = float("nan"), float("inf")
    for x in (torch.zeros(1, 3, 6, 6), wide[:, ::2], holed, torch.full((1, 3, 6, 6), 1e-40)):
        expected = network(x).detach()
        assert torch.allclose(run(x), expected, atol=1e-5, equal_nan=True)
    with pytest.raises(TypeError, match="must be float32"):
        run(torch.zeros(1, 3, 6, 6).double())


def test_the_fused_network_is_used_where_it_is_fastest(times):
    wholes = {"eager": 10.0, "sparse:all": 8.0, "sparse:fused": 4.0}
    times(wholes, dense=100, conv=20, csc=30)
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Flatten()]
    network = nn.Sequential(*layers, nn.Linear(96, 7))
    for layer in (network[2], network[5]):
        layer.weight.data *= torch.rand(layer.weight.shape) < 0.3
    x = torch.randn(1, 3, 6, 6)
    run = compile(network.eval(), x, executors=["csc"])
    assert run.verdict.sparse == "fused" and run.sparse is run.network
    assert [choice.format for choice in run.choices] == ["fused", "fused", "csc"]
    assert run.choices[0].reason == "fused with its neighbours"
    assert run.choices[1].reason == "fused with its neighbours; 5.0 times as fast as dense alone"
    assert torch.allclose(run(x), network(x).detach(), atol=1e-5)
    assert run.table()["format"].tolist() == ["fused", "fused", "csc"]


@pytest.mark.parametrize(("ratio", "count"), [(0.6, 3), (0.99, 1), (100.0, 1)])
def test_more_threads_are_used_where_they_are_measured_to_help(network, monkeypatch, ratio, count):
    def timed(networks, inputs, **_):
        return {n: Latency(1, 1, ratio if n == "3" else 1.0, 15) for n in networks}

    monkeypatch.setattr(compiler, "measure_latency", timed)
    run = compile(network, torch.randn(1, 1, 8, 8), executors=[], threads=3)
    assert run.threads == count
    counts = []
    run.network[1].register_forward_hook(lambda *_: counts.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    run(torch.randn(1, 1, 8, 8))
    assert counts == [count] and torch.get_num_threads() == before


def test_a_number_of_numpy_is_a_number_of_threads(network, monkeypatch):
    def alike(networks, inputs, **_):
        return {n: Latency(1, 1, 1.0, 15) for n in networks}

    monkeypatch.setattr(compiler, "measure_latency", alike)
    run = compile(network, torch.randn(1, 1, 8, 8), executors=[], threads=np.int64(1))
    assert run.threads == 1


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2"])
def test_threads_are_a_number_from_one_on(network, threads):
    with pytest.raises(InputError, match=r"compile\.threads must be >= 1"):
        compile(network, torch.randn(1, 1, 8, 8), threads=threads)
