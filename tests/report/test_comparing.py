import math

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from automl.budget import Budget
from automl.commands.compare import _front
from automl.report.comparing import (
    cells,
    compare,
    label,
    latex,
    markdown,
    paired_p,
    pareto_front,
)
from automl.report.loading import finals, load_runs
from automl.report.page import page_data
from automl.runs import CONFIG
from automl.types import InputError

OTHER = "macs <= 30 % of dense"


@pytest.fixture
def table(make_run, tmp_path):
    for seed, top1 in enumerate([0.90, 0.92, 0.91]):
        make_run("amc", seed, top1=top1)
    for seed, uniform in enumerate([0.80, 0.81, 0.80]):
        make_run("uniform", seed, uniform=uniform, latency=0.7)
    make_run("uniform", 0, budget=OTHER, uniform=0.60, latency=0.5)
    return compare(finals(load_runs(tmp_path))).set_index(["budget", "strategy"])


def test_means_errors_and_gains_are_over_seeds(table):
    amc = table.loc[("macs <= 50 % of dense", "amc")]
    assert amc["seeds"] == 3
    assert amc["test_top1"] == pytest.approx(0.91)
    assert amc["test_top1_error"] == pytest.approx(0.01 / math.sqrt(3))
    assert amc["gain"] == pytest.approx(0.91 - 0.8033333)
    expected = ttest_rel([0.90, 0.92, 0.91], [0.80, 0.81, 0.80]).pvalue
    assert amc["p"] == pytest.approx(expected)


def test_uniform_at_the_same_latency_is_read_off_its_own_line(table):
    # Uniform: .60 at .5, about .8033 at .7; amc runs at .6.
    amc = table.loc[("macs <= 50 % of dense", "amc")]
    assert amc["gain_at_latency"] == pytest.approx(0.91 - (0.60 + 0.8033333) / 2)
    assert math.isnan(table.loc[(OTHER, "uniform")]["gain_at_latency"])


def test_strategies_stand_by_budget_and_best_first(table):
    assert [name for _, name in table.index] == ["uniform", "amc", "uniform"]


def test_budgets_stand_by_their_amount_however_it_is_written(make_run, tmp_path):
    spent = [50e3, 1_000_000, 500_000, 3e10, 20_000_000]
    for most in spent:
        make_run(budget=str(Budget.parse({"macs": most, "params": 7})))
    found = list(dict.fromkeys(compare(finals(load_runs(tmp_path)))["budget"]))
    assert found == [str(Budget.parse({"macs": most, "params": 7})) for most in sorted(spent)]
    pages = [page_data([tmp_path])["subtitle"].partition("budget ")[2]]
    assert pages == [", ".join(found)]


def test_no_p_value_without_spread_or_with_one_seed():
    assert math.isnan(paired_p(np.array([0.1])))
    assert math.isnan(paired_p(np.array([0.1, 0.1, 0.1])))
    assert 0 < paired_p(np.array([0.1, 0.2, 0.1])) < 0.1


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30))
def test_the_pareto_front_is_what_nothing_beats(points):
    frame = pd.DataFrame(points, columns=["cost", "gain"], dtype=float)
    front = pareto_front(frame, "cost", "gain")
    for row in frame.itertuples():
        beaten = (front["cost"] <= row.cost) & (front["gain"] >= row.gain)
        assert beaten.any()
    assert front["cost"].is_monotonic_increasing and front["gain"].is_monotonic_increasing
    assert front["gain"].is_unique and front["cost"].is_unique


def test_a_front_over_unknown_columns_is_refused():
    with pytest.raises(InputError, match="no figures in column 'speed'"):
        pareto_front(pd.DataFrame({"cost": [1.0]}), "speed", "cost")
    frame = pd.DataFrame({"cost": [1.0], "name": ["a"], "latency_ratio": [None], "gain": [2.0]})
    with pytest.raises(InputError, match=r"no figures in column 'name'; there are cost, gain$"):
        pareto_front(frame, "name", "gain")
    with pytest.raises(InputError, match="there are cost, gain; --time 60 measures latencies"):
        pareto_front(frame, "latency_ratio", "gain")


def test_tables_as_text_leave_empty_columns_out(table):
    headings, rows = cells(table.reset_index())
    assert "energy mJ" not in headings and "tuned" not in headings
    text = markdown(headings, rows)
    assert text.count("\n") == 4 and "91.00 ± 0.58" in text
    tex = latex(headings, rows)
    assert r"91.00 $\pm$ 0.58" in tex and r"macs $<$= 50 \%" in tex


def test_runs_with_other_settings_are_rows_of_their_own(make_run, tmp_path):
    for trials, top1, uniform in ((20, 0.90, 0.80), (200, 0.92, 0.82)):
        folder = make_run("amc", 0, top1=top1, uniform=uniform)
        config = yaml.safe_load((folder / CONFIG).read_text())
        config["overrides"] = ["model=net", "strategy=amc", f"trials={trials}", "seed=0"]
        (folder / CONFIG).write_text(yaml.safe_dump(config))
    table = compare(finals(load_runs(tmp_path)))
    rows = {label(row): row for row in table.to_dict("records")}
    assert set(rows) == {f"{s}, trials={n}" for s in ("amc", "uniform") for n in (20, 200)}
    assert rows["amc, trials=200"]["gain"] == pytest.approx(0.10)  # over its own uniform
    headings, texts = cells(table)
    assert "amc, trials=20" in {row[headings.index("strategy")] for row in texts}


def test_a_front_of_scores_that_are_losses_keeps_the_least():
    frame = pd.DataFrame({"macs": [1, 1, 2], "score": [2.25, 1.97, 2.0], "score_name": "kl"})
    assert list(pareto_front(frame, "macs", "score")["score"]) == [1.97]
    best = pareto_front(frame.assign(score_name="top1"), "macs", "score")
    assert list(best["score"]) == [2.25]
    with pytest.raises(InputError, match="scores by kl and loss cannot be compared"):
        pareto_front(frame.assign(score_name=["kl", "kl", "loss"]), "macs", "score")


def test_fronts_are_of_one_network_each(make_run, tmp_path):
    make_run(model="small", top1=0.7, uniform=0.6)
    make_run(model="large", top1=0.9, uniform=0.8)
    front = _front(compare(finals(load_runs(tmp_path))), "macs")
    assert sorted(front["model"]) == ["large", "small"]


def test_networks_without_figures_have_no_front_beside_those_with_some():
    timed = {"model": "a", "data": "d", "latency_ratio": 0.5, "test_top1": 0.9}
    frame = pd.DataFrame([timed, {**timed, "model": "b", "latency_ratio": math.nan}])
    assert list(_front(frame, "latency_ratio")["model"]) == ["a"]
    with pytest.raises(InputError, match="no figures in column 'latency_ratio'"):
        _front(frame[1:], "latency_ratio")
    with pytest.raises(InputError, match="no network has figures in both"):
        _front(frame.assign(test_top1=[math.nan, 0.9]), "latency_ratio")
