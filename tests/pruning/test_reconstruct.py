"""Least-squares repair: exact where it can be, better than none elsewhere, without side effects."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import automl
from automl.data import load_data
from automl.models import load_model
from automl.pruning.columns import as_matrices, write
from automl.pruning.pruner import Pruner, policy_from_ratios
from automl.pruning.reconstruct import Reconstruction
from automl.pruning.regression import Fit, solve
from automl.pruning.sampling import features, gather, patches, sample, thinned
from automl.scoring import ClassifierScorer
from automl.types import InputError


def randomise(net: nn.Module, seed: int = 0) -> nn.Module:
    """Batch norms as if trained."""
    torch.manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return net.eval()


class Block(nn.Module):
    """A residual block; ``project`` puts a convolution on the shortcut as well."""

    def __init__(self, channels: int, inner: int, project: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, inner, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Conv2d(channels, channels, 1) if project else nn.Identity()

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class Net(nn.Module):
    """Three blocks and a classifier."""

    def __init__(self, project: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(*[Block(8, 16, project) for _ in range(3)])
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.blocks(torch.relu(self.stem(x))).mean((2, 3)))


def damage(net, calibration, settings, ratio=0.5, exclude=()):
    """Mean squared error of the pruned network's outputs on fresh inputs, over the dense power."""
    trace = automl.trace(net, calibration[:2], exclude=exclude)
    pruner = Pruner(trace, calibration=calibration, reconstruct=settings)
    slim = pruner.prune(policy_from_ratios(pruner, ratio, rounding=1))
    fresh = torch.randn(256, *calibration.shape[1:], generator=torch.Generator().manual_seed(99))
    with torch.no_grad():
        dense = net(fresh)
        centred = dense - dense.mean(0)
        return float(((slim(fresh) - dense) ** 2).mean() / (centred**2).mean())


@pytest.fixture
def images():
    return torch.randn(128, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("project", [False, True])
def test_repair_reduces_damage_and_the_shortcut_correction_reduces_it_further(images, project):
    net = randomise(Net(project))
    stream = ["stem", "*.conv2", *(["*.shortcut"] if project else [])]
    none = damage(net, images, None, exclude=stream)
    plain = damage(net, images, Reconstruction(shortcut=False, scope="readers"), exclude=stream)
    full = damage(net, images, Reconstruction(points=20), exclude=stream)
    assert plain < 0.7 * none
    assert full < plain


def test_redundant_channels_are_removed_without_any_damage(images):
    net = randomise(Net())
    with torch.no_grad():
        for block in net.blocks:  # every inner channel twice
            for tensor in (block.conv1.weight, *block.bn1.parameters(), *block.bn1.buffers()):
                if tensor.dim():
                    tensor[8:] = tensor[:8]
            block.conv1.weight[8:] *= 0.3  # so that the copies are the ones to go
            block.bn1.running_mean[8:] *= 0.3
            block.bn1.running_var[8:] *= 0.3**2
    stream = ["stem", "*.conv2"]
    settings = Reconstruction(ridge=1e-7, points=30)
    assert damage(net, images, None, exclude=stream) > 1e-2
    assert damage(net, images, settings, exclude=stream) < 1e-5


@pytest.mark.parametrize("kind", ["grouped", "depthwise", "linear", "strided", "no_bias"])
def test_every_kind_of_reader_is_repaired(images, kind):
    behind = {
        "grouped": nn.Conv2d(16, 8, 3, padding=1, groups=2),
        "depthwise": nn.Conv2d(16, 16, 3, groups=16),
        "linear": nn.Conv2d(16, 8, 1),
        "strided": nn.Conv2d(16, 8, 3, stride=2, padding=2, dilation=2),
        "no_bias": nn.Conv2d(16, 8, 3, bias=False),
    }[kind]
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        behind,
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(behind.out_channels * 4, 4),
    ).eval()
    assert damage(net, images, Reconstruction(points=20)) < 0.8 * damage(net, images, None)


class ChannelsLast(nn.Module):
    """Linear layers over images whose channels lie last, as in ConvNeXt and Swin."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 1)
        self.wide, self.back = nn.Linear(channels, 32), nn.Linear(32, channels)
        self.head = nn.Linear(channels, 5)

    def forward(self, x):
        x = self.stem(x).permute(0, 2, 3, 1)
        x = x + self.back(torch.relu(self.wide(x)))
        return self.head(x.mean((1, 2)))


@pytest.mark.parametrize("channels", [6, 8, 16])  # as wide as the images, and not
def test_linear_layers_over_images_are_fitted_along_their_channels(images, channels):
    torch.manual_seed(0)
    net = ChannelsLast(channels).eval()
    exclude = ["stem", "back"]
    none = damage(net, images, None, exclude=exclude)
    for settings in (Reconstruction(), Reconstruction(inputs="dense")):
        assert damage(net, images, settings, exclude=exclude) < 0.3 * none


class Spread(nn.Module):
    """A sum whose other operand is one row for all examples."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 32), nn.Linear(32, 12)
        self.row = nn.Parameter(torch.randn(12))
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        return self.head(torch.relu(self.second(torch.relu(self.first(x))) + self.row))


