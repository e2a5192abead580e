"""Storage: every format against a plain packer, and means against all masks there are."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from automl.cost.storage import (
    CODEBOOK,
    FORMATS,
    Csc,
    RelativeCsc,
    Storage,
    TwoOfFour,
    as_matrix,
    outputs_first,
    padding,
    width,
)

FORM = {form.name: form for form in FORMATS}


class Packer:
    """Writes fields of bits one after the other; the straightforward way to store a matrix."""

    def __init__(self) -> None:
        self.fields: list[tuple[int, int]] = []

    def put(self, value: int, bits: int) -> None:
        assert 0 <= value < 2**bits, (value, bits)
        self.fields.append((value, bits))

    @property
    def bits(self) -> int:
        return len("".join(f"{value:0{bits}b}" for value, bits in self.fields))


def pack_dense(packer, mask, bits):
    for row in mask:
        for cell in row:
            packer.put(int(cell), bits)


def pack_bitmap(packer, mask, bits):
    for cell in mask.ravel():
        packer.put(int(cell), 1)
    for _ in range(mask.sum()):
        packer.put(1, bits)


def pack_table(packer, mask, bits):
    place_bits = 16 if mask.size <= 2**16 else 32
    for place in np.flatnonzero(mask).tolist():
        packer.put(1, bits)
        packer.put(place, place_bits)


def pack_csc(packer, mask, bits):
    rows, columns = mask.shape
    start, starts = 0, [0]
    for column in range(columns):
        for row in range(rows):
            if mask[row, column]:
                packer.put(1, bits)
                packer.put(row, 16 if rows <= 2**16 else 32)
                start += 1
        starts.append(start)
    for start in starts:
        packer.put(start, 16 if mask.size < 2**16 else 32)


def relative_entries(mask, index_bits, lanes):
    """(lane, column, distance, value) of every entry, by walking down the columns."""
    entries = []
    for lane in range(lanes):
        for column in range(mask.shape[1]):
            zeros = 0
            for cell in mask[lane::lanes, column]:
                if not cell and zeros < 2**index_bits - 1:
                    zeros += 1
                    continue
                if not cell:  # one zero too many for the field
                    entries.append((lane, column, zeros, 0))
                else:
                    entries.append((lane, column, zeros, 1))
                zeros = 0
            while entries and entries[-1][:2] == (lane, column) and entries[-1][3] == 0:
                entries.pop()  # nothing but zeros behind the last value
    return entries


def pack_relative(packer, mask, bits, index_bits=4, lanes=1):
    for _, _, distance, value in relative_entries(mask, index_bits, lanes):
        packer.put(value, bits)
        packer.put(distance, index_bits)
    height = -(-mask.shape[0] // lanes)
    for _ in range(lanes * (mask.shape[1] + 1)):
        packer.put(0, 16 if height * mask.shape[1] < 2**16 else 32)


def pack_nm24(packer, mask, bits):
    for row in mask:
        padded = [*row, *[False] * (-len(row) % 4)]
        for at in range(0, len(padded), 4):
            places = [i for i in range(4) if padded[at + i]]
            places += [i for i in range(4) if i not in places][: 2 - len(places)]
            for place in sorted(places):
                packer.put(1, bits)
                packer.put(place, 2)


PACKERS = {
    "dense fp32": (pack_dense, 32),
    "dense fp16": (pack_dense, 16),
    "dense int8": (pack_dense, 8),
    "dense 4-bit codes": (pack_dense, 4),
    "index table fp32": (pack_table, 32),
    "bitmap fp32": (pack_bitmap, 32),
    "CSC fp32": (pack_csc, 32),
    "CSC 4-bit codes": (pack_csc, 4),
    "CSC relative fp32": (pack_relative, 32),
    "CSC relative 4-bit codes (EIE)": (pack_relative, 4),
    "2:4 fp32": (pack_nm24, 32),
    "2:4 fp16": (pack_nm24, 16),
}


def packed_bits(name: str, mask: np.ndarray) -> int:
    packer = Packer()
    pack, bits = PACKERS[name]
    pack(packer, mask, bits)
    if bits == 4:
        for _ in range(16):
            packer.put(0, 32)
    return packer.bits


def random_mask(rows: int, columns: int, density: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((rows, columns)) < density


def two_of_four(rows: int, columns: int) -> np.ndarray:
    mask = np.zeros((rows, columns), bool)
    mask[:, 1::4] = mask[:, 2::4] = True
    return mask


@pytest.mark.parametrize("name", FORM)
@pytest.mark.parametrize("density", [0.0, 0.02, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (3, 70), (70, 3), (257, 300)])
def test_bits_are_what_a_packer_writes(name, density, shape):
    mask = random_mask(*shape, density)
    if name.startswith("2:4"):
        mask = two_of_four(*shape) & mask
    assert FORM[name].bits(mask) == packed_bits(name, mask)


def test_indices_grow_when_16_bits_no_longer_do():
    tall = np.zeros((2**16 + 1, 1), bool)
    tall[-1] = True
    for name in ("CSC fp32", "index table fp32", "CSC relative fp32"):
        assert FORM[name].bits(tall) == packed_bits(name, tall)
    assert [width(n) for n in (0, 2**16 - 1, 2**16, 2**32)] == [16, 16, 32, 64]


def test_the_example_of_the_eie_paper():
    # Section III: 1, 2, then 18 zeros, then 3 becomes values 1, 2, 0, 3 at 2, 0, 15, 2.
    column = np.array([0, 0, 1, 2, *[0] * 18, 3])[:, None]
    entries = relative_entries(column != 0, 4, 1)
    assert [distance for _, _, distance, _ in entries] == [2, 0, 15, 2]
    assert RelativeCsc("x").entries(column != 0) == 4
    assert padding(column != 0) == 1


@settings(max_examples=150, deadline=None)
@given(
    arrays(bool, st.tuples(st.integers(1, 80), st.integers(1, 4)), elements=st.booleans()),
    st.floats(0, 1),
    st.integers(1, 5),
    st.integers(1, 4),
)
def test_padding_is_what_walking_down_the_columns_finds(mask, thin, index_bits, lanes):
    mask = mask & random_mask(*mask.shape, thin, seed=1)
    form = RelativeCsc("x", index_bits=index_bits, lanes=lanes)
    entries = relative_entries(mask, index_bits, lanes)
    assert form.padding(mask) == sum(value == 0 for *_, value in entries)
    assert form.entries(mask) == len(entries)


@pytest.mark.parametrize("density", [0.0, 0.1, 0.37, 0.9, 1.0])
@pytest.mark.parametrize(("shape", "lanes"), [((12, 1), 1), ((5, 2), 1), ((11, 1), 2)])
def test_means_are_those_over_all_masks_there_are(density, shape, lanes):
    cells = shape[0] * shape[1]
    forms = [FORM["CSC fp32"], FORM["bitmap fp32"], FORM["index table fp32"]]
    forms += [RelativeCsc("x", index_bits=bits, lanes=lanes) for bits in (1, 2, 4)]
    means = np.zeros(len(forms))
    for cell in product([False, True], repeat=cells):
        mask = np.array(cell).reshape(shape)
        chance = density ** mask.sum() * (1 - density) ** (cells - mask.sum())
        if chance:
            means += [chance * form.bits(mask) for form in forms]
    expected = [form.expected_bits(shape, density) for form in forms]
    np.testing.assert_allclose(expected, means, rtol=1e-12)


@pytest.mark.parametrize("density", [0.02, 0.1, 0.4])
def test_means_are_near_a_large_random_matrix(density):
    mask = random_mask(1000, 1000, density)
    for form in FORMATS:
        if not isinstance(form, TwoOfFour):
            assert form.bits(mask) == pytest.approx(form.expected_bits((1000, 1000), density), 0.01)


def test_two_of_four_refuses_what_it_cannot_hold():
    form = FORM["2:4 fp32"]
    assert form.bits(two_of_four(3, 8)) == 3 * 2 * 2 * 34
    with pytest.raises(ValueError, match="at most 2 of every 4"):
        form.bits(np.ones((1, 4), bool))
    assert np.isnan(form.expected_bits((4, 4), 0.6))


def test_a_smaller_index_needs_more_padding_and_there_is_a_best_one():
    # The balance: at 5 % density a gap is 20 zeros in the mean.
    sizes = [
        RelativeCsc("x", CODEBOOK, bits).expected_bits((4096, 4096), 0.05) for bits in range(1, 12)
    ]
    best = int(np.argmin(sizes))
    assert 0 < best < len(sizes) - 1
    assert sizes == sorted(sizes[: best + 1], reverse=True) + sorted(sizes[best + 1 :])


def test_lanes_pay_for_their_starts():
    mask = random_mask(1024, 1024, 0.1)
    one, many = RelativeCsc("x", CODEBOOK), RelativeCsc("x", CODEBOOK, lanes=64)
    assert many.padding(mask) < one.padding(mask)  # shorter columns have shorter runs
    assert many.bits(mask) > one.bits(mask)


def test_a_network_is_its_matrices_and_the_rest():
    rng = np.random.default_rng(0)
    weights = {
        "conv": np.where(rng.random((8, 4, 3, 3)) < 0.3, 1.0, 0.0),
        "fc": rng.random((10, 16)),
    }
    storage = Storage.of(weights, other=26)
    assert storage.shapes == {"conv": (8, 36), "fc": (10, 16)}
    conv = weights["conv"].reshape(8, 36) != 0
    form = FORM["CSC fp32"]
    packed = -(-packed_bits(form.name, conv) // 8)
    packed += -(-packed_bits(form.name, np.ones((10, 16), bool)) // 8)
    assert storage.bytes(form) == packed + 26 * 4
    assert storage.density == pytest.approx((conv.sum() + 160) / 448)
    assert np.isnan(storage.bytes(FORM["2:4 fp32"]))


def test_matrices_that_are_not_2_of_4_stay_dense_beside_those_that_are():
    conv = np.zeros((8, 4, 3, 3))
    conv[:, 1:3] = 1.0  # two of four input channels, at every position of the kernel
    storage = Storage.of({"conv": conv, "fc": np.ones((10, 16))}, other=0)
    assert storage.bytes(FORM["2:4 fp16"]) == 8 * 9 * 2 * 18 / 8 + 10 * 16 * 2


def test_the_curve_has_a_column_per_format_and_crosses_where_arithmetic_says():
    storage = Storage({"fc": (1000, 1000)}, other=0)
    curve = storage.curve([0.1, 0.5, 0.7, 1.0])
    assert list(curve.columns) == list(FORM) and curve.index.name == "density"
    # A 32-bit value with a 16-bit row is worth it below two thirds.
    cheaper = curve["CSC fp32"] < curve["dense fp32"]
    assert cheaper.tolist() == [True, True, False, False]
    assert (curve["dense fp32"] == 4e6).all()
    assert Csc("x").expected_bits((1000, 1000), 0.1) / 8 == curve["CSC fp32"][0.1]


def test_the_weights_of_modules_are_taken_as_they_are():
    weight = torch.nn.Linear(6, 4).weight
    taken, array = Storage.of({"fc": weight}, 10), Storage.of({"fc": weight.detach().numpy()}, 10)
    assert taken.curve([0.05, 0.5]).equals(array.curve([0.05, 0.5]))
    assert taken.bytes(FORM["bitmap fp32"]) == array.bytes(FORM["bitmap fp32"])


@pytest.mark.parametrize("groups", [1, 2])
def test_a_row_of_a_transposed_convolution_makes_one_output_channel(groups):
    layer = torch.nn.ConvTranspose2d(8, 6, 3, groups=groups, bias=False).double()
    x = torch.rand(8, dtype=torch.float64)
    rows = as_matrix(outputs_first(layer.weight.detach(), groups)).reshape(6, 9, 8 // groups)
    read = x.numpy().reshape(groups, 1, 8 // groups).repeat(6 // groups, axis=0)
    written = layer(x[None, :, None, None])[0].detach().numpy()  # one position: the kernel's places
    np.testing.assert_allclose((rows * read).sum(-1), written.reshape(6, 9))
