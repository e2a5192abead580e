import pytest
import torch
from torch import nn

from automl.executors import baselines
from automl.types import InputError


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.b = nn.Conv2d(4, 6, 3, stride=2, padding="valid", groups=2)
        self.c = nn.Linear(6, 5)

    def forward(self, x):
        return self.c(self.b(torch.relu(x + self.a(x))).mean((2, 3)))


def test_all_ways_compute_the_same_for_any_batch():
    torch.manual_seed(0)
    network = Residual().eval()
    x = torch.randn(2, 4, 9, 9)
    forms = baselines.dense_forms(network, (x,))
    assert set(forms) >= {"eager", "channels_last"}
    for inputs in (x, torch.randn(3, 4, 7, 11)):
        expected = network(inputs).detach()
        for name, form in forms.items():
            with torch.inference_mode():
                assert torch.allclose(form(inputs), expected, atol=1e-5), name
    assert network.a.weight.is_contiguous() and type(network.a) is nn.Conv2d


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
def test_onednn_has_weights_in_its_own_order():
    network = Residual().eval()
    form = baselines.dense_forms(network, (torch.randn(1, 4, 9, 9),), ["onednn"])["onednn"]
    assert type(form.a) is baselines.PrepackedConv2d and type(form.c) is baselines.PrepackedLinear
    assert type(form.b) is nn.Conv2d  # Its padding is a word.


def test_ways_that_do_not_fit_are_left_out():
    network, x = nn.Linear(4, 3), torch.randn(2, 4)
    assert "channels_last" not in baselines.dense_forms(network, (x,), ["channels_last"])
    halves = baselines.dense_forms(network.double(), (x.double(),), ["onednn", "onnxruntime"])
    assert list(halves) == ["eager"]

    class Odd(nn.Module):
        def forward(self, x):
            return x[torch.rand(len(x)).argsort()[:1]].tolist()

    assert list(baselines.dense_forms(Odd(), (x,), ["onnxruntime", "onednn"])) == ["eager"]
    with pytest.raises(InputError, match="did you mean 'onednn'"):
        baselines.dense_forms(network, (x,), ["onedn"])


def test_networks_that_cannot_be_traced_keep_their_batch_norms():
    class Untraceable(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x):
            return self.norm(x) if float(x.sum()) > 0 else x

    network = Untraceable().eval()
    assert baselines.fold(network, (torch.ones(2, 4),)) is network