def test_a_sum_with_something_smaller_is_no_shortcut():
    torch.manual_seed(0)
    net, inputs = Spread().eval(), torch.randn(256, 6)
    trace = automl.trace(net, inputs[:2], exclude=["second"])
    pruner = Pruner(trace, calibration=inputs)
    assert damage(net, inputs, Reconstruction(), exclude=["second"]) < 0.5 * damage(
        net, inputs, None, exclude=["second"]
    )
    assert pruner.prune(policy_from_ratios(pruner, 0.5, rounding=1))(inputs).isfinite().all()


def test_batch_norms_without_statistics_are_no_place_for_an_intercept(images):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16, track_running_stats=False)]
    layers += [nn.ReLU(), nn.Conv2d(16, 8, 3, bias=False)]
    layers += [nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()
    assert damage(net, images, Reconstruction(points=20)) < damage(net, images, None)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x, y):
        return self.c(torch.relu(self.a(x) + self.b(y)))


def test_what_cannot_be_repaired_on_is_refused_in_a_line():
    inputs = torch.randn(32, 8)
    with pytest.raises(InputError, match="takes 2 inputs, and repair needs those of one"):
        automl.prune(Two().eval(), (inputs[:2], inputs[:2]), 0.5, calibration=inputs)
    with pytest.raises(InputError, match=r"calibration must be a tensor .* got tuple"):
        automl.prune(Two().eval(), (inputs[:2], inputs[:2]), 0.5, calibration=(inputs, inputs))
    with pytest.raises(InputError, match=r"dimensions of the example inputs, \(2, 8\) but for"):
        automl.prune(nn.Linear(8, 4).eval(), inputs[:2], 0.5, calibration=inputs[0])


def test_the_dense_network_is_not_touched(images):
    net = randomise(Net())
    before = copy.deepcopy(net.state_dict())
    damage(net, images, Reconstruction())
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_pruning_twice_gives_the_same_network(images):
    net = randomise(Net())
    pruner = Pruner(automl.trace(net, images[:2]), calibration=images)
    policy = policy_from_ratios(pruner, 0.5, rounding=1)
    one, other = pruner.prune(policy), pruner.prune(policy)
    with torch.no_grad():
        assert torch.equal(one(images), other(images))


def test_weights_equal_a_float64_regression_on_the_pruned_inputs(images):
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten()).eval()
    images = images[:, :, :1, :1].contiguous()  # one position: sampling takes them all
    trace = automl.trace(net, images[:2])
    settings = Reconstruction(points=1, ridge=1e-9)
    pruner = Pruner(trace, calibration=images, reconstruct=settings)
    slim = pruner.prune(policy_from_ratios(pruner, 0.5, rounding=1))
    with torch.no_grad():
        x = torch.relu(slim[0](images)).flatten(1).double()
        y = net(images).flatten(1).double()
    design = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], dim=1)
    best = torch.linalg.lstsq(design, y).solution
    torch.testing.assert_close(
        slim[2].weight.flatten(1).double(), best[:-1].T, rtol=1e-3, atol=1e-4
    )
    torch.testing.assert_close(slim[2].bias.double(), best[-1], rtol=1e-3, atol=1e-4)


def test_graph_form_networks_are_repaired_too(images):
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.qkv = nn.Linear(8, 16), nn.Linear(16, 48)
            self.out, self.head = nn.Linear(16, 16), nn.Linear(16, 3)

        def forward(self, x):
            x = torch.tanh(self.embed(x))
            batch, tokens, _ = x.shape
            q, k, v = self.qkv(x).reshape(batch, tokens, 3, 4, 4).permute(2, 0, 3, 1, 4)
            mixed = (q @ k.transpose(-2, -1)).softmax(-1) @ v
            x = x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, 16))
            return self.head(x.mean(1))

    torch.manual_seed(0)
    net, tokens = Attention().eval(), torch.randn(200, 6, 8)
    heads = {"qkv.head": 0.5}
    trace = automl.trace(net, tokens[:2])
    errors = {}
    for name, settings in (("none", None), ("repaired", Reconstruction())):
        pruner = Pruner(trace, calibration=tokens, reconstruct=settings)
        slim = pruner.prune(policy_from_ratios(pruner, heads, rounding=1))
        with torch.no_grad():
            errors[name] = float(((slim(tokens) - net(tokens)) ** 2).mean())
    assert errors["repaired"] < 0.5 * errors["none"]


