"""EIE's storage and elements, against an example worked by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automl.cost.storage import RelativeCsc
from automl.executors import eie_model
from automl.executors.eie import Eie
from automl.executors.shared_weights import share

# Two elements: the first has rows 0 and 2, the second rows 1 and 3. Codes are the values' ranks.
WEIGHT = np.array([[1, 0, 2, 0], [0, 0, 0, 3], [-4, 0, 0, 0], [0, 5, 0, 6]], np.float32)
CODEBOOK = [0, -4, 1, 2, 3, 5, 6]
X = np.array([1, 0, 2, 3], np.float32)


@pytest.fixture
def by_hand():
    return Eie(elements=2).pack(WEIGHT)


def test_entries_are_distances_and_codes(by_hand):
    assert by_hand.codebook[:7].tolist() == CODEBOOK
    # First element: column 0 holds 1 (no zeros before it) and -4 (none), column 2 holds 2.
    # Second: column 1 holds 5 behind one zero, column 3 holds 3 and 6.
    assert by_hand.entries.tolist() == [0x02, 0x01, 0x03, 0x15, 0x04, 0x06]
    assert by_hand.starts.tolist() == [[0, 2, 2, 3, 3], [3, 3, 4, 4, 6]]
    assert np.array_equal(by_hand.to_dense(), WEIGHT) and by_hand.padding == 0


def test_elements_step_by_step(by_hand):
    run = eie_model.run(by_hand, X)
    # Row 0: 1 * 1 + 2 * 2; row 1: 3 * 3; row 2: -4 * 1, cut by ReLU; row 3: 6 * 3.
    assert run.output.tolist() == [5, 9, 0, 18]
    assert run.next_active.tolist() == [0, 1, 3]
    # Columns 0, 2 and 3 are broadcast; column 1 is skipped with its weight 5.
    assert run.broadcasts == 3
    assert run.pointer_reads.tolist() == [3, 3]
    assert run.entries.tolist() == [3, 2] and run.padding.tolist() == [0, 0]
    assert run.matrix_reads.tolist() == [2, 1]
    # Broadcasts in cycles 0, 1, 2. First element: column 0 in 1-2, column 2 in 3, column 3 (none
    # of its rows) in 4. Second: nothing in 1, nothing in 2, column 3 in 3-4.
    assert run.cycles == 5 and run.stalls == 0
    assert run.queue_depth.tolist() == [2, 1]
    assert run.load_balance == 5 / (5 * 2)


def test_energy_adds_up_by_hand(by_hand):
    run = eie_model.run(by_hand, X)
    # pJ. Five entries: a 16-bit multiplication (1.1) and addition (0.4), and the running sum read
    # and written, two quarters of a 64-bit access to 8 KB (10). Three words of entries from 128 KB,
    # which the table holds in 1 MB (100). Six pairs of pointers from 32 KB (20).
    assert run.energy_pj() == pytest.approx(5 * (1.1 + 0.4 + 2 * 10 / 4) + 3 * 100 + 6 * 20)
    # Dense: sixteen weights of 32 bits, each half of a 64-bit access to DRAM (1300), multiplied
    # (3.7) and added (0.9) in float32.
    dense = eie_model.dense_energy_pj(4, 4)
    assert dense == pytest.approx(16 * (1300 / 2 + 3.7 + 0.9))
    assert dense / run.energy_pj() == pytest.approx(10473.6 / 452.5)


def test_without_relu_sums_stay_negative(by_hand):
    assert eie_model.run(by_hand, X, relu=False).output.tolist() == [5, 9, -4, 18]


def test_a_full_queue_stops_the_broadcast():
    weight = np.zeros((4, 6), np.float32)
    weight[::2] = 1  # All work falls to the first of two elements: two entries a column.
    run = eie_model.run(Eie(elements=2).pack(weight), np.ones(6, np.float32), queue=1)
    assert run.entries.tolist() == [12, 0]
    assert run.queue_depth.max() == 1 and run.stalls > 0
    # The first broadcast takes a cycle, then the first element is never idle.
    assert run.cycles == 13
    deep = eie_model.run(Eie(elements=2).pack(weight), np.ones(6, np.float32), queue=8)
    assert deep.stalls == 0 and deep.cycles == 13 and deep.queue_depth.max() > 1


def test_nothing_is_done_for_activations_of_zero(by_hand):
    run = eie_model.run(by_hand, np.zeros(4, np.float32))
    assert run.cycles == 0 and run.load_balance == 1 and run.energy_pj() == 0


def test_runs_longer_than_15_zeros_are_padded():
    weight = np.zeros((40, 1), np.float32)
    weight[[15, 32, 39]] = [[1], [2], [3]]
    packed = Eie().pack(weight)
    # 15 zeros fit; 16 zeros cost an entry of 15 zeros and a zero; 6 zeros.
    assert packed.entries.tolist() == [0xF1, 0xF0, 0x02, 0x63]
    assert packed.padding == 1 and np.array_equal(packed.to_dense(), weight)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 120),
    columns=st.integers(1, 30),
    density=st.floats(0, 0.3),
    elements=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_layers_of_any_shape(rows, columns, density, elements, seed):
    rng = np.random.default_rng(seed)
    weight = (
        rng.integers(-7, 8, (rows, columns)) * (rng.random((rows, columns)) < density)
    ).astype(np.float32)
    x = rng.integers(0, 3, columns).astype(np.float32)
    packed = Eie(elements).pack(weight)
    form = RelativeCsc("", lanes=elements)
    assert packed.padding == form.padding(weight != 0)
    assert len(packed.entries) == form.entries(weight != 0)
    assert np.array_equal(packed.to_dense(), weight)
    run = eie_model.run(packed, x, relu=False)
    assert np.array_equal(run.output, weight.astype(np.float64) @ x)
    assert np.array_equal(packed(x), run.output.astype(np.float32))
    assert run.entries.sum() == sum(int(packed.counts[:, c].sum()) for c in np.flatnonzero(x))
    assert 0 <= run.load_balance <= 1 and run.queue_depth.max() <= 8
    assert eie_model.load_balance(packed, x, 8) == run.load_balance
    assert run.cycles >= max(run.broadcasts, run.entries.max())


def test_compressed_and_skipped_costs_far_less_energy_than_dense():
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((256, 512)) * (rng.random((256, 512)) < 0.09)).astype(np.float32)
    x = (rng.random(512) * (rng.random(512) < 0.35)).astype(np.float32)
    run = eie_model.run(Eie(elements=64).pack(weight), x)
    assert run.energy_pj() < eie_model.dense_energy_pj(256, 512) / 100


@pytest.mark.parametrize("queue", [0, -1])
def test_wrong_arguments_are_refused(by_hand, queue):
    with pytest.raises(ValueError, match="queue must be at least 1"):
        eie_model.run(by_hand, X, queue=queue)
    with pytest.raises(ValueError, match=r"x must have shape \(4,\)"):
        eie_model.run(by_hand, X[:3])
    with pytest.raises(ValueError, match=r"Eie\.elements must be at least 1"):
        Eie(elements=queue)


def test_sharing_keeps_few_values_exactly():
    values = np.array([3, -1, 3, 2.5, -1], np.float32)
    codes, codebook = share(values)
    assert np.array_equal(codebook[codes], values) and codebook[0] == 0


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), count=st.integers(16, 2000))
def test_sharing_takes_the_nearest_of_values_that_are_means(seed, count):
    values = np.random.default_rng(seed).standard_normal(count).astype(np.float32)
    codes, codebook = share(values, iterations=1000)
    assert codes.min() >= 1 and codebook[0] == 0
    distance = np.abs(values[:, None] - codebook[1:].astype(np.float64))
    assert np.allclose(np.abs(values - codebook[codes]), distance.min(1), atol=1e-6)
    for code in np.unique(codes):
        assert codebook[code] == pytest.approx(values[codes == code].mean(), abs=1e-5)
