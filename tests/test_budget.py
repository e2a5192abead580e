import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from automl.budget import Budget, Limit
from automl.hints import did_you_mean
from automl.paths import conf_dir
from automl.types import RESOURCES, InputError

DENSE = {"macs": 1000.0, "params": 200.0, "latency_ms": 8.0}


@pytest.mark.parametrize(
    ("spec", "limits"),
    [
        ({"macs": 0.5}, {"macs": 500.0}),
        ({"macs": 1}, {"macs": 1000.0}),
        ({"macs": 400}, {"macs": 400.0}),
        ({"macs": np.float32(0.5)}, {"macs": 500.0}),
        ({"latency_ms": {"absolute": 0.8}}, {"latency_ms": 0.8}),
        ({"latency_ms": {"fraction": 0.5, "absolute": None}}, {"latency_ms": 4.0}),
        ({"params": 0.25, "macs": 0.5, "latency_ms": None}, {"macs": 500.0, "params": 50.0}),
        ({"macs": 5000}, {"macs": 5000.0}),
    ],
)
def test_limits_become_absolute(spec, limits):
    assert Budget.parse(spec).resolve(DENSE) == limits


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "budget is empty"),
        ({"macs": None}, "budget is empty"),
        ({"macs": {}}, "budget is empty"),
        (0.5, "must be given per resource"),
        ({"mac": 0.5}, "unknown resource 'mac'; did you mean 'macs'"),
        ({3: 0.5}, "unknown resource 3; there are macs, params"),
        ({"macs": 0}, "budget.macs must be a positive"),
        ({"macs": -1}, "budget.macs must be a positive"),
        ({"macs": float("nan")}, "budget.macs must be a positive"),
        ({"macs": float("inf")}, "budget.macs must be a positive"),
        ({"macs": 10**400}, "budget.macs must be a positive"),
        ({"macs": "0.5"}, "budget.macs must be a number, got '0.5'"),
        ({"macs": True}, "budget.macs must be a number"),
        ({"macs": [0.5]}, "budget.macs must be a number"),
        ({"macs": {"fraction": 0.5, "absolute": 9}}, "budget.macs is both absolute and relative"),
        ({"macs": {"fraction": 1.5}}, r"budget.macs.fraction must be in \(0, 1\]"),
        ({"macs": {"absolut": 1.5}}, "got 'absolut'; did you mean 'absolute'"),
        ({"macs": {"absolute": 0}}, "budget.macs.absolute must be a positive"),
    ],
)
def test_what_is_no_budget_is_refused_in_one_line(spec, message):
    with pytest.raises(InputError, match=message) as caught:
        Budget.parse(spec)
    assert "\n" not in str(caught.value)


def test_a_resource_without_cost_model_is_refused():
    with pytest.raises(InputError, match=r"budget.energy_mj .*only for macs, params, latency_ms"):
        Budget.parse({"energy_mj": 0.5}).resolve(DENSE)


VALUES = st.floats(1e-6, 1e12) | st.fixed_dictionaries({"absolute": st.floats(1e-6, 1e12)})


@given(st.dictionaries(st.sampled_from(RESOURCES), VALUES, min_size=1))
def test_the_explicit_form_reads_back_equal(spec):
    budget = Budget.parse(spec)
    assert Budget.parse(budget.to_dict()) == budget == Budget.parse(budget)
    assert {limit.resource for limit in budget.limits} == set(spec)


def test_budgets_print_as_people_write_them():
    text = str(Budget.parse({"macs": 0.3, "params": 1_500_000}))
    assert text == "macs <= 30 % of dense, params <= 1,500,000"
    assert str(Limit("latency_ms", 0.8, relative=False)) == "latency_ms <= 0.8"


def test_the_shipped_budgets_name_every_resource():
    default, none = (
        yaml.safe_load((conf_dir() / "budget" / f"{name}.yaml").read_text())
        for name in ("default", "none")
    )
    assert tuple(default) == tuple(none) == RESOURCES
    assert Budget.parse(default).to_dict() == {"macs": {"fraction": 0.5}}
    with pytest.raises(InputError, match="budget is empty"):
        Budget.parse(none)


def test_unknown_names_get_the_nearest_or_all():
    assert did_you_mean("unifrom", ["uniform", "deep"]) == "did you mean 'uniform'?"
    assert did_you_mean("xyz", ["uniform", "deep"]) == "there are uniform, deep"
