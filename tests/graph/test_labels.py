"""Labels: what is tied, what lives by two things, what is frozen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from automl.graph.labels import (
    LabelSpace,
    always,
    compact,
    squeeze_free,
    varies,
    varying_dims,
)


def classes(space: LabelSpace, labels: torch.Tensor) -> list[int]:
    return space.resolve().component[labels.numpy()].tolist()


# ---- label tensors


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.lists(st.booleans(), min_size=4, max_size=4),
    st.integers(0, 9),
)
def test_compacting_changes_no_label(shape, constant, seed):
    thin = [1 if flat else size for size, flat in zip(shape, constant, strict=False)]
    labels = torch.randint(0, 3, thin, generator=torch.Generator().manual_seed(seed))
    labels = labels.expand(shape).clone()
    small = compact(labels)
    assert torch.equal(small, labels)
    for dim, size in enumerate(shape):
        differ = bool((labels != labels.narrow(dim, 0, 1)).any())
        assert varies(labels, dim) == varies(small, dim) == differ
        assert (small.stride(dim) == 0) or differ or size == 1
    assert varying_dims(small) == [d for d in range(len(shape)) if varies(labels, d)]
    assert squeeze_free(small).numel() <= labels.numel()
    assert torch.equal(squeeze_free(small).expand(shape), labels)


# ---- ties


def test_tied_positions_are_one_class():
    space = LabelSpace()
    a, b = space.fresh(3), space.fresh(3)
    space.tie(a, b.flip(0), "here")
    assert classes(space, a) == classes(space, b.flip(0))
    assert len(set(classes(space, a))) == 3


def test_ties_broadcast():
    space = LabelSpace()
    channels, elements = space.fresh(4), space.fresh(2, 4)
    space.tie(channels, elements, "here")
    assert classes(space, elements[0]) == classes(space, elements[1]) == classes(space, channels)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30))
def test_classes_are_the_connected_components(pairs):
    space = LabelSpace()
    labels = space.fresh(20)
    for a, b in pairs:
        space.tie(labels[a : a + 1], labels[b : b + 1], "here")
    found = np.array(classes(space, labels))
    parent = list(range(20))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    for a, b in pairs:
        parent[root(a)] = root(b)
    expected = np.array([root(i) for i in range(20)])
    assert ((found[:, None] == found) == (expected[:, None] == expected)).all()


def test_what_is_tied_to_something_always_there_is_frozen():
    space = LabelSpace()
    labels = space.fresh(4)
    mixed = torch.tensor([-1, 1, -1, 3])
    space.tie(labels, mixed, "the sum")
    atoms = space.resolve()
    first, _ = atoms.of(labels)
    assert first.tolist() == [-1, atoms.component[1], -1, atoms.component[3]]
    assert set(atoms.reasons.values()) == {
        ("the sum", "shares positions with data that is always there")
    }


def test_freezing_spreads_to_everything_tied():
    space = LabelSpace()
    a, b = space.fresh(3), space.fresh(3)
    space.tie(a, b, "here")
    space.freeze(b[1:2], "head", "written to the network's output")
    first, _ = space.resolve().of(a)
    assert (first >= 0).tolist() == [True, False, True]


def test_merging_ties_along_the_named_dimensions_only():
    space = LabelSpace()
    grid = space.fresh(3, 4)
    merged = space.merge(grid, [0], "here")
    assert varying_dims(merged) == [1]
    assert len(set(classes(space, grid.flatten()))) == 4


def test_channels_are_one_label_per_position():
    space = LabelSpace()
    labels = space.fresh(2, 3, 1, 2)
    assert space.channels(labels, 1, "here").shape == (3,)
    assert len(set(classes(space, labels.flatten()))) == 3


# ---- cells: heads and places within them


def test_a_cell_lives_by_its_row_and_its_column():
    space = LabelSpace()
    rows, columns = space.fresh(2), space.fresh(3)
    cells = space.product(rows[:, None], columns[None])
    atoms = space.resolve()
    first, second = atoms.of(cells)
    assert (first == atoms.component[rows.numpy()][:, None]).all()
    assert (second == atoms.component[columns.numpy()][None]).all()


@pytest.mark.parametrize("transposed", [False, True])
def test_factoring_cells_again_finds_the_same_rows_and_columns(transposed):
    space = LabelSpace()
    cells = space.fresh(2, 5, 3).narrow(1, 0, 1).expand(2, 5, 3)
    rows, columns = space.factor(cells, 0, 2)
    again = cells.permute(2, 1, 0) if transposed else cells
    dims = (2, 0) if transposed else (0, 2)
    found = space.factor(again, *dims)
    assert torch.equal(found[0], rows)
    assert torch.equal(found[1], columns)


@pytest.mark.parametrize("first", [(0, 1), (1, 0)])
def test_rows_are_the_earlier_dimension_whoever_asks_first(first):
    space = LabelSpace()
    q, k = space.fresh(2, 3), space.fresh(2, 3)
    space.factor(q, *first)
    rows, columns = space.factor(k, 0, 1)
    space.tie(q, k, "attention")
    found = space.factor(q, 0, 1)
    atoms = space.resolve()
    for mine, other in zip(found, (rows, columns), strict=True):
        assert (atoms.component[mine.numpy()] == atoms.component[other.numpy()]).all()
    assert len(set(atoms.component[rows.numpy()].tolist())) == 2


def test_uniting_cells_unites_their_rows_and_columns():
    space = LabelSpace()
    q, k = space.fresh(2, 3), space.fresh(2, 3)
    (q_rows, q_columns), (k_rows, k_columns) = (space.factor(cells, 0, 1) for cells in (q, k))
    space.tie(q, k, "attention")
    atoms = space.resolve()
    assert (atoms.component[q_rows.numpy()] == atoms.component[k_rows.numpy()]).all()
    assert (atoms.component[q_columns.numpy()] == atoms.component[k_columns.numpy()]).all()


def test_freezing_a_cell_freezes_its_row_and_column_only():
    space = LabelSpace()
    cells = space.fresh(2, 3)
    rows, columns = space.factor(cells, 0, 1)
    space.freeze(cells[1, 2], "here", "because")
    atoms = space.resolve()
    assert (atoms.of(rows)[0] >= 0).tolist() == [True, False]
    assert (atoms.of(columns)[0] >= 0).tolist() == [True, True, False]
    first, second = atoms.of(cells)
    assert (np.stack([first, second]) >= 0).sum(0).tolist() == [[2, 2, 1], [1, 1, 0]]


def test_factoring_what_varies_along_one_dimension_only_needs_no_cells():
    space = LabelSpace()
    heads = space.fresh(2)
    rows, columns = space.factor(heads[:, None].expand(2, 3), 0, 1)
    assert torch.equal(rows, heads)
    assert torch.equal(columns, always((3,)))


def test_frozen_atoms_are_frozen_alone():
    space = LabelSpace()
    cells = space.fresh(2, 3)
    rows, columns = space.factor(cells, 0, 1)
    atoms = space.resolve()
    space.freeze_atoms(atoms, atoms.component[columns.numpy()], "qkv", "it is unbound")
    atoms = space.resolve()
    assert (atoms.of(rows)[0] >= 0).all()
    assert (atoms.of(columns)[0] < 0).all()
    assert set(atoms.reasons.values()) == {("qkv", "it is unbound")}


# ---- along a dimension


def test_along_a_dimension_counts_what_all_other_positions_share():
    space = LabelSpace()
    heads, places = space.fresh(2), space.fresh(3)
    cells = space.product(heads[:, None], places[None])
    atoms = space.resolve()
    first, second = atoms.along(cells, 0)
    assert first.tolist() == atoms.component[heads.numpy()].tolist()
    assert second.tolist() == [-1, -1]
    flat_first, flat_second = atoms.along(cells.reshape(6), 0)
    assert (flat_first >= 0).all()
    assert (flat_second >= 0).all()


def test_along_a_dimension_without_labels_nothing_changes():
    atoms = LabelSpace().resolve()
    first, second = atoms.along(always((4, 5)), 1)
    assert first.tolist() == second.tolist() == [-1] * 5
