import numpy as np
import pytest

from automl.executors.kernels import cpu
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


def test_places_of_bytes_are_where_the_layout_says():
    weight = np.zeros((4, 128), np.float32)
    weight[1, [69, 71]] = [127, 3]  # Four 17: entries 34 and 35, places 1 and 3.
    packed = Nm24("int8").pack(weight)
    assert packed.stream.nbytes == 4 * 16 + 4 * 64
    places = packed.stream[:16].view(np.uint8).reshape(4, 16)
    # Entry i in byte i % 16, bits 2 (i // 16); where nothing stands, places 0 and 1 are named.
    assert places[0].tolist() == [0, 0b01010101] * 8
    assert places[1, 2:4].tolist() == [0b00010000, 0b01110101]
    values = packed.stream[16:].view(np.int8).reshape(4, 64)
    assert values[1, 34:36].tolist() == [127, 3] and np.count_nonzero(values) == 2
    assert np.array_equal(packed.to_dense(), weight) and packed.offset.tolist() == [0, 130, 0, 0]


def test_int8_takes_5_bytes_for_32_of_dense():
    weight = np.ones((64, 512), np.float32)
    weight.reshape(64, 128, 4)[..., 1:3] = 0
    assert Nm24("int8").pack(weight).stream.nbytes * 32 == weight.nbytes * 5


def test_sums_of_int8_that_could_overflow_are_refused():
    weight = np.zeros((1, 4 * 32900), np.float32)
    weight.reshape(-1, 4)[:, :2] = 1
    with pytest.raises(ValueError, match="at most 65,793 non-zeros in a row for int8, got 65,800"):
        Nm24("int8").pack(weight)


@pytest.mark.skipif(not cpu.supports(cpu.BYTES), reason="needs AVX-512 with VNNI and VBMI")
def test_vector_and_plain_kernels_of_int8_agree_exactly(monkeypatch):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((37, 1000)).astype(np.float32)
    weight.reshape(37, -1, 4)[..., [0, 3]] = 0
    x = rng.standard_normal(1000).astype(np.float32)
    vector = Nm24("int8").pack(weight)(x)
    monkeypatch.setattr(cpu, "supports", lambda needed: False)
    assert np.array_equal(Nm24("int8").pack(weight)(x), vector)


@pytest.mark.parametrize("value", ["float32", "bfloat16", "int8"])
def test_more_than_two_of_four_are_refused(value):
    weight = np.zeros((2, 9), np.float32)
    weight[1, 4:7] = 1
    form = Nm24(value)
    assert form.unfit(weight) == "has 3 of 4 neighbours that are not zero"
    with pytest.raises(ValueError, match="at most 2 of 4 non-zeros, but has 3 of 4"):
        form.pack(weight)
    weight[1, 5] = 0
    assert form.unfit(weight) is None
    assert np.allclose(form.pack(weight).to_dense(), weight, rtol=1e-6)


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
    with pytest.raises(ValueError, match=r"Nm24.value must be one of .*, got 'int4'"):
        Nm24("int4")
