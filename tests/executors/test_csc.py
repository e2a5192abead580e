import numpy as np
import pytest

from automl.executors.csc import Bitmap, Csc


@pytest.mark.parametrize("rows", [2**16 - 1, 2**16, 2**16 + 5])
def test_row_numbers_are_as_wide_as_they_must_be(rows):
    weight = np.zeros((rows, 3), np.float32)
    weight[[0, -1], [0, 2]] = [2, 3]
    packed = Csc().pack(weight)
    assert packed.wide == (rows >= 2**16)
    assert np.array_equal(packed.to_dense(), weight)
    y = packed(np.array([1, 1, 10], np.float32))
    assert y[0] == 2 and y[-1] == 30 and np.count_nonzero(y) == 2


def test_columns_are_filled_up_to_fours():
    weight = np.zeros((9, 4), np.float32)
    weight[:5, 0], weight[:4, 1], weight[8, 3] = 1, 2, 3
    packed = Csc().pack(weight)
    assert packed.starts.tolist() == [0, 12, 18, 18, 24]
    assert packed.rows[5:8].tolist() == [9, 9, 9] and not packed.value[5:8].any()


@pytest.mark.parametrize("form", [Csc(), Bitmap()])
def test_columns_of_zero_activations_are_never_read(form):
    weight = np.ones((20, 5), np.float32)
    packed = form.pack(weight)
    words = packed.stream.view(np.float32) if form.name == "csc" else packed.value
    column = words[packed.starts[2] : packed.starts[3]]
    column[column == 1] = np.nan
    x = np.array([1, 2, 0, 3, -0.0], np.float32)
    assert (packed(x) == 6).all()
    assert np.isnan(packed(np.ones(5, np.float32))).all()
