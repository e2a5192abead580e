import numpy as np
import pytest

from automl.executors import spmm
from automl.executors.kernels import cpu
from automl.executors.spmm import Spmm


def layer(rows=50, columns=300, density=0.1):
    rng = np.random.default_rng(0)
    weight = rng.integers(1, 9, (rows, columns)) * (rng.random((rows, columns)) < density)
    bias = rng.integers(-9, 9, rows)
    return weight.astype(np.float32), bias.astype(np.float32)


@pytest.mark.parametrize("batch", [1, 15, 16, 17, 48, 49, 64, 65, 130])
@pytest.mark.parametrize("kind", ["vector", "plain"])
def test_batches_of_any_size(batch, kind, monkeypatch):
    if kind == "plain":
        monkeypatch.setattr(cpu, "supports", lambda needed: False)
    weight, bias = layer()
    x = np.random.default_rng(1).integers(-9, 9, (batch, 300)).astype(np.float32)
    # Whole numbers: every order of additions gives the same.
    assert np.array_equal(Spmm().pack(weight, bias)(x), x @ weight.T + bias)


@pytest.mark.parametrize("tile", [1, 7, 64, 256])
def test_tiles_of_any_width(tile):
    weight, bias = layer()
    x = np.ones((3, 300), np.float32)
    packed = Spmm(tile).pack(weight, bias)
    assert np.array_equal(packed.to_dense(), weight)
    assert np.array_equal(packed(x), x @ weight.T + bias)


@pytest.mark.parametrize("kind", ["vector", "plain"])
def test_blocks_of_rows(kind, monkeypatch):
    if kind == "plain":
        monkeypatch.setattr(cpu, "supports", lambda needed: False)
    monkeypatch.setattr(spmm, "BLOCK", 16)
    weight, bias = layer()
    weight[16:32] = 0
    x = np.random.default_rng(1).integers(-9, 9, (33, 300)).astype(np.float32)
    packed = Spmm().pack(weight, bias)
    assert len(packed.tiles) == 4 * 3 + 1 and np.array_equal(packed.to_dense(), weight)
    assert np.array_equal(packed(x), x @ weight.T + bias)


@pytest.mark.parametrize("place", [(0, 0), (63, 299), (64, 17), (66, 298)])
def test_what_is_not_finite_is_found_wherever_it_is(place):
    weight, bias = layer()
    x = np.ones((67, 300), np.float32)
    x[place] = np.nan
    y = Spmm().pack(weight, bias)(x)
    assert np.isnan(y[place[0]]).all() and np.isfinite(np.delete(y, place[0], 0)).all()


def test_rows_of_like_counts_follow_each_other():
    packed = Spmm(tile=256).pack(layer(columns=256)[0])
    counts = np.diff(packed.starts)
    assert (np.diff(counts) >= 0).all() and counts.sum() == len(packed.value)


@pytest.mark.parametrize("tile", [0, 257])
def test_wrong_settings_are_refused(tile):
    with pytest.raises(ValueError, match=r"Spmm.tile must be in 1..256"):
        Spmm(tile)
