import numpy as np
import pytest

from automl.executors.nm24 import Nm24


def test_places_and_values_are_where_the_layout_says():
    weight = np.zeros((4, 128), np.float32)
    weight[1, [5, 7]] = [2, 3]  # Second four of the second row, places 1 and 3.
    packed = Nm24().pack(weight)
    assert len(packed.stream) == 16 + 4 * 4 * 16 == 272
    # Entries 2 and 3 of the row's first word; where nothing stands, places 0 and 1 are named.
    filled = sum(0b0100 << 4 * four for four in range(8))
    assert packed.stream[0] == filled
    assert packed.stream[1] == filled & ~(0b1111 << 4) | (1 | 3 << 2) << 4
    values = packed.stream[16:].view(np.float32)
    assert values[16 + 2 : 16 + 4].tolist() == [2, 3] and np.count_nonzero(values) == 2


def test_float32_takes_17_bytes_for_32_of_dense():
    weight = np.ones((64, 512), np.float32)
    weight.reshape(64, 128, 4)[..., 1:3] = 0
    assert Nm24().pack(weight).stream.nbytes * 32 == weight.nbytes * 17
    assert Nm24("bfloat16").pack(weight).stream.nbytes * 32 == weight.nbytes * 9


@pytest.mark.parametrize("value", ["float32", "bfloat16"])
def test_more_than_two_of_four_are_refused(value):
    weight = np.zeros((2, 9), np.float32)
    weight[1, 4:7] = 1
    form = Nm24(value)
    assert form.unfit(weight) == "has 3 of 4 neighbours that are not zero"
    with pytest.raises(ValueError, match="at most 2 of 4 non-zeros, but has 3 of 4"):
        form.pack(weight)
    weight[1, 5] = 0
    assert form.unfit(weight) is None and np.array_equal(form.pack(weight).to_dense(), weight)


def test_every_pair_of_places():
    pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    weight = np.zeros((3, 4 * len(pairs)), np.float32)
    for four, (i, j) in enumerate(pairs):
        weight[:, [4 * four + i, 4 * four + j]] = [[1], [2], [-3]]
    x = np.arange(weight.shape[1], dtype=np.float32)
    for value in ("float32", "bfloat16"):
        packed = Nm24(value).pack(weight)
        assert np.array_equal(packed.to_dense(), weight)
        assert packed(x).tolist() == (weight @ x).tolist()


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match=r"Nm24.value must be float32 or bfloat16, got 'int4'"):
        Nm24("int4")
