import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn

from automl.training.batchnorm import recalibrate_batchnorm


def make_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 5, 3),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(5, 4, 3),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.LazyLinear(6),
        nn.BatchNorm1d(6),
    )


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(24, 3, 7, 7, generator=generator) * 2 + 1


@pytest.fixture
def network(images):
    network = make_network()
    network(images)
    return network.eval()


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_statistics_equal_the_direct_pooled_ones_for_any_cut_into_batches(sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    # Batches with means far apart, where averaging variances would be wrong.
    batches = [
        torch.randn(size, 3, 2, 2, generator=generator)
        + 10 * torch.randn(3, 1, 1, generator=generator)
        for size in sizes
    ]
    layer = nn.BatchNorm2d(3)
    assert recalibrate_batchnorm(layer, batches) == 1
    everything = torch.cat(batches).double().transpose(0, 1).flatten(1)
    assert torch.allclose(layer.running_mean.double(), everything.mean(1), rtol=1e-5, atol=1e-5)
    assert torch.allclose(layer.running_var.double(), everything.var(1), rtol=1e-5, atol=1e-6)
    assert layer.num_batches_tracked == len(sizes)


def test_a_deep_network_gets_what_torch_computes_on_one_batch(network, images):
    reference = copy.deepcopy(network).eval()
    for module in reference.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None  # torch's cumulative average
            module.train()
    with torch.no_grad():
        reference(images)
    assert recalibrate_batchnorm(network, [images]) == 3
    for name, value in reference.state_dict().items():
        assert torch.allclose(network.state_dict()[name].float(), value.float(), rtol=1e-5), name


def test_recalibrated_layers_normalise_the_calibration_images(images):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)).eval()
    recalibrate_batchnorm(network, images.split(7))
    with torch.no_grad():
        out = network(images).transpose(0, 1).flatten(1)
    assert out.mean(1).abs().max() < 1e-5
    assert (out.var(1) - 1).abs().max() < 1e-3


def test_batches_may_carry_labels_and_layers_may_be_leaves_of_a_graph(network, images):
    graph = fx.symbolic_trace(copy.deepcopy(network))
    labelled = [(x, torch.zeros(len(x))) for x in images.split(8)]
    assert recalibrate_batchnorm(graph, labelled) == 3
    recalibrate_batchnorm(network, images.split(8))
    assert torch.equal(graph.get_submodule("5").running_var, network[5].running_var)


def test_modes_settings_and_weights_stay(network, images):
    network[1].train()
    network[8].momentum = 0.3
    before = {name: p.clone() for name, p in network.named_parameters()}
    recalibrate_batchnorm(network, [images])
    assert network[1].training and not network[5].training and not network.training
    assert network[8].momentum == 0.3 and network[8].track_running_stats
    assert all(torch.equal(p, before[name]) for name, p in network.named_parameters())
    assert not network[1]._forward_pre_hooks
    assert all(p.grad is None for p in network.parameters())


def test_a_shared_layer_pools_all_its_uses():
    layer = nn.BatchNorm1d(2)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x) + self.layer(x + 4)

    x = torch.randn(50, 2)
    recalibrate_batchnorm(Twice(), [x])
    both = torch.cat([x, x + 4])
    assert torch.allclose(layer.running_mean, both.mean(0), atol=1e-5)
    assert torch.allclose(layer.running_var, both.var(0), rtol=1e-5)


def test_an_error_on_the_way_changes_nothing(network, images):
    before = {name: t.clone() for name, t in network.state_dict().items()}
    with pytest.raises(RuntimeError):
        recalibrate_batchnorm(network, [images, images[:, :2]])
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())
    assert all(not m.training for m in network.modules())
    assert all(not m._forward_pre_hooks for m in network.modules())
    recalibrate_batchnorm(network, [images])  # and it still works


def test_no_batches_are_refused_and_no_layers_are_fine(network):
    with pytest.raises(ValueError, match="at least one batch, got none"):
        recalibrate_batchnorm(network, [])
    stateless = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.Linear(3, 2))
    assert recalibrate_batchnorm(stateless, [torch.randn(4, 3)]) == 0


def test_layers_that_no_batch_reaches_stay():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.BatchNorm1d(2), nn.BatchNorm1d(2)

        def forward(self, x):
            return self.used(x)

    network = Half()
    assert recalibrate_batchnorm(network, [torch.randn(8, 2) + 3]) == 1
    assert network.unused.running_mean.eq(0).all() and network.used.running_mean.gt(1).all()
