"""Handwritten networks: what is found in them, and what is computed with them.

Pruned they equal the masked dense ones, and their programs can be taken up at any cut.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from networks import CASES
from oracle import compare, counted_macs, random_units, randomise, relative_error
from torch import Tensor

from automl.graph.interpret import ProgramRun
from automl.graph.prefix import Prefixes, last_cut
from automl.graph.trace import Trace, trace
from automl.plan import IndexPlan

#: einsum turns products over dimensions of size 1 into element-wise ones, which are not counted.
UNCOUNTED = {"EinsumAttention"}


@cache
def traced(name: str) -> Trace:
    case = CASES[name]
    return trace(randomise(case.make()), case.inputs())


def counts(units: list[list[int]]) -> np.ndarray:
    return np.array([len(kept) for kept in units], dtype=np.int64)


def form_of(plan: IndexPlan) -> str:
    if not plan.module_form or 0 < len(plan.graph_targets) == len(plan.targets):
        return "graph"
    return "mixed" if plan.graph_targets else "modules"


@pytest.mark.parametrize("name", CASES)
def test_finds_what_can_be_pruned(name):
    case, found = CASES[name], traced(name)
    assert {t.name: f"{t.kind} {t.units}" for t in found.groups} == case.targets
    last = [f.name for f in found.frozen if "network's output" in f.reason]
    assert len(last) == 1
    assert {f.name for f in found.frozen} - set(last) == case.frozen
    assert form_of(found.plan) == case.form


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_pruned_at_random_it_equals_the_masked_dense_network(name, seed):
    found, inputs = traced(name), CASES[name].inputs(seed + 1)
    plan = IndexPlan.from_json(found.plan.to_json())
    units = random_units(plan, seed)
    slim = found.materialise(units)
    result = compare(slim, found.model, plan, units, inputs)
    assert result.error < 1e-10
    assert result.effect > 1e-3  # something was pruned, and it shows
    kept = counts(units)
    assert sum(p.numel() for p in slim.parameters()) == plan.params(kept)
    if name not in UNCOUNTED:
        assert counted_macs(slim, tuple(x[:1] for x in inputs)) == plan.macs(kept)


@pytest.mark.parametrize("name", sorted(set(CASES) - {"HandwrittenNorm"}))  # 0 / 0 for one
def test_a_single_unit_of_everything_is_enough(name):
    found, inputs = traced(name), CASES[name].inputs()
    units = [[target.units // 2] for target in found.groups]
    slim = found.materialise(units)
    assert compare(slim, found.model, found.plan, units, inputs).error < 1e-10


@pytest.mark.parametrize("name", CASES)
def test_both_forms_and_all_batch_sizes_agree(name):
    found, inputs = traced(name), CASES[name].inputs()
    assert found.plan.dynamic_batch
    units = random_units(found.plan, 3)
    slim, graph = found.materialise(units), found.materialise.graph_form(units)
    with torch.no_grad():
        expected = slim(*inputs)
        assert relative_error(graph(*inputs), expected) < 1e-12
        assert relative_error(graph(*(x[:1] for x in inputs)), expected[:1]) < 1e-12
    assert set(graph.state_dict()) == set(found.model.state_dict())


@pytest.mark.parametrize("name", CASES)
def test_dense_costs_are_pytorchs(name):
    found = traced(name)
    assert found.params == sum(p.numel() for p in found.model.parameters())
    if name not in UNCOUNTED:
        one = tuple(x[:1] for x in CASES[name].inputs())
        assert found.macs == counted_macs(found.model, one)
    assert sum(layer.macs for layer in found.layers) == found.macs


def whole_run(found: Trace, units, keep=frozenset()) -> ProgramRun:
    slim = found.materialise.module_form(units)
    return ProgramRun(slim, found.plan, counts(units), found.example_inputs, keep=keep)


def same(found: object, expected: object) -> bool:
    if isinstance(expected, Tensor):
        return isinstance(found, Tensor) and torch.equal(found, expected)
    if isinstance(expected, (list, tuple)):
        return all(same(a, b) for a, b in zip(found, expected, strict=True))
    return found == expected


@pytest.mark.parametrize("name", CASES)
def test_what_is_taken_up_at_a_cut_ends_like_the_whole(name):
    found = traced(name)
    prefixes = Prefixes(found.model, found.plan)
    units, others = random_units(found.plan, 0), random_units(found.plan, 1)
    with torch.no_grad():
        for target in range(len(units)):
            near = [others[i] if i == target else units[i] for i in range(len(units))]
            cut = last_cut(prefixes.cuts, prefixes.first_difference(near, units))
            if cut is None:
                continue
            reference = whole_run(found, units, frozenset(cut.live))
            reference.run()
            known = {name: reference.value(name) for name in cut.live}
            for _ in range(2):  # what is known must be there for the next one, too
                slim = found.materialise.module_form(near)
                inputs = [torch.full_like(x, 0) for x in found.example_inputs]  # not needed
                taken_up = ProgramRun(
                    slim, found.plan, counts(near), inputs, start=cut.position, known=known
                )
                assert same(taken_up.run(), whole_run(found, near).run())


def test_the_networks_at_hand_have_cuts():
    for name in ("Residual", "Concat", "Depthwise", "UNet", "LayerNorm", "MultiheadAttention"):
        found = traced(name)
        assert Prefixes(found.model, found.plan).cuts, name
