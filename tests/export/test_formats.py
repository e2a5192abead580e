import copy

import pytest
import torch
from torch import nn

from automl import export
from automl.export import Exported, export_program, load_format, require_right
from automl.types import InputError

FORMATS = [
    pytest.param(name, marks=[] if name == "pt2" else pytest.mark.slow) for name in export.PROGRAMS
]


@pytest.fixture
def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)]
    return nn.Sequential(*layers).eval()


def installed(name):
    try:
        return load_format(name)
    except InputError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", FORMATS)
def test_a_written_program_computes_the_same_for_any_batch_size(tmp_path, network, name):
    module = installed(name)
    inputs = torch.randn(5, 3, 8, 8)
    done = export_program(name, network, inputs, tmp_path)
    assert done.is_right and done.error < 1e-5 and done.examples == 5
    for count in (1, 2, 7):
        x = torch.randn(count, 3, 8, 8)
        found = torch.as_tensor(module.run(done.file, x))
        assert torch.allclose(found, network(x), atol=1e-5)


@pytest.mark.parametrize("name", FORMATS)
def test_one_example_is_enough_to_write_a_program_for_any_batch_size(tmp_path, network, name):
    module = installed(name)
    done = export_program(name, network, torch.randn(1, 3, 8, 8), tmp_path)
    x = torch.randn(4, 3, 8, 8)
    assert torch.allclose(torch.as_tensor(module.run(done.file, x)), network(x), atol=1e-5)


class Several(nn.Module):
    """Puts out a dict that holds a tuple."""

    def __init__(self):
        super().__init__()
        self.into, self.one, self.other = nn.Linear(8, 16), nn.Linear(16, 3), nn.Linear(16, 2)

    def forward(self, x):
        x = torch.relu(self.into(x))
        return {"one": self.one(x), "rest": (self.other(x), x.mean(1))}


@pytest.mark.parametrize("name", FORMATS)
def test_several_outputs_are_all_compared(tmp_path, name, monkeypatch):
    module = installed(name)
    torch.manual_seed(0)
    network, inputs = Several().eval(), torch.randn(5, 8)
    assert export_program(name, network, inputs, tmp_path).is_right
    run, leaves = module.run, torch.utils._pytree.tree_leaves
    for wrong in range(3):

        def spoilt(file, x, wrong=wrong):
            outputs = [torch.as_tensor(leaf) for leaf in leaves(run(file, x))]
            outputs[wrong] = outputs[wrong] + 0.1
            return outputs

        monkeypatch.setattr(module, "run", spoilt)
        assert not export_program(name, network, inputs, tmp_path).is_right
    monkeypatch.setattr(module, "run", lambda file, x: leaves(run(file, x))[:2])
    assert not export_program(name, network, inputs, tmp_path).is_right


class Elsewhere(nn.Linear):
    """Has its weights on a device without any memory; asked for it, gets some on the CPU."""

    def cpu(self):
        self.to_empty(device="cpu")
        for parameter in self.parameters():
            nn.init.ones_(parameter)
        return self


def test_a_network_on_another_device_stays_there(tmp_path):
    installed("pt2")
    network = Elsewhere(4, 2, device="meta").eval()
    assert export_program("pt2", network, torch.randn(3, 4), tmp_path).is_right
    assert {parameter.device.type for parameter in network.parameters()} == {"meta"}


class Endless(nn.Module):
    def forward(self, x):
        while x.sum() > 0:
            x = x - 1
        return x


def test_what_torch_cannot_export_is_one_line(tmp_path):
    module = installed("pt2")
    with pytest.raises(InputError, match="this network cannot be exported by torch: "):
        module.write(Endless(), torch.randn(2, 3), tmp_path)


class WithNothing(nn.Linear):
    """Has an output without elements."""

    def forward(self, x):
        return {"y": super().forward(x), "none": x.new_zeros(x.shape[0], 0)}


def test_outputs_without_elements_agree(tmp_path):
    installed("pt2")
    assert export_program("pt2", WithNothing(8, 3).eval(), torch.randn(5, 8), tmp_path).is_right


@pytest.mark.slow
def test_what_onnx_runtime_cannot_run_is_one_line_and_no_file(tmp_path):
    installed("onnx")
    network = nn.Sequential(nn.Linear(8, 16), nn.ReLU()).bfloat16().eval()
    with pytest.raises(InputError, match="cannot be run by ONNX Runtime: ") as refused:
        export_program("onnx", network, torch.randn(4, 8).bfloat16(), tmp_path)
    assert "\n" not in str(refused.value) and not list(tmp_path.iterdir())


def test_a_program_that_computes_something_else_is_refused(tmp_path, network, monkeypatch):
    module = installed("pt2")
    other = copy.deepcopy(network)
    with torch.no_grad():
        other[0].weight.mul_(1.5)
    write = module.write
    monkeypatch.setattr(module, "write", lambda _, inputs, folder: write(other, inputs, folder))
    done = export_program("pt2", network, torch.randn(4, 3, 8, 8), tmp_path)
    assert not done.is_right
    with pytest.raises(RuntimeError, match="differs from the network"):
        require_right([done])


@pytest.mark.parametrize("error", [float("nan"), float("inf"), 1.0])
def test_wrong_outputs_are_never_right(tmp_path, error):
    assert not Exported("pt2", tmp_path, error, 1.0, 4).is_right


def test_unknown_and_missing_formats_say_what_to_do(monkeypatch):
    with pytest.raises(InputError, match=r"cannot export as 'onxx'.*onnx"):
        load_format("onxx")
    import automl.export.pt2 as module

    monkeypatch.setattr(module, "PACKAGES", ("no_such_package",))
    with pytest.raises(InputError, match=r"pip install 'prunepilot\[pt2\]'"):
        load_format("pt2")


@pytest.mark.slow
def test_onnx_runtime_is_timed_beside_torch(tmp_path, network):
    from automl.executors.onnx_runtime import OnnxFile
    from automl.export import latency

    installed("onnx")
    inputs = torch.randn(3, 3, 8, 8)
    done = [export_program("onnx", network, inputs, tmp_path)]
    assert torch.allclose(OnnxFile(done[0].file)(inputs), network(inputs), atol=1e-5)
    found = latency.side_by_side(network, done, inputs[:1], 0.05)
    assert list(found) == ["torch", "onnxruntime"] and found["torch"].ratio == 1
    assert latency.side_by_side(network, [], inputs[:1], 0.05) == {}