@pytest.mark.parametrize(
    ("field", "value"), [("points", 0), ("ridge", 0.0), ("ridge", -1.0), ("scope", "all")]
)
def test_bad_settings_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"Reconstruction.{field}"):
        Reconstruction(**{field: value})


def test_positions_arethinned_evenly_where_a_filter_has_few_weights():
    positions = torch.arange(30_000)[:, None].expand(-1, 3)
    few = thinned(positions, features=9)
    assert 9 * 256 <= len(few) < 2 * 9 * 256
    assert set(few[:, 0].diff().tolist()) == {len(positions) // (9 * 256)}
    assert torch.equal(thinned(positions, features=512), positions)


@pytest.mark.parametrize(("groups", "samples"), [(1, 5000), (6, 5000), (6, 50)])
def test_grouped_and_chunked_fits_equal_float64_normal_equations(groups, samples):
    torch.manual_seed(0)
    x = torch.randn(groups, 9, samples).transpose(1, 2) + 3
    y, old = torch.randn(groups, samples, 2), torch.randn(groups, 9, 2)
    fit = solve(x, y, old, ridge=1e-2, centred=True)
    u = x.double() - x.double().mean(1, keepdim=True)
    v = y.double() - y.double().mean(1, keepdim=True)
    gram = u.transpose(1, 2) @ u
    power = 1e-2 * gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    left = u.transpose(1, 2) @ (v - u @ old.double())
    right = torch.linalg.solve(gram + power * torch.eye(9, dtype=torch.float64), left)
    torch.testing.assert_close(fit.weight.double(), old + right, rtol=1e-4, atol=1e-5)


class Tied(nn.Module):
    """Vectors out by the transposed table that they came in by, and a norm that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(16, 24, bias=False)
        self.layers = nn.ModuleList(nn.Linear(24, 24, bias=False) for _ in range(3))
        self.norm = nn.BatchNorm1d(24)
        self.out, self.again = nn.Linear(24, 24), nn.Linear(24, 24)
        self.again.weight = self.layers[0].weight
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        x = torch.relu(self.into(x))
        for layer in self.layers:
            x = x + torch.relu(self.norm(layer(x)))
        return self.head(torch.relu(self.again(torch.relu(self.out(x)))))


def test_weights_that_two_layers_share_are_repaired_for_both():
    torch.manual_seed(0)
    net, calibration = randomise(Tied()), torch.randn(512, 16)
    none, repaired = (damage(net, calibration, s, ratio=0.25) for s in (None, Reconstruction()))
    assert repaired < 0.5 * none


def test_a_language_model_with_a_tied_head_is_repaired_nearly_as_well_as_without_the_tie():
    """One pass alone leaves it worse than no repair: the head changes what went in first."""
    data, left = load_data("next_token", limit=256), {}
    tokens = data.calibration(256).images
    for tied in (True, False):
        net = load_model(
            "automl.models.gpt.next_token_tiny",
            checkpoint="package:weights/gpt_tiny.safetensors",
            input_shape=[24],
        ).model
        if not tied:
            net.head.weight = nn.Parameter(net.head.weight.detach().clone())
        trace = automl.trace(net, tokens[:2])
        scorer = ClassifierScorer(
            data.validation.images, data.validation.labels, score="kl", dense=net
        )
        for calibration in (None, tokens):
            pruner = Pruner(trace, calibration=calibration)
            network = pruner.prune(policy_from_ratios(pruner, 0.7, rounding=1))
            left[tied, calibration is not None] = -scorer(network)[0]
    assert left[True, True] < 0.1 * left[True, False]
    assert left[True, True] < 2 * left[False, True]


LAYERS = {
    "same": (2, lambda i, o: nn.Conv2d(i, o, (3, 2), padding="same", dilation=(1, 2))),
    "valid": (2, lambda i, o: nn.Conv2d(i, o, 2, padding="valid")),
    "circular": (2, lambda i, o: nn.Conv2d(i, o, 3, padding=1, padding_mode="circular")),
    "reflect": (2, lambda i, o: nn.Conv2d(i, o, 3, padding=1, stride=2, padding_mode="reflect")),
    "replicate, same": (
        2, lambda i, o: nn.Conv2d(i, o, (3, 2), padding="same", padding_mode="replicate"),
    ),
    "one dimension": (1, lambda i, o: nn.Conv1d(i, o, 3, padding=2, dilation=2, groups=2)),
    "one, circular": (1, lambda i, o: nn.Conv1d(i, o, 3, padding=1, padding_mode="circular")),
    "three dimensions": (3, lambda i, o: nn.Conv3d(i, o, (1, 2, 3), padding=(0, 1, 1), stride=2)),
    "transposed": (2, lambda i, o: nn.ConvTranspose2d(i, o, 3, 2, 1, output_padding=1)),
    "transposed, in groups": (
        2, lambda i, o: nn.ConvTranspose2d(i, o, (2, 3), (1, 2), groups=2, dilation=(2, 1)),
    ),
    "transposed, one dimension": (1, lambda i, o: nn.ConvTranspose1d(i, o, 4, 2, bias=False)),
    "transposed, three dimensions": (3, lambda i, o: nn.ConvTranspose3d(i, o, 2, 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_what_is_fitted_is_what_convolutions_of_every_kind_read(name):
    """Inputs times weights, as matrices, are the layer's own outputs."""
    dims, make = LAYERS[name]
    torch.manual_seed(0)
    layer = make(4, 6).double()
    data = torch.randn(3, 4, *[5] * dims, dtype=torch.float64)
    with torch.no_grad():
        outputs = layer(data)
        places = sample(outputs, 1, 200, len(data), torch.Generator().manual_seed(0))
        mode = getattr(layer, "padding_mode", "zeros")
        padded = mode != "zeros"
        if padded:
            data = nn.functional.pad(data, layer._reversed_padding_repeated_twice, mode)
        inputs = patches(data, layer, places, padded)
        assert inputs.shape[2] == features(layer)
        found = inputs @ as_matrices(layer, layer.groups)
        found = found.transpose(0, 1).flatten(1)
        if layer.bias is not None:
            found = found + layer.bias
        torch.testing.assert_close(found, gather(outputs, 1, places))
        before = layer.weight.clone()
        write(layer, None, Fit(as_matrices(layer, layer.groups), torch.zeros(6).double()))
        assert torch.equal(layer.weight, before)


class Between(nn.Module):
    """A layer that reads what can be pruned, and whose outputs stay."""

    def __init__(self, dims: int, make) -> None:
        super().__init__()
        kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
        self.wide, self.layer = kinds[dims - 1](3, 16, 1), make(16, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = self.layer(torch.relu(self.wide(x)))
        return self.head(torch.relu(x).flatten(2).mean(2))


#: Look-ups leave layers with groups alone; what they collect is what the others are fitted on.
BY_LOOKUP = ("same", "circular", "one, circular", "transposed")


@pytest.mark.parametrize(
    "name, inputs", [(n, "pruned") for n in LAYERS] + [(n, "dense") for n in BY_LOOKUP]
)
def test_convolutions_of_every_kind_are_repaired(name, inputs):
    dims, make = LAYERS[name]
    torch.manual_seed(0)
    net, calibration = Between(dims, make).eval(), torch.randn(192, 3, *[5] * dims)
    settings = Reconstruction(inputs=inputs)
    none, repaired = (damage(net, calibration, s, exclude=["layer"]) for s in (None, settings))
    assert repaired < 0.6 * none


class Again(nn.Module):
    """A layer that is called again on what it has put out itself."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.stem, self.again = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, padding=1, bias=bias)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        for _ in range(3):
            x = x + torch.relu(self.again(x))
        return self.head(x.mean((2, 3)))


class Pyramid(nn.Module):
    """A head that all levels share, as detectors have it; ``norms`` gives each its batch norm."""

    def __init__(self, norms: bool) -> None:
        super().__init__()
        self.levels = nn.ModuleList(nn.Conv2d(3, 8, 3, stride) for stride in (1, 2, 3))
        self.tower = nn.Conv2d(8, 24, 3, padding=1, bias=not norms)
        self.norms = nn.ModuleList(nn.BatchNorm2d(24) if norms else nn.Identity() for _ in "123")
        self.head = nn.Conv2d(24, 5, 3, padding=1)

    def forward(self, x):
        found = []
        for level, norm in zip(self.levels, self.norms, strict=True):
            hidden = torch.relu(norm(self.tower(torch.relu(level(x)))))
            found.append(self.head(hidden).mean((2, 3)))
        return torch.cat(found, 1)


CALLED_AGAIN = {
    "in a loop": Again,
    "in a loop, no bias": lambda: Again(bias=False),
    "by levels": lambda: Pyramid(norms=False),
    "by levels with their norms": lambda: Pyramid(norms=True),
}


@pytest.mark.parametrize("inputs", ["pruned", "dense"])
@pytest.mark.parametrize("kind", CALLED_AGAIN)
def test_layers_that_are_called_more_than_once_are_fitted_for_all_calls(images, kind, inputs):
    torch.manual_seed(0)
    net = randomise(CALLED_AGAIN[kind]())
    settings = Reconstruction(inputs=inputs, points=20)
    none, repaired = (damage(net, images, s) for s in (None, settings))
    assert repaired < 0.5 * none
