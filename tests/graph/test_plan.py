"""The plan as plain data: exact counts, JSON, refusals."""

from __future__ import annotations

import json
import pickle
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import CASES
from oracle import counted_macs, randomise

from automl.graph.trace import Trace, trace
from automl.plan import IndexPlan
from automl.plan_axes import Axis, count_axis, decode_runs, encode_runs
from automl.types import InputError

#: Networks whose lengths have every form: plain, many of one unit, heads times places.
NAMES = ["Flatten", "Grouped", "FusedQkvSoftmax", "SplitQkv", "Split", "TokenMixer"]


@cache
def traced(name: str) -> Trace:
    return trace(randomise(CASES[name].make()), CASES[name].inputs())


def some_units(plan: IndexPlan, data: st.DataObject) -> list[list[int]]:
    return [
        sorted(data.draw(st.sets(st.integers(0, t.units - 1), min_size=1))) for t in plan.targets
    ]


# ---- axes and their lengths


@st.composite
def axes(draw: st.DrawFn) -> tuple[Axis, np.ndarray]:
    """An axis put together from whole targets, pairs of targets and fixed positions."""
    units = draw(st.lists(st.integers(1, 5), min_size=2, max_size=4))
    offsets = np.concatenate([[0], np.cumsum(units)]).astype(np.int64)
    first, second = [], []
    for kind in draw(st.lists(st.sampled_from(["fixed", "whole", "pairs"]), max_size=5)):
        one = draw(st.integers(0, len(units) - 1))
        other = draw(st.integers(0, len(units) - 1).filter(lambda t, one=one: t != one))
        a = range(offsets[one], offsets[one + 1])
        b = range(offsets[other], offsets[other + 1])
        if kind == "fixed":
            pairs = [(-1, -1)] * draw(st.integers(1, 3))
        elif kind == "whole":
            pairs = [(unit, -1) for unit in a] * draw(st.integers(1, 3))
        else:
            pairs = [(x, y) for x in a for y in b]
        first += [x for x, _ in pairs]
        second += [y for _, y in pairs]
    order = draw(st.permutations(range(len(first))))
    columns = [np.array(column, dtype=np.int64)[list(order)] for column in (first, second)]
    return Axis(*columns), offsets


@settings(deadline=None)
@given(axes(), st.randoms(use_true_random=False))
def test_lengths_are_the_number_of_positions_that_stay(case, random):
    axis, offsets = case
    count = count_axis(axis, offsets)
    alive = np.zeros(int(offsets[-1]) + 1, dtype=bool)
    alive[-1] = True
    kept = []
    for start, end in pairwise(offsets.tolist()):
        units = random.sample(range(start, end), random.randint(1, end - start))
        alive[units] = True
        kept.append(len(units))
    assert count(np.array(kept)) == axis.mask(alive).sum()
    assert count.is_constant == (not count.targets)


def test_units_that_occur_unevenly_have_no_length():
    offsets = np.array([0, 2])
    with pytest.raises(ValueError, match="unevenly"):
        count_axis(Axis(np.array([0, 0, 1]), np.array([-1, -1, -1])), offsets)


def test_pairs_that_are_no_rectangle_have_no_length():
    offsets = np.array([0, 2, 4])
    with pytest.raises(ValueError, match="full rectangle"):
        count_axis(Axis(np.array([0, 0, 1]), np.array([2, 3, 2])), offsets)


@given(st.lists(st.integers(-1, 40), max_size=60))
def test_runs_are_the_values_again(values):
    array = np.array(values, dtype=np.int64)
    runs = encode_runs(array)
    assert (decode_runs(json.loads(json.dumps(runs))) == array).all()
    assert len(runs) <= max(1, len(values))


def test_a_long_ascending_run_is_written_short():
    assert encode_runs(np.arange(5, 2000)) == [[5, 1, 1995]]


