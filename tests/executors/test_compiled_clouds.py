"""Networks on point clouds, end to end: pruned, compiled, and equal to the masked dense grid."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import automl
from automl.executors.baselines import dense_forms, read_elsewhere
from automl.executors.spconv3d import SparseConv3d, SubmanifoldConv3d
from automl.models import load_model

CLOUDS = (SubmanifoldConv3d, SparseConv3d)
FACTORY, WEIGHTS = "automl.models.shapes.shapes_tiny", "package:weights/shapes_tiny.safetensors"


@pytest.fixture(scope="module")
def trained():
    return load_model(FACTORY, checkpoint=WEIGHTS, input_shape=(128,)).model.eval()


def compiled(network, x):
    return automl.compile(network, x, remember=False, baselines=["onednn"])


def clouds(seed=0, count=3):
    return torch.randint(0, 16**3, (count, 128), generator=torch.Generator().manual_seed(seed))


def dense_shapes(network, weights, ids):
    """The network on the whole grid in float64; what is not occupied is zeroed after each layer."""
    size = network.grid
    occupied = torch.zeros(len(ids), size**3, dtype=torch.float64)
    occupied.scatter_(1, ids, 1.0)
    occupied = occupied.reshape(-1, 1, size, size, size)

    def convolve(name, x, **how):
        return F.conv3d(x, weights[f"{name}.weight"].double(), **how)

    def norm(layer, x):
        shape = (1, -1, 1, 1, 1)
        scale = layer.weight.double() / (layer.running_var.double() + layer.eps).sqrt()
        moved = x - layer.running_mean.double().reshape(shape)
        return moved * scale.reshape(shape) + layer.bias.double().reshape(shape)

    def block(number, x):
        own = network.blocks[number]
        sums = x + norm(own.norm, convolve(f"blocks.{number}.conv", x, padding=1))
        return F.relu(sums) * occupied

    x = F.relu(norm(network.stem_norm, convolve("stem", occupied, padding=1))) * occupied
    x = block(0, x)
    for number in range(len(network.downs)):
        x = convolve(f"downs.{number}", x, stride=2)
        occupied = F.max_pool3d(occupied, 2)
        x = block(number + 1, F.relu(norm(network.norms[number], x)) * occupied)
    means = x.sum((2, 3, 4)) / occupied.sum((2, 3, 4))
    head = network.head
    return F.linear(means, weights["head.weight"].double(), head.bias.double())


@pytest.mark.parametrize("grain", ["unstructured", "kernel", "block:4x4"])
def test_a_pruned_network_equals_the_masked_dense_grid(trained, grain):
    pruned = automl.prune(trained, clouds(), 0.6, granularity=grain)
    layers = {n: m for n, m in pruned.named_modules() if isinstance(m, CLOUDS)}
    weights = {name: own.detach().clone() for name, own in trained.named_parameters()}
    for name, layer in layers.items():
        weights[f"{name}.weight"] *= layer.weight != 0
    weights["head.weight"] *= pruned.head.weight != 0
    zeros = [float((m.weight == 0).float().mean()) for n, m in layers.items() if n != "stem"]
    assert len(zeros) == 5 and min(zeros) > 0.5
    with torch.no_grad():
        expected = dense_shapes(trained, weights, clouds())
        whole = trained(clouds()).double()
    run = compiled(pruned, clouds())
    assert torch.allclose(run(clouds()).double(), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(whole, expected, rtol=1e-2, atol=1e-2)


def test_the_grid_computes_what_the_network_does(trained):
    weights = {name: own.detach() for name, own in trained.named_parameters()}
    with torch.no_grad():
        expected, found = dense_shapes(trained, weights, clouds(1)), trained(clouds(1)).double()
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_layers_on_clouds_are_left_and_the_table_says_so(trained):
    run = compiled(trained, clouds())
    table = run.table().set_index("layer")
    assert table["format"].to_dict() == dict.fromkeys(
        ["stem", *(f"blocks.{n}.conv" for n in range(3)), "downs.0", "downs.1"], "spconv3d"
    ) | {"head": "dense"}
    assert "its own kernel" in table.loc["stem", "reason"]
    assert not any(choice.is_sparse or choice.gain != 1 for choice in run.choices)
    assert "outside of the layer" in table.loc["head", "reason"]


class Peeking(nn.Module):
    """Looks at the weight of one of its layers."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.second(self.first(x) * self.first.weight.norm())


def test_a_layer_whose_weight_is_read_elsewhere_is_not_replaced():
    torch.manual_seed(0)
    network, x = Peeking().eval(), torch.randn(2, 8)
    assert read_elsewhere(network, (x,), ["first", "second"]) == {"first"}
    assert read_elsewhere(network, (x,), ["second"]) == frozenset()
    assert type(network.first) is nn.Linear
    for form in dense_forms(network, (x,)).values():
        with torch.no_grad():
            assert torch.allclose(form(x), network(x), rtol=1e-5, atol=1e-5)
