"""What every format in conf/executor keeps: it multiplies as the dense layer does."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from automl.executors import formats, packed_file
from automl.executors.kernels import cpu
from automl.types import InputError

#: Error to the sum of |weight| |activation| of the row, by format: what its rounding explains.
ROUNDING = {"pell_bf16": 2**-8, "nm24_bf16": 2**-8}
#: Error of an activation to the range of all, where activations are rounded too.
LEVELS = dict.fromkeys(["pell_int8", "pell_codebook_int8", "nm24_int8"], 1 / 255)
LOSSLESS = ("dense", "csc", "pell", "bitmap", "spmm", "nm24")


@pytest.fixture(params=formats.names())
def form(request):
    return formats.load(request.param)


@contextmanager
def kernels(kind):
    """Vector kernels, or the plain ones as on processors without AVX-512."""
    supports = cpu.supports
    if kind == "plain":
        cpu.supports = lambda needed: False
    try:
        yield
    finally:
        cpu.supports = supports


def layer(form, rows, columns, density, seed=0):
    """A random layer that the format can hold: (weight, bias, activations)."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal(15).astype(np.float32)
    weight = shared[rng.integers(0, 15, (rows, columns))]
    weight *= rng.random((rows, columns)) < density
    if form.name.startswith("nm24"):
        rank = np.argsort(np.argsort(rng.random((rows, -(-columns // 4), 4)), -1), -1)
        weight *= (rank < 2).reshape(rows, -1)[:, :columns]
    bias = rng.standard_normal(rows).astype(np.float32)
    x = rng.standard_normal(columns).astype(np.float32) * (rng.random(columns) < 0.6)
    return weight, bias, x.astype(np.float32)


def check(form, weight, bias, x):
    """The packed layer's output against float64, within what rounding explains."""
    packed = form.pack(weight, bias)
    y = packed(x)
    assert y.shape == (*x.shape[:-1], len(weight)) and y.dtype == np.float32
    exact = x.astype(np.float64) @ packed.to_dense().T.astype(np.float64) + bias
    size = np.abs(x).astype(np.float64) @ np.abs(weight).T + np.abs(bias)
    allowed = (2e-6 + ROUNDING.get(form.name, 0)) * size + 1e-30
    if form.name in LEVELS:
        span = x.max(-1, initial=0) - x.min(-1, initial=0)
        allowed += np.multiply.outer(LEVELS[form.name] * span, np.abs(weight).sum(1))
    assert (np.abs(y - exact) <= allowed).all()
    return packed, y


@pytest.mark.parametrize("kind", ["vector", "plain"])
@pytest.mark.parametrize("name", formats.names())
@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 70),
    columns=st.integers(1, 700),
    density=st.one_of(st.just(0.0), st.floats(0.002, 1)),
    batch=st.integers(1, 3),
    seed=st.integers(0, 9),
)
def test_random_layers_equal_the_dense_product(name, kind, rows, columns, density, batch, seed):
    form = formats.load(name)
    weight, bias, x = layer(form, rows, columns, density, seed)
    with kernels(kind):
        check(form, weight, bias, np.stack([x * (1 + i) for i in range(batch)])[:: (-1) ** seed])


@pytest.mark.parametrize("density", [0.0, 0.3])
def test_the_weight_comes_back(form, density):
    weight, bias, _ = layer(form, 37, 301, density)
    dense = form.pack(weight, bias).to_dense()
    assert dense.shape == weight.shape and dense.dtype == np.float32
    assert np.array_equal(dense != 0, weight != 0)
    if form.name in LOSSLESS or form.name in ("eie", "pell_codebook"):
        assert np.array_equal(dense, weight)  # A codebook holds 15 values exactly.
    elif form.name == "pell_codebook_int8":
        assert np.abs(dense - weight).max() <= np.abs(weight).max() / 32000
    else:
        assert np.abs(dense - weight).max() <= 2**-8 * np.abs(weight).max()


def test_empty_rows_and_columns_and_a_zero_matrix(form):
    weight, bias, x = layer(form, 40, 200, 0.3)
    weight[:17] = 0
    weight[20] = 0
    weight[:, 50:120] = 0
    weight[:, -30:] = 0
    check(form, weight, bias, x)
    packed, y = check(form, np.zeros_like(weight), bias, x)
    assert np.array_equal(y, bias) and not packed.to_dense().any()


def test_activations_of_zero_give_the_bias(form):
    weight, bias, x = layer(form, 21, 64, 0.3)
    assert np.array_equal(form.pack(weight, bias)(np.zeros_like(x)), bias)
    assert np.array_equal(form.pack(weight)(np.zeros_like(x)), np.zeros_like(bias))


def test_a_single_weight(form):
    one = np.array([[2.0]], np.float32)
    y = form.pack(one, np.array([1.0], np.float32))(np.array([3.0], np.float32))
    assert y == pytest.approx([7], rel=1e-6)


def test_nan_and_infinity_come_out_where_dense_has_them(form):
    weight, bias, x = layer(form, 30, 100, 0.3)
    packed = form.pack(weight, bias)
    dense = torch.from_numpy(packed.to_dense())
    for bad in (np.nan, np.inf, -np.inf):
        x[3] = bad
        expected = torch.nn.functional.linear(
            torch.from_numpy(x), dense, torch.from_numpy(bias)
        ).numpy()
        assert np.array_equal(np.isnan(packed(x)), np.isnan(expected))
        assert np.array_equal(packed(x)[np.isinf(expected)], expected[np.isinf(expected)])
    x[3] = np.nan
    both = packed(np.stack([x, np.ones_like(x)]))
    assert np.isnan(both[0]).all() and np.isfinite(both[1]).all()


@pytest.mark.parametrize("size", [1.0, 0.3, 7.0, 1e-3, 255.0])
def test_the_largest_activation_stays_the_largest_where_the_range_is_symmetric(form, size):
    weight, bias = np.zeros((4, 64), np.float32), np.zeros(4, np.float32)
    weight[0, 1], weight[1, 0], weight[2, 5] = 1, 1, 1
    x = np.zeros(64, np.float32)
    x[0], x[1] = -size, size
    assert np.allclose(form.pack(weight, bias)(x), [size, -size, 0, 0], atol=0.02 * size)


def test_weights_that_are_no_numbers_are_not_lost_where_activations_are_zero(form):
    weight, bias, x = layer(form, 20, 64, 0.3)
    weight[3, 7] = np.nan
    x[7] = 0
    if not form.unfit(weight):
        assert np.isnan(form.pack(weight, bias)(x)[3])


def test_nan_and_infinite_weights_pass_or_are_refused(form):
    weight, bias, x = layer(form, 20, 64, 0.3)
    weight[3], weight[4], weight[5] = 0, 0, 0
    weight[3, 7], weight[4, 9], weight[5, 9] = np.nan, np.inf, -np.inf
    x[[7, 9]] = 1
    if form.unfit(weight):
        with pytest.raises(ValueError, match="must be finite"):
            form.pack(weight, bias)
        return
    y = form.pack(weight, bias)(x)
    assert np.isnan(y[3]) and y[4] == np.inf and y[5] == -np.inf
    assert np.isfinite(np.delete(y, [3, 4, 5])).all()


def test_denormal_weights_and_activations(form):
    weight, bias, x = layer(form, 20, 64, 0.4)
    tiny = np.float32(2.0**-140)
    check(form, weight * tiny, bias, x)
    packed = form.pack(weight)
    exact = (packed.to_dense().astype(np.float64) @ x.astype(np.float64)) * float(tiny)
    y = packed(x * tiny)
    if form.name in LOSSLESS or form.name in ("eie", "pell_codebook"):
        assert np.abs(y - exact).max() <= 200 * 2.0**-149
    else:
        assert np.isfinite(y).all() and np.abs(y).max() < 1e-36


def test_sums_too_large_for_float32_are_infinite(form):
    weight = np.full((3, 8), 1e38, np.float32)
    if form.name.startswith("nm24"):
        weight[:, 2:4] = weight[:, 6:] = 0
    x = np.full(8, 3e38, np.float32)
    assert (form.pack(weight)(x) == np.inf).all()


def test_a_large_weight_times_nothing_is_nothing(form):
    weight = np.zeros((2, 8), np.float32)
    weight[:, 0] = [3e38, -3e38]
    x = np.full(8, 3e38, np.float32)
    x[0] = 0
    assert form.pack(weight, np.ones(2, np.float32))(x).tolist() == [1, 1]


def test_any_memory_order_and_leading_dimensions(form):
    weight, bias, x = layer(form, 24, 96, 0.3)
    packed = form.pack(np.asfortranarray(weight), bias)
    expected = packed(x)
    wide = np.zeros((96, 3), np.float32)
    wide[:, 1] = x
    assert np.array_equal(packed(wide[:, 1]), expected)
    assert np.array_equal(packed(x[::-1][::-1]), expected)
    y = packed(np.broadcast_to(x, (2, 3, 96)))
    assert y.shape == (2, 3, 24) and np.allclose(y, expected, rtol=1e-4, atol=1e-4)
    assert packed(np.zeros((0, 96), np.float32)).shape == (0, 24)
    assert packed(np.zeros((2, 0, 96), np.float32)).shape == (2, 0, 24)


def test_the_input_is_left_alone_and_the_output_is_new(form):
    weight, bias, x = layer(form, 24, 96, 0.3)
    packed, before = form.pack(weight, bias), x.copy()
    first = packed(x)
    kept = first.copy()
    packed(2 * x)
    assert np.array_equal(x, before) and np.array_equal(first, kept)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32, np.complex64])
def test_other_types_of_activations_are_refused(form, dtype):
    weight, _, x = layer(form, 8, 32, 0.3)
    with pytest.raises(TypeError, match="x must be float32, got"):
        form.pack(weight)(np.asarray(x.real, dtype))


@pytest.mark.parametrize("shape", [(), (31,), (32, 1), (2, 33)])
def test_wrong_shapes_of_activations_are_refused(form, shape):
    weight, _, _ = layer(form, 8, 32, 0.3)
    with pytest.raises(ValueError, match=r"x must be \(\.\.\., 32\)"):
        form.pack(weight)(np.zeros(shape, np.float32))


def test_wrong_weights_and_biases_are_refused(form):
    with pytest.raises(TypeError, match="weight must hold floating-point"):
        form.pack(np.ones((4, 4), np.int64))
    for shape in ((4,), (2, 2, 2), (0, 4), (4, 0)):
        with pytest.raises(ValueError, match="weight must be a matrix with entries"):
            form.pack(np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match=r"bias must have shape \(4,\), got \(3,\)"):
        form.pack(np.zeros((4, 4), np.float32), np.zeros(3, np.float32))
    with pytest.raises(TypeError, match="bias must hold floating-point"):
        form.pack(np.zeros((4, 4), np.float32), np.zeros(4, np.int64))


def test_packing_does_not_keep_the_weight(form):
    weight, bias, x = layer(form, 24, 96, 0.3)
    packed = form.pack(weight, bias)
    expected = packed(x)
    weight[:], bias[:] = 7, 7
    assert np.array_equal(packed(x), expected)


def test_files_bring_back_the_same_layer(form, tmp_path):
    weight, bias, x = layer(form, 40, 300, 0.2)
    packed = form.pack(weight, bias)
    packed_file.save({"a": packed, "b.c": form.pack(np.zeros_like(weight))}, tmp_path)
    loaded = packed_file.load(tmp_path)
    assert list(loaded) == ["a", "b.c"] and type(loaded["a"]) is type(packed)
    assert np.array_equal(loaded["a"](x), packed(x))
    assert np.array_equal(loaded["a"].to_dense(), packed.to_dense())
    assert not loaded["b.c"](x).any()
    assert loaded["a"].nbytes == packed.nbytes
    assert all(array.nbytes == 0 or array.base is not None for array in loaded["a"].arrays.values())


def test_sizes_add_up_and_names_are_those_of_the_registry(form):
    packed = form.pack(layer(form, 40, 300, 0.2)[0])
    assert packed.nbytes == sum(array.nbytes for array in packed.arrays.values())
    assert packed.name == form.name in formats.names()
    assert (packed.out_features, packed.in_features) == (40, 300)


def test_unknown_names_and_settings_are_refused_with_a_hint():
    with pytest.raises(InputError, match="did you mean 'pell'"):
        formats.load("pel")
    with pytest.raises(InputError, match="no setting 'tiles'; did you mean 'tile'"):
        formats.load("pell", tiles=3)