# ---- counts against networks that were really made


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_counts_are_those_of_the_network_that_comes_out(name, data):
    found = traced(name)
    plan, units = found.plan, some_units(found.plan, data)
    kept = np.array([len(u) for u in units], dtype=np.int64)
    slim = found.materialise(units)
    state = {**dict(slim.named_parameters()), **dict(slim.named_buffers())}
    sizes = dict(zip([t.name for t in plan.tensors], plan.tensor_sizes(kept), strict=True))
    assert {n: state[n].numel() for n in sizes} == sizes
    assert sum(p.numel() for p in slim.parameters()) == plan.params(kept)
    assert counted_macs(slim, CASES[name].inputs()) == plan.macs(kept)
    positions = plan.positions(units)
    assert [len(p) for p in positions] == plan.lengths(kept).tolist()
    layers = plan.layers_at(kept)
    assert sum(layer.macs for layer in layers) == plan.macs(kept)
    assert sum(layer.params for layer in layers) <= plan.params(kept)


@pytest.mark.parametrize("name", NAMES)
def test_many_at_once_are_the_same_as_one_by_one(name):
    plan = traced(name).plan
    random = np.random.default_rng(0)
    kept = random.integers(1, plan.dense + 1, size=(4, 3, len(plan.targets)))
    for function in (plan.macs, plan.params, plan.layer_macs, plan.tensor_sizes, plan.lengths):
        together = function(kept)
        for index in np.ndindex(4, 3):
            assert (together[index] == function(kept[index])).all()


def test_layers_of_the_pruned_network_have_its_sizes():
    found = traced("Residual")
    units = [list(range((t.units + 1) // 2)) for t in found.groups]
    kept = np.array([len(u) for u in units])
    slim = found.materialise(units)
    for layer in found.plan.layers_at(kept):
        module = slim.get_submodule(layer.name)
        if isinstance(module, torch.nn.Conv2d):
            assert (layer.in_channels, layer.out_channels) == module.weight.shape[1::-1]
        assert layer.params == sum(p.numel() for p in module.parameters())


# ---- JSON and pickle


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_survives_json_and_pickle(name):
    plan = traced(name).plan
    for again in (IndexPlan.from_json(plan.to_json()), pickle.loads(pickle.dumps(plan))):
        assert again.to_json() == plan.to_json()
        assert again.targets == plan.targets
        assert again.layers == plan.layers
        assert again.program == plan.program
        assert again.graph_targets == plan.graph_targets
        assert (again.macs(again.dense), again.params(again.dense)) == (
            plan.macs(plan.dense),
            plan.params(plan.dense),
        )


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"schema": "prunepilot/plan"}'])
def test_what_is_no_plan_is_refused(text):
    with pytest.raises(InputError, match="not a readable plan"):
        IndexPlan.from_json(text)


def test_a_plan_of_another_version_is_refused():
    document = json.loads(traced("Flatten").plan.to_json())
    document["version"] = 99
    with pytest.raises(InputError, match="expected 'prunepilot/plan' version 1"):
        IndexPlan.from_json(json.dumps(document))


# ---- names and kept units


def test_groups_are_found_by_their_own_name_and_by_any_layer_in_them():
    plan = traced("Residual").plan
    assert plan.target_index("stem.0") == plan.target_index("d") == 0


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"'stem.1'; did you mean 'stem.0'\?"):
        traced("Residual").plan.target_index("stem.1")


def test_frozen_layers_are_refused_with_the_reason():
    with pytest.raises(InputError, match="'head' cannot be pruned: written to"):
        traced("Residual").plan.target_index("head")


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ([[], [0], [0]], "target 'stem.0' must keep at least one unit"),
        ([[0], [0, 6], [0]], "target 'a.0' has units 0 to 5"),
        ([[0], [-1], [0]], "target 'a.0' has units 0 to 5"),
        ([[0], [0], [2, 1]], "kept units of target 'c.0' must be ascending"),
        ([[0], [0], [1, 1]], "kept units of target 'c.0' must be ascending"),
        ([[0], [0]], "expected kept units for 3 targets, got 2"),
    ],
)
def test_impossible_kept_units_are_refused(units, message):
    with pytest.raises(InputError, match=message):
        traced("Residual").materialise(units)
