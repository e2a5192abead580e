import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automl.executors.kernels import cpu
from automl.executors.pell import Pell
from automl.executors.rounding import quantise_rows

FORMS = ["float32", "bfloat16", "int8", "codebook", "codebook_int8"]


def matrix(rows, columns, density, seed=0):
    rng = np.random.default_rng(seed)
    weight = rng.integers(1, 4, (rows, columns)) * (rng.random((rows, columns)) < density)
    return weight.astype(np.float32), rng.standard_normal(columns).astype(np.float32)


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=15, deadline=None)
@given(columns=st.integers(200, 1500), density=st.floats(0, 0.4), seed=st.integers(0, 99))
def test_tiles_change_nothing(form, columns, density, seed):
    weight, x = matrix(33, columns, density, seed)
    whole, tiled = Pell(form).pack(weight), Pell(form, tile=256).pack(weight)
    assert np.array_equal(whole.to_dense(), tiled.to_dense())
    assert np.allclose(whole(x), tiled(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_gaps_wider_than_a_move_cost_steps_that_take_nothing(form):
    unit = Pell(form).pack(np.ones((1, 1), np.float32)).steps.unit
    columns = 600 * unit + 3
    weight = np.zeros((2, columns), np.float32)
    weight[0, 0] = weight[0, 300 * unit] = weight[1, -1] = 1
    packed = Pell(form, tile=256 * (columns // 256 + 1)).pack(weight)
    assert np.array_equal(packed.to_dense() != 0, weight != 0)
    x = np.zeros(columns, np.float32)
    x[0], x[300 * unit], x[-1] = 1, 2, 4
    assert np.allclose(packed(x), [3, 4], rtol=2e-2)


@settings(max_examples=30, deadline=None)
@given(density=st.floats(0.01, 0.6), seed=st.integers(0, 999))
def test_no_schedule_has_fewer_steps(density, seed):
    """Against an exhaustive search over the windows of a matrix of two rows."""
    weight, _ = matrix(2, 40, density, seed)
    packed = Pell("codebook").pack(weight)
    columns = [np.flatnonzero(row).tolist() for row in weight]
    used = len(packed.advance)
    assert used == -(-_fewest(columns, window=16) // 4) * 4


def _fewest(columns, window):
    """Fewest steps by breadth: entries that each row has taken -> where the window can be."""
    states, steps = {(0, 0): 0}, 0
    while tuple(map(len, columns)) not in states:
        following: dict[tuple[int, ...], int] = {}
        for done, start in states.items():
            for at in range(start, 40):
                taken = tuple(
                    n + (n < len(row) and at <= row[n] < at + window)
                    for n, row in zip(done, columns, strict=True)
                )
                # Of two windows that served the same, the one further left can do more.
                following[taken] = min(at, following.get(taken, at))
        states, steps = following, steps + 1
    return steps


def test_rows_of_like_length_share_a_group():
    weight = np.zeros((32, 512), np.float32)
    weight[::2] = 1  # Every other row is full: sorted, one group is full and one is empty.
    assert Pell().pack(weight).fill == 1


def test_fill_is_high_where_the_paper_is():
    weight, _ = matrix(512, 4096, 0.09)
    assert Pell().pack(weight).fill > 0.8
    assert Pell("int8").pack(weight).fill > 0.85


@pytest.mark.skipif(not cpu.supports(cpu.FLOATS), reason="needs AVX-512")
def test_vector_kernels_are_used_where_the_processor_has_them():
    assert Pell().pack(np.ones((1, 1), np.float32)).call[1][-1] is True


def test_plain_kernels_are_used_where_the_target_lacks_an_instruction_set(monkeypatch):
    monkeypatch.setattr(cpu, "target_features", lambda: frozenset({"avx2", "fma"}))
    assert Pell().pack(np.ones((1, 1), np.float32)).call[1][-1] is None


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.skipif(not cpu.supports(cpu.BYTES), reason="needs AVX-512 with VNNI and VBMI")
def test_vector_and_plain_kernels_agree(form, monkeypatch):
    weight, x = matrix(100, 3000, 0.1)
    vector = Pell(form).pack(weight)(x)
    monkeypatch.setattr(cpu, "supports", lambda needed: False)
    # Whole numbers are equal, floats differ by the order of additions.
    assert np.allclose(
        Pell(form).pack(weight)(x), vector, rtol=0 if form.endswith("int8") else 1e-5, atol=1e-3
    )


def test_rows_are_quantised_by_their_own_scale():
    weight = np.array([[1, -2, 0.5], [1000, 0, -1], [0, 0, 0]], np.float32)
    scale, whole = quantise_rows(weight)
    assert np.abs(whole).max() == 127 and np.array_equal(whole[2], [0, 0, 0])
    assert (np.abs(whole * scale[:, None] - weight) <= scale[:, None] / 2 + 1e-7).all()


def test_bfloat16_rounds_to_nearest_even():
    weight = np.array([[1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20]], np.float32)
    assert Pell("bfloat16").pack(weight).to_dense().tolist() == [[1, 1 + 2**-6, 1 + 2**-7]]


def test_weights_that_8_bits_round_to_zero_are_not_stored():
    weight = np.array([[127, 0.4, 0.6]], np.float32)
    assert Pell("int8").pack(weight).to_dense().tolist() == [[127, 0, 1]]


@pytest.mark.parametrize(
    ("settings_", "message"),
    [({"value": "fp4"}, "Pell.value must be one of"), ({"tile": 100}, "Pell.tile must be a mult")],
)
def test_wrong_settings_are_refused(settings_, message):
    with pytest.raises(ValueError, match=message):
        Pell(**settings_)


def test_a_target_without_vector_instructions_compiles(tmp_path):
    """LLVM ends the process where it is asked for one; so this needs a process of its own."""
    code = (
        "import numpy as np; from automl.executors.pell import Pell; "
        "print(Pell().pack(np.eye(20, dtype=np.float32))(np.arange(20, dtype=np.float32)).sum())"
    )
    target = {"NUMBA_CPU_NAME": "generic", "NUMBA_CACHE_DIR": str(tmp_path)}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | target, capture_output=True, text=True
    )
    assert (ran.returncode, ran.stdout.strip()) == (0, "190.0"), ran.stderr
