import numpy as np
import pytest

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


def test_rows_of_like_counts_follow_each_other():
    packed = Spmm(tile=256).pack(layer(columns=256)[0])
    counts = np.diff(packed.starts)
    assert (np.diff(counts) >= 0).all() and counts.sum() == len(packed.value)


@pytest.mark.parametrize("tile", [0, 257])
def test_wrong_settings_are_refused(tile):
    with pytest.raises(ValueError, match=r"Spmm.tile must be in 1..256"):
        Spmm(tile)
