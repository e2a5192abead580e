"""Networks on point clouds: they trace, and what the pruner removes is what masks would zero."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import automl
from automl.executors.spconv3d import SparseConv3d, SparseTensor, SubmanifoldConv3d, cloud_mean

GRID = 8


class Shapes(nn.Module):
    """Classifies clouds given by the numbers of their voxels, (batch, points)."""

    def __init__(self):
        super().__init__()
        self.stem = SubmanifoldConv3d(1, 16, bias=False)
        self.stem_norm = nn.BatchNorm1d(16)
        self.block = SubmanifoldConv3d(16, 16)
        self.block_norm = nn.BatchNorm1d(16)
        self.down = SparseConv3d(16, 24, 3, 2, 1, bias=False)
        self.down_norm = nn.BatchNorm1d(24)
        self.head = nn.Linear(24, 3)

    def forward(self, ids):
        batch = ids.shape[0]
        places = torch.unique(ids + torch.arange(batch)[:, None] * GRID**3)
        digits = [places // GRID**3, places // GRID**2 % GRID, places // GRID % GRID, places % GRID]
        ones = torch.ones(places.shape[0], 1, dtype=self.head.weight.dtype)
        x = SparseTensor(torch.stack(digits, 1).int(), ones)
        x = self.stem(x)
        x = x.with_features(F.relu(self.stem_norm(x.features)))
        added = self.block_norm(self.block(x).features)
        x = self.down(x.with_features(F.relu(x.features + added)))
        features = F.relu(self.down_norm(x.features))
        return self.head(cloud_mean(features, x.coordinates, batch))


def clouds(batch, points=40, seed=0):
    return torch.randint(GRID**3, (batch, points), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = Shapes().double()
    for norm in (model.stem_norm, model.block_norm, model.down_norm):
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.normal_(norm.bias)
    model.train()
    for seed in range(3):
        model(clouds(8, seed=seed))
    return model.eval()


@pytest.fixture(scope="module")
def trace(model):
    return automl.trace(model, clouds(2))


def test_channels_are_coupled_through_the_residual_sum(trace):
    groups = {group.name: group.units for group in trace.groups}
    assert groups == {"stem": 16, "down": 24}
    assert [frozen.name for frozen in trace.frozen] == ["head"]


def test_macs_follow_the_pairs_that_training_has_seen(model, trace):
    macs = {layer.name: layer.macs for layer in trace.layers}
    for name in ("stem", "block", "down"):
        layer = getattr(model, name)
        pairs = round(float(layer.pairs))
        assert 40 < pairs < 40 * 27  # every voxel sees itself, and not everything around it
        assert macs[name] == pairs * layer.in_channels * layer.out_channels
    half = automl.trace(automl.prune(model, clouds(2), 0.5), clouds(2))
    assert {layer.name: layer.macs for layer in half.layers}["block"] == macs["block"] // 4


def test_pruned_equals_zero_masked(model, trace):
    kept = {"stem": torch.tensor([0, 3, 4, 9, 15]), "down": torch.tensor([1, 2, 20])}
    slim = trace.materialise([kept[group.name].tolist() for group in trace.groups])
    assert type(slim) is Shapes and slim.block.weight.shape == (5, 5, 3, 3, 3)
    assert (slim.down.in_channels, slim.down.out_channels) == (5, 3)
    masked = Shapes().double()
    masked.load_state_dict(model.state_dict())
    norms = {"stem_norm": "stem", "block_norm": "stem", "down_norm": "down"}
    with torch.no_grad():
        for norm, group in norms.items():
            module = getattr(masked, norm)
            gone = torch.ones(len(module.weight), dtype=torch.bool)
            gone[kept[group]] = False
            module.weight[gone] = 0
            module.bias[gone] = 0
        x = clouds(5, seed=9)
        torch.testing.assert_close(slim(x), masked.eval()(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("granularity", ["kernel", "unstructured"])
def test_grains_inside_a_layer_are_masked_and_computed_alike(model, granularity):
    """In float32, input channels of an offset are skipped; in float64, whole ones only."""
    sparse = automl.prune(model, clouds(2), 0.9, granularity=granularity).eval()
    zeros = float((sparse.block.weight == 0).double().mean())
    assert zeros > 0.8
    x = clouds(5, seed=4)
    with torch.inference_mode():
        exact = sparse(x)
        y = sparse.float()(x)
    torch.testing.assert_close(y.double(), exact, rtol=1e-4, atol=1e-4)


def test_a_slim_network_trains(model, trace):
    slim = trace.materialise([range(4), range(9)]).float().train()
    F.cross_entropy(slim(clouds(4)), torch.tensor([0, 1, 2, 0])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in slim.parameters())


def test_clouds_are_averaged_one_by_one():
    at = torch.tensor([[0, 0, 0, 0], [2, 0, 0, 0], [2, 0, 0, 1]], dtype=torch.int32)
    features = torch.tensor([[1.0], [2.0], [4.0]], dtype=torch.float64, requires_grad=True)
    assert cloud_mean(features, at, 4).tolist() == [[1], [0], [3], [0]]
    assert torch.autograd.gradcheck(lambda f: cloud_mean(f, at, 4), (features,))
