"""What every granularity in conf/granularity keeps: exact counts, its pattern, honest costs."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from automl.pruning import granularities
from automl.pruning.granularities import Sizes
from automl.types import InputError

#: With and without parameters, also ones that sizes below do not divide.
NAMES = [*granularities.names(), "nm:2", "nm:3", "nm:8", "vector:column", "block:2x3", "block:4x1"]

CONV, LINEAR, ODD = (8, 16, 3, 3), (12, 32), (5, 19, 3, 2)


def sizes_of(shape) -> Sizes:
    return Sizes(shape[0], shape[1], tuple(shape[2:]))


def fits(grain, shape) -> bool:
    return grain.refusal(sizes_of(shape)) is None


PAIRS = [(n, s) for n in NAMES for s in (CONV, LINEAR, ODD) if fits(granularities.load(n), s)]


@pytest.fixture(params=PAIRS, ids=str)
def pair(request):
    return request.param


@pytest.fixture
def grain(pair):
    return granularities.load(pair[0])


@pytest.fixture
def shape(pair):
    return pair[1]


def test_every_granularity_fits_a_convolution():
    assert {name for name, shape in PAIRS if shape == CONV} == set(NAMES)


def test_its_name_says_all_of_it(grain):
    assert granularities.load(grain.name) == grain
    assert grain.acceleration


def test_units_are_those_that_are_scored(grain, shape):
    units = int(grain.units(sizes_of(shape)))
    assert grain.unit_scores(torch.rand(shape)).shape == (units,)


def test_nonzeros_are_those_of_the_mask(grain, shape):
    sizes, saliency = sizes_of(shape), torch.rand(shape)
    units = int(grain.units(sizes))
    for kept in sorted({1, units // 3 + 1, units // 2 + 1, units}):
        mask = grain.mask(saliency, kept)
        assert mask.dtype == torch.bool and mask.shape == shape
        counted = int(grain.nonzeros(np.asarray(kept), sizes))
        if grain.name.startswith("block"):  # blocks at an edge count whole
            assert int(mask.sum()) <= counted <= sizes.weights
        else:
            assert int(mask.sum()) == counted
    assert bool(grain.mask(saliency, units).all())


def test_counts_are_batched_and_rise(grain, shape):
    sizes = sizes_of(shape)
    kept = np.arange(1, int(grain.units(sizes)) + 1)
    for counts in (grain.nonzeros(kept, sizes), grain.index_bits(kept, sizes)):
        assert counts.shape == kept.shape and counts.dtype == np.int64
    nonzeros = grain.nonzeros(kept, sizes)
    assert (np.diff(nonzeros) >= 0).all() and nonzeros[-1] == sizes.weights
    assert grain.index_bits(kept, sizes)[-1] == 0  # a dense weight needs no index
    outs = np.array([shape[0], shape[0] * 2])
    batched = grain.nonzeros(np.array([1, 1]), Sizes(outs, shape[1], sizes.kernel))
    alone = [grain.nonzeros(np.array(1), Sizes(o, shape[1], sizes.kernel)) for o in outs]
    assert batched.tolist() == [int(one) for one in alone]


def test_ties_do_not_change_the_count(grain, shape):
    sizes = sizes_of(shape)
    for kept in (1, int(grain.units(sizes)) // 2 + 1):
        alike = int(grain.mask(torch.ones(shape), kept).sum())
        assert alike <= int(grain.nonzeros(np.asarray(kept), sizes))
        assert alike > 0


def test_more_units_contain_fewer(grain, shape):
    saliency = torch.rand(shape)
    units = int(grain.units(sizes_of(shape)))
    few, more = (grain.mask(saliency, k) for k in (max(units // 4, 1), max(units // 2, 1)))
    assert bool((few <= more).all())


def test_it_keeps_at_least_as_much_as_any_other_choice_of_units(grain, shape):
    generator = torch.Generator().manual_seed(0)
    saliency = torch.rand(shape, generator=generator)
    kept = max(int(grain.units(sizes_of(shape))) // 2, 1)
    best = float(saliency[grain.mask(saliency, kept)].sum())
    for seed in range(5):
        other = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
        assert float(saliency[grain.mask(other, kept)].sum()) <= best + 1e-4


def test_what_is_pruned_already_goes_first(grain, shape):
    saliency = torch.rand(shape)
    units = int(grain.units(sizes_of(shape)))
    before = grain.mask(saliency, max(units // 2, 1))
    again = torch.rand(shape).masked_fill(~before, -torch.inf)
    assert bool((grain.mask(again, max(units // 3, 1)) <= before).all())


def test_nan_has_no_rank(grain, shape):
    saliency = torch.rand(shape)
    saliency.view(-1)[3] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        grain.mask(saliency, 1)


# ---- patterns


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 9), st.data())
def test_groups_keep_exactly_n_of_m_whatever_the_ties(m, data):
    grain = granularities.load(f"nm:{m}")
    into = data.draw(st.integers(m, 4 * m))
    shape = (3, into, *data.draw(st.sampled_from([(), (3, 3), (1, 2)])))
    n = data.draw(st.integers(1, m))
    values = data.draw(st.sampled_from([1, 2, 1000]))  # one value: nothing but ties
    saliency = torch.randint(values, shape).double()
    mask = grain.mask(saliency, n)
    rows = mask.flatten(2).transpose(1, 2) if mask.dim() > 2 else mask[:, None]
    for start in range(0, into, m):
        group = rows[..., start : start + m]
        assert (group.sum(-1) == min(n, group.shape[-1])).all()


def test_kernels_go_whole():
    mask = granularities.load("kernel").mask(torch.rand(CONV), 50)
    assert set(mask.flatten(2).sum(2).flatten().tolist()) == {0, 9}


@pytest.mark.parametrize(("along", "dim"), [("row", 3), ("column", 2)])
def test_vectors_go_whole(along, dim):
    mask = granularities.load(f"vector:{along}").mask(torch.rand(4, 4, 2, 3), 11)
    assert set(mask.sum(dim).flatten().tolist()) == {0, (4, 4, 2, 3)[dim]}


def test_blocks_are_neighbours_at_one_position_of_the_kernel():
    mask = granularities.load("block:2x4").mask(torch.rand(CONV), 30)
    for tap in mask.flatten(2).unbind(2):
        blocks = tap.reshape(4, 2, 4, 4).sum((1, 3))
        assert set(blocks.flatten().tolist()) <= {0, 8}
    assert int(mask.sum()) == 30 * 8


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("kernl", "did you mean 'kernel'"),
        ("block:4", "block:ROWSxCOLUMNS"),
        ("block:1x1", "use granularity=unstructured"),
        ("block:0x4", "whole sizes >= 1"),
        ("nm:1", "whole groups of 2 to 256"),
        ("nm:2:4", "2:4 is nm:4 at ratio=0.5"),
        ("vector:up", "row or column"),
        ("unstructured:3", "takes no parameters"),
    ],
)
def test_names_that_say_nothing_are_refused(name, says):
    with pytest.raises(InputError, match=says):
        granularities.load(name)


@pytest.mark.parametrize(
    ("name", "shape", "says"),
    [
        ("nm:4", (8, 3, 3, 3), "3 input channels"),
        ("nm:4", (8, 1, 3, 3), "1 input channels"),
        ("kernel", (8, 8), "single weights"),
        ("kernel", (8, 8, 1, 1), "single weights"),
        ("vector:row", (8, 8, 3, 1), "no rows"),
        ("vector:row", (8, 8, 3), "no rows"),
        ("block:4x4", (3, 8), "smaller than a 4x4 block"),
    ],
)
def test_weights_that_do_not_fit_are_refused_with_the_reason(name, shape, says):
    assert says in granularities.load(name).refusal(sizes_of(shape))
