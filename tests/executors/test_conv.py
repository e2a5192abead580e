import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from automl.executors import spmm
from automl.executors.conv import pack_conv2d
from automl.executors.kernels import cpu


def layer(out_channels, inputs, kernel, density=0.3, seed=0):
    rng = np.random.default_rng(seed)
    shape = (out_channels, inputs, *kernel)
    weight = rng.integers(-4, 5, shape) * (rng.random(shape) < density)
    return weight.astype(np.float32), rng.integers(-4, 5, out_channels).astype(np.float32)


def exact(x, weight, bias, **geometry):
    tensors = (torch.from_numpy(np.ascontiguousarray(a)).double() for a in (x, weight, bias))
    return torch.nn.functional.conv2d(*tensors, **geometry).numpy()


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@pytest.mark.parametrize("kind", ["vector", "plain"])
@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 12), st.integers(1, 80)),
    kernel=pairs,
    stride=pairs,
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=pairs,
    groups=st.sampled_from([1, 2, 3]),
    batch=st.integers(1, 2),
)
def test_any_geometry(kind, size, kernel, stride, padding, dilation, groups, batch):
    weight, bias = layer(2 * groups, 2, kernel)
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    packed = pack_conv2d(weight, bias, **geometry)
    assert np.array_equal(packed.to_dense(), weight)
    x = np.random.default_rng(1).integers(-4, 5, (batch, 2 * groups, *size)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        if kind == "plain":
            patch.setattr(cpu, "supports", lambda needed: False)
        spans = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        if any(n + 2 * p <= s for n, p, s in zip(size, padding, spans, strict=True)):
            with pytest.raises(ValueError, match="as large as the kernel"):
                packed(x)
            return
        # Whole numbers: every order of additions gives the same.
        assert np.array_equal(packed(x), exact(x, weight, bias, **geometry))


def test_channels_last_and_single_images():
    weight, bias = layer(5, 3, (3, 3))
    packed = pack_conv2d(weight, bias, padding=(1, 1))
    x = np.random.default_rng(0).standard_normal((2, 9, 7, 3)).astype(np.float32)
    x = x.transpose(0, 3, 1, 2)
    y = packed(x)
    assert np.allclose(y, exact(x, weight, bias, padding=1), atol=1e-5)
    assert np.array_equal(packed(x[1]), y[1])


def test_nan_and_infinity_come_out_where_dense_has_them():
    weight, bias = layer(4, 2, (3, 3))
    x = np.ones((1, 2, 8, 8), np.float32)
    x[0, 1, 4, 4], x[0, 0, 0, 0] = np.nan, np.inf
    expected = torch.nn.functional.conv2d(*map(torch.from_numpy, (x, weight, bias))).numpy()
    y = pack_conv2d(weight, bias)(x)
    assert np.array_equal(np.isnan(y), np.isnan(expected)) and np.isnan(y).any()


def test_a_weight_of_zeros_gives_the_bias():
    weight, bias = layer(4, 2, (3, 3), density=0)
    y = pack_conv2d(weight, bias)(np.ones((1, 2, 5, 5), np.float32))
    assert np.array_equal(y, np.broadcast_to(bias[:, None, None], (1, 4, 3, 3)))


def test_wrong_arguments_are_refused():
    weight, bias = layer(4, 2, (3, 3))
    with pytest.raises(ValueError, match="weight must have four dimensions"):
        pack_conv2d(weight[0], bias)
    with pytest.raises(ValueError, match="groups must divide 4 channels, got 3"):
        pack_conv2d(weight, bias, groups=3)
    packed = pack_conv2d(weight, bias)
    with pytest.raises(TypeError, match="x must be float32, got float64"):
        packed(np.ones((1, 2, 5, 5)))
    with pytest.raises(ValueError, match=r"x must be \(batch, 2, height, width\)"):
        packed(np.ones((1, 3, 5, 5), np.float32))


@pytest.mark.parametrize("kind", ["vector", "plain"])
def test_more_channels_than_a_block_of_rows(kind, monkeypatch):
    if kind == "plain":
        monkeypatch.setattr(cpu, "supports", lambda needed: False)
    monkeypatch.setattr(spmm, "BLOCK", 16)
    weight, bias = layer(40, 30, (3, 3))
    x = np.random.default_rng(1).integers(-4, 5, (1, 30, 9, 9)).astype(np.float32)
    packed = pack_conv2d(weight, bias, tile=64)
    assert np.array_equal(packed(x), exact(x, weight, bias))


def test_its_size_does_not_depend_on_whether_it_has_run():
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((32, 16, 3, 3)).astype(np.float32)
    packed = pack_conv2d(weight * (rng.random(weight.shape) < 0.1), padding=(1, 1))
    before = packed.nbytes
    packed(np.zeros((1, 16, 8, 8), np.float32))
    assert packed.nbytes == before
    packed(np.zeros((1, 16, 9, 9), np.float32))
    arrays = sum(plan.offsets.nbytes for plan, _ in packed.plans.values())
    assert packed.nbytes == packed.matrix.nbytes + arrays
