"""Sparse 3-D convolutions equal dense ones in float64, on both roads, and refuse bad clouds."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from automl.executors import kernel_map, spconv3d_product
from automl.executors.kernels import cpu
from automl.executors.spconv3d import SparseConv3d, SparseTensor, SubmanifoldConv3d
from automl.types import InputError

ROADS = ["fused", "grouped"]


@contextmanager
def road(kind):
    """Vector kernels, or the road of processors without AVX-512."""
    supports = cpu.supports
    if kind == "grouped":
        cpu.supports = lambda needed: False
    try:
        yield
    finally:
        cpu.supports = supports


def cloud(shape, density, channels, seed, low=(0, 0, 0), dtype=torch.float32):
    """Random voxels in random order; coordinates from ``low`` on."""
    rng = torch.Generator().manual_seed(seed)
    places = (torch.rand(shape, generator=rng) < density).nonzero()
    places = places[torch.randperm(len(places), generator=rng)]
    moved = places + torch.tensor([0, *low])
    features = torch.randn(len(places), channels, generator=rng).to(dtype)
    return SparseTensor(moved.int(), features)


def grid(x, shape, low=(0, 0, 0)):
    """The dense grid in float64."""
    whole = torch.zeros(shape[0], x.features.shape[1], *shape[1:], dtype=torch.float64)
    b, i, j, k = (x.coordinates - torch.tensor([0, *low])).long().T
    whole[b, :, i, j, k] = x.features.double()
    return whole


def same_padding(kernel):
    """What ``padding="same"`` is for F.pad, last axis first; an even kernel has more behind."""
    return [side for k in reversed(kernel) for side in ((k - 1) // 2, k // 2)]


def dense_submanifold(layer, x, shape, low=(0, 0, 0)):
    padded = F.pad(grid(x, shape, low), same_padding(layer.kernel_size))
    bias = None if layer.bias is None else layer.bias.double()
    y = F.conv3d(padded, layer.weight.double(), bias)
    b, i, j, k = (x.coordinates - torch.tensor([0, *low])).long().T
    return y[b, :, i, j, k]


def dense_strided(layer, x, shape, low=(0, 0, 0)):
    """Coordinates and features of all outputs that the kernel reaches, sorted."""
    margin = [-(-k // s) * s for k, s in zip(layer.kernel_size, layer.stride, strict=True)]
    # The grid starts at a multiple of the stride, with room for every kernel that reaches in.
    start = [l // s * s - m for l, s, m in zip(low, layer.stride, margin, strict=True)]  # noqa: E741
    sizes = [
        n + l - s + p + k + m
        for n, l, s, p, k, m in zip(  # noqa: E741
            shape[1:], low, start, layer.padding, layer.kernel_size, margin, strict=True
        )
    ]
    whole = grid(x, (shape[0], *sizes), start)
    bias = None if layer.bias is None else layer.bias.double()
    y = F.conv3d(whole, layer.weight.double(), bias, layer.stride, layer.padding)
    occupied = grid(x.with_features(torch.ones(len(x.features), 1)), (shape[0], *sizes), start)
    ones = torch.ones(1, 1, *layer.kernel_size, dtype=torch.float64)
    reached = F.conv3d(occupied, ones, None, layer.stride, layer.padding)[:, 0].round() > 0
    places = reached.nonzero()
    b, i, j, k = places.T
    first = [s // step for s, step in zip(start, layer.stride, strict=True)]
    return places + torch.tensor([0, *first]), y[b, :, i, j, k]


def tolerance(dtype):
    return 1e-4 if dtype == torch.float32 else 1e-12


@pytest.mark.parametrize("kind", ROADS)
@settings(max_examples=25)
@given(
    st.integers(0, 2**31),
    st.sampled_from([1, 2, 3, 5, (3, 1, 2), (1, 5, 3)]),
    st.sampled_from([1, 3, 16, 20]),
    st.sampled_from([1, 7, 16, 33, 48, 70]),
    st.sampled_from([0.02, 0.3, 1.0]),
    st.booleans(),
)
def test_a_submanifold_convolution_equals_the_dense_one(
    kind, seed, kernel, inputs, outputs, density, bias
):
    shape, low = (3, 5, 4, 6), (-3, 100, -70)
    x = cloud(shape, density, inputs, seed, low)
    torch.manual_seed(seed)
    layer = SubmanifoldConv3d(inputs, outputs, kernel, bias)
    with road(kind), torch.inference_mode():
        y = layer(x)
    assert y.coordinates is x.coordinates and y.features.dtype == torch.float32
    torch.testing.assert_close(
        y.features.double(), dense_submanifold(layer, x, shape, low), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("kind", ROADS)
@settings(max_examples=25)
@given(
    st.integers(0, 2**31),
    st.sampled_from([1, 2, 3, 5, (3, 1, 2)]),
    st.sampled_from([1, 2, 3, (2, 1, 3)]),
    st.sampled_from([0, 1, 2, (0, 1, 0)]),
    st.sampled_from([0.02, 0.3]),
)
def test_a_strided_convolution_equals_the_dense_one(kind, seed, kernel, stride, padding, density):
    shape, low = (2, 5, 4, 6), (-3, 8, -7)
    x = cloud(shape, density, 5, seed, low)
    torch.manual_seed(seed)
    layer = SparseConv3d(5, 18, kernel, stride, padding)
    with road(kind), torch.inference_mode():
        y = layer(x)
    places, exact = dense_strided(layer, x, shape, low)
    assert torch.equal(y.coordinates.long(), places)  # sorted, as the dense ones are
    torch.testing.assert_close(y.features.double(), exact, rtol=1e-5, atol=1e-5)


def test_float64_takes_the_grouped_road_exactly():
    x = cloud((2, 5, 5, 5), 0.4, 6, 0, dtype=torch.float64)
    layer = SubmanifoldConv3d(6, 9).double()
    exact = dense_submanifold(layer, x, (2, 5, 5, 5))
    torch.testing.assert_close(layer(x).features, exact, rtol=1e-12, atol=1e-12)


def test_clouds_do_not_see_each_other():
    x = cloud((1, 4, 4, 4), 0.5, 3, 0)
    twin = x.coordinates + torch.tensor([7, 0, 0, 0], dtype=torch.int32)
    both = SparseTensor(torch.cat([x.coordinates, twin]), x.features.repeat(2, 1))
    layer = SubmanifoldConv3d(3, 8)
    torch.testing.assert_close(layer(both).features, layer(x).features.repeat(2, 1))


def test_more_voxels_than_a_block_and_more_channels_than_a_panel():
    shape = (1, 12, 11, 10)
    x = cloud(shape, 0.7, 70, 0)
    assert len(x.features) > 3 * kernel_map.BLOCK
    layer = SubmanifoldConv3d(70, 150)
    torch.testing.assert_close(
        layer(x).features.double(), dense_submanifold(layer, x, shape), rtol=1e-5, atol=1e-5
    )


# ---- pruned weights


def masked(layer, mask):
    with torch.no_grad():
        layer.weight.mul_(mask)
    return layer


MASKS = {
    "offsets": lambda w: torch.rand(1, 1, *w.shape[2:]) < 0.5,
    "all offsets": lambda w: torch.zeros(1),
    "input channels": lambda w: torch.rand(1, w.shape[1], 1, 1, 1) < 0.5,
    "input channels of an offset": lambda w: torch.rand(1, *w.shape[1:]) < 0.3,
    "output channels": lambda w: (torch.arange(len(w)) % 3 == 1).view(-1, 1, 1, 1, 1),
    "single weights": lambda w: torch.rand(w.shape) < 0.1,
}


@pytest.mark.parametrize("kind", ROADS)
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("bias", [False, True])
def test_masked_weights_are_skipped_and_change_nothing(kind, name, bias):
    torch.manual_seed(0)
    shape = (2, 6, 5, 7)
    x = cloud(shape, 0.4, 20, 0)
    layer = SubmanifoldConv3d(20, 70, bias=bias)
    masked(layer, MASKS[name](layer.weight).float())
    with road(kind), torch.inference_mode():
        y = layer(x).features
    torch.testing.assert_close(y.double(), dense_submanifold(layer, x, shape), rtol=1e-5, atol=1e-5)


def test_what_is_zero_is_not_packed():
    weight = torch.randn(64, 32, 3, 3, 3)
    whole = spconv3d_product.pack(weight)
    assert len(whole.channels) == 27 * 32 and not whole.skips
    weight[:, :, 0] = 0  # 9 offsets
    weight[:, ::2, 1, 1, 1] = 0  # half of the channels of one
    weight[32:] = 0
    less = spconv3d_product.pack(weight)
    assert len(less.channels) == 17 * 32 + 16 and less.columns == 32 and less.skips
    assert len(less.weight) == len(less.channels) * 32
    all_of_it = spconv3d_product.pack(weight, skip=False)
    assert len(all_of_it.channels) == 27 * 32 and not all_of_it.skips


def test_a_weight_that_changed_in_any_way_is_packed_again():
    x = cloud((1, 5, 5, 5), 0.4, 4, 0)
    layer = SubmanifoldConv3d(4, 8)
    before = layer(x).features
    layer.weight.data.mul_(2)  # does not count as a change to torch
    layer.bias.data.mul_(2)
    torch.testing.assert_close(layer(x).features, 2 * before)


@pytest.mark.parametrize("kind", ROADS)
def test_removed_channels_equal_zeroed_ones(kind):
    """What structured pruning does by hand: two layers, the channels between them."""
    x = cloud((2, 6, 6, 6), 0.3, 5, 0)
    kept = torch.tensor([0, 3, 4, 9, 17])
    dense = nn.ModuleList([SubmanifoldConv3d(5, 20), SparseConv3d(20, 7)])
    slim = nn.ModuleList([SubmanifoldConv3d(5, len(kept)), SparseConv3d(len(kept), 7)])
    with torch.no_grad():
        slim[0].weight.copy_(dense[0].weight[kept])
        slim[0].bias.copy_(dense[0].bias[kept])
        slim[1].weight.copy_(dense[1].weight[:, kept])
        slim[1].bias.copy_(dense[1].bias)
        gone = torch.ones(20, dtype=torch.bool)
        gone[kept] = False
        dense[0].weight[gone] = 0
        dense[0].bias[gone] = 0
    with road(kind), torch.inference_mode():
        full, small = (two[1](two[0](x)) for two in (dense, slim))
    assert torch.equal(full.coordinates, small.coordinates)
    torch.testing.assert_close(full.features, small.features)


# ---- odd numbers and memory


@pytest.mark.parametrize("kind", ROADS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_come_out_where_dense_has_them(kind, value):
    x = cloud((1, 5, 5, 5), 0.4, 4, 0)
    x.features[3, 2] = value
    layer = SubmanifoldConv3d(4, 40)
    mask = torch.rand(1, 4, 3, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.5
    masked(layer, mask.float())
    mask_outputs = (torch.arange(40) < 12).view(-1, 1, 1, 1, 1)
    masked(layer, mask_outputs.float())
    with road(kind), torch.inference_mode():
        y = layer(x).features
    # Dense, but without multiplying places that are not occupied.
    exact = layer.bias.double().repeat(len(y), 1)
    for row, place in enumerate(x.coordinates.tolist()):
        for other, theirs in enumerate(x.coordinates.tolist()):
            dx, dy, dz = (b - a + 1 for a, b in zip(place[1:], theirs[1:], strict=True))
            if min(dx, dy, dz) >= 0 and max(dx, dy, dz) < 3:
                exact[row] += x.features[other].double() @ layer.weight[..., dx, dy, dz].double().T
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert y.isnan().any() or y.isinf().any()


@pytest.mark.parametrize("kind", ROADS)
def test_memory_order_does_not_matter(kind):
    x = cloud((1, 5, 5, 5), 0.4, 6, 0)
    layer = SubmanifoldConv3d(6, 8)
    wide = torch.zeros(len(x.features), 12)
    wide[:, ::2] = x.features
    strided_rows = x.coordinates.T.contiguous().T
    with road(kind):
        exact = layer(x).features
        for features in (wide[:, ::2], x.features.T.contiguous().T):
            y = layer(SparseTensor(strided_rows, features)).features
            torch.testing.assert_close(y, exact)
        turned = SubmanifoldConv3d(6, 8)
        turned.load_state_dict(layer.state_dict())
        turned.weight.data = (
            turned.weight.data.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0)
        )
        torch.testing.assert_close(turned(x).features, exact)


@pytest.mark.parametrize("kind", ROADS)
@pytest.mark.parametrize("layer", [SubmanifoldConv3d(3, 5), SparseConv3d(3, 5, 3, 2, 1)])
def test_an_empty_cloud_and_a_single_voxel(kind, layer):
    with road(kind), torch.inference_mode():
        empty = layer(SparseTensor(torch.zeros(0, 4, dtype=torch.int32), torch.zeros(0, 3)))
        assert empty.features.shape == (0, 5) and empty.coordinates.shape == (0, 4)
        at = torch.tensor([[0, 8, -4, 2]], dtype=torch.int32)
        one = layer(SparseTensor(at, torch.ones(1, 3)))
    if isinstance(layer, SparseConv3d):  # even places are reached by the middle of the kernel only
        assert one.coordinates.tolist() == [[0, 4, -2, 1]]
    middle = layer.weight[..., 1, 1, 1].sum(1) + layer.bias
    torch.testing.assert_close(one.features, middle[None])


def test_denormals_are_kept():
    at = torch.zeros(1, 4, dtype=torch.int32)
    layer = SubmanifoldConv3d(1, 1, 1, bias=False)
    layer.weight.data.fill_(1)
    tiny = torch.full((1, 1), 1e-42)
    assert layer(SparseTensor(at, tiny)).features.item() == tiny.item()


# ---- gradients


@pytest.mark.parametrize("layer", [SubmanifoldConv3d(3, 4), SparseConv3d(3, 4, 3, 2, 1)])
def test_gradients_are_those_of_finite_differences(layer):
    x = cloud((2, 3, 3, 3), 0.4, 3, 0, dtype=torch.float64)
    parameters = [p.detach().double().requires_grad_() for p in layer.parameters()]

    def run(features, weight, bias):
        replaced = {"weight": weight, "bias": bias}
        return torch.func.functional_call(layer, replaced, (x.with_features(features),)).features

    assert torch.autograd.gradcheck(run, (x.features.requires_grad_(), *parameters))


def test_float32_gradients_equal_those_of_float64():
    shape = (1, 8, 8, 8)
    x = cloud(shape, 0.6, 20, 0)
    layer = SparseConv3d(20, 24, 3, 2, 1)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        layer = layer.to(dtype)
        layer.zero_grad()
        features = x.features.detach().to(dtype, copy=True).requires_grad_()
        y = layer(x.with_features(features)).features
        (y * torch.arange(y.numel(), dtype=dtype).view_as(y).sin()).sum().backward()
        gradients.append([g.double() for g in (features.grad, layer.weight.grad, layer.bias.grad)])
    for single, double in zip(*gradients, strict=True):
        torch.testing.assert_close(single, double, rtol=1e-4, atol=1e-4)


def test_a_block_with_batch_norm_learns():
    torch.manual_seed(0)
    x = cloud((4, 6, 6, 6), 0.3, 2, 0)
    wanted = x.coordinates[:, 1:].sum(1) % 2  # the parity of a voxel's place
    x = x.with_features(torch.stack([wanted.float(), 1 - wanted.float()], 1).roll(1, 0))
    convs = nn.ModuleList([SubmanifoldConv3d(2, 16), SubmanifoldConv3d(16, 2)])
    norm = nn.BatchNorm1d(16)
    optimizer = torch.optim.Adam([*convs.parameters(), *norm.parameters()], 0.02)
    losses = []
    for _ in range(25):
        hidden = convs[0](x)
        logits = convs[1](hidden.with_features(torch.relu(norm(hidden.features)))).features
        loss = F.cross_entropy(logits, wanted.long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


# ---- maps


def test_layers_share_one_map_and_clouds_do_not(monkeypatch):
    made = []
    sort = kernel_map._sorted
    monkeypatch.setattr(kernel_map, "_sorted", lambda rows: made.append(len(rows)) or sort(rows))
    x = cloud((1, 6, 6, 6), 0.3, 4, 0)
    same, down, after = SubmanifoldConv3d(4, 4), SparseConv3d(4, 4), SubmanifoldConv3d(4, 4)
    for _ in range(3):
        after(after(down(same(same(x)))))
    assert len(made) == 2  # the cloud and its coarser one
    first = kernel_map.submanifold_map(x.coordinates, (3, 3, 3))
    assert kernel_map.submanifold_map(x.coordinates, (3, 3, 3)) is first
    assert kernel_map.submanifold_map(x.coordinates.clone(), (3, 3, 3)) is not first


def test_maps_do_not_outlive_their_coordinates():
    import gc

    gc.collect()
    before = len(kernel_map._known)
    x = cloud((1, 6, 6, 6), 0.3, 4, 0)
    SparseConv3d(4, 4)(SubmanifoldConv3d(4, 4)(x))
    assert len(kernel_map._known) == before + 1  # the coarser ones are only sorted when read
    del x
    gc.collect()
    assert len(kernel_map._known) == before


@pytest.mark.parametrize(("kernel", "merges"), [((3, 3, 3), 13), ((5, 1, 1), 2), ((2, 2, 2), 7)])
def test_half_of_the_offsets_are_merged(monkeypatch, kernel, merges):
    calls = []
    merge = kernel_map.kernels.shifted_matches
    monkeypatch.setattr(
        kernel_map.kernels, "shifted_matches", lambda *a: calls.append(1) or merge(*a)
    )
    x = cloud((1, 6, 6, 6), 0.3, 4, 0)
    found = kernel_map.submanifold_map(x.coordinates, kernel)
    assert len(calls) == merges
    if merges == 13:
        assert np.array_equal(found.sizes, found.sizes[::-1])


def test_huge_and_negative_coordinates():
    ends = [-(2**31), -1, 0, 2**31 - 1]
    rows = [[0, x, 5, 5] for x in ends] + [[3, x, 6, 5] for x in ends]
    x = SparseTensor(torch.tensor(rows, dtype=torch.int32), torch.randn(8, 3))
    layer = SubmanifoldConv3d(3, 4)
    y = layer(x).features
    near = layer.weight[..., 2, 1, 1] @ x.features[2] + layer.weight[..., 1, 1, 1] @ x.features[1]
    torch.testing.assert_close(y[1], near + layer.bias)
    torch.testing.assert_close(y[0], layer.weight[..., 1, 1, 1] @ x.features[0] + layer.bias)
    down = SparseConv3d(3, 4)(x)
    assert down.coordinates[:, 1].unique().tolist() == [-(2**30), -1, 0, 2**30 - 1]


def test_clouds_too_wide_for_a_key_are_refused():
    far = torch.tensor([[0, 0, 0, 0], [0, 2**31 - 1, 2**30, 9]], dtype=torch.int32)
    with pytest.raises(InputError, match=r"span 2147483648 x 1073741825 x 10 voxels in 1 clouds"):
        SubmanifoldConv3d(1, 1)(SparseTensor(far, torch.ones(2, 1)))
    edge = torch.tensor([[0, 2**31 - 1, 0, 0]], dtype=torch.int32)
    with pytest.raises(InputError, match="leave int32"):
        SparseConv3d(1, 1, 1, stride=1, padding=1)(SparseTensor(edge, torch.ones(1, 1)))


def refused(coordinates, features, kind, match):
    with pytest.raises(kind, match=match) as caught:
        SubmanifoldConv3d(3, 4)(SparseTensor(coordinates, features))
    assert "\n" not in str(caught.value)


def test_bad_clouds_are_refused_in_one_line():
    good = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 4], [1, 1, 2, 3]], dtype=torch.int32)
    x = torch.ones(3, 3)
    twice = good.clone()
    twice[2, 0] = 0
    refused(twice, x, InputError, r"rows 0 and 2 are both at \[0, 1, 2, 3\]; keep one")
    refused(good - 1, x, InputError, "batch must be >= 0, got -1")
    refused(good.long(), x, TypeError, "coordinates must be int32 on the CPU, got torch.int64")
    refused(good[:, 1:], x, ValueError, r"coordinates must be \(rows, 4\), got \(3, 3\)")
    refused(good, x.half(), TypeError, "features must be float32 or float64")
    refused(good, x.double(), TypeError, "features must be torch.float32, got torch.float64")
    refused(good, x.long(), TypeError, "features must be float32 or float64")
    refused(good, torch.ones(3, 2), ValueError, r"features must be \(voxels, 3\), got \(3, 2\)")
    refused(good, torch.ones(2, 3), ValueError, "features must have 3 rows, got 2")


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: SubmanifoldConv3d(3, 4, 0), "kernel_size must be one or three numbers >= 1"),
        (lambda: SubmanifoldConv3d(3, 4, (3, 3)), "kernel_size must be one or three numbers"),
        (lambda: SubmanifoldConv3d(0, 4), "in_channels must be >= 1, got 0"),
        (lambda: SparseConv3d(3, 4, stride=0), "stride must be one or three numbers >= 1"),
        (lambda: SparseConv3d(3, 4, padding=-1), "padding must be one or three numbers >= 0"),
    ],
)
def test_bad_settings_name_the_rule(make, match):
    with pytest.raises(ValueError, match=match):
        make()


# ---- groups


@given(st.lists(st.integers(0, 9000), max_size=30))
def test_groups_hold_every_offset_once_with_bounded_padding(sizes):
    found = list(spconv3d_product.groups(sizes))
    assert sorted(o for group in found for o in group) == [o for o, n in enumerate(sizes) if n]
    for group in found:
        own = [sizes[o] for o in group]
        assert own[0] == max(own)
        assert len(group) == 1 or (own[0] < 4096 and sum(own) >= 0.75 * own[0] * len(group))


def test_equal_offsets_share_a_product_and_big_ones_go_alone():
    assert list(spconv3d_product.groups([99, 5000, 98, 0, 20])) == [[1], [0, 2], [4]]
