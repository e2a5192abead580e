import json

import pytest

from automl.report.loading import load_runs
from automl.report.page import (
    _all_contents,
    _Contents,
    _missing,
    _named,
    _searches,
    _sensitivity,
    page_data,
    write_page,
)
from automl.types import InputError


def test_names_cannot_break_out_of_the_page(make_run, tmp_path):
    run = make_run(model="</script><b>x")
    (run / "policy.json").write_text(
        '{"schema": "prunepilot/policy", "version": 1, "model_hash": "", "decisions": []}'
    )
    (run / "trials.jsonl").write_text("")
    text = write_page([run], tmp_path / "page.html", script="s.js").read_text()
    assert "</script><b>" not in text


def test_nothing_finished_is_nothing_to_report(make_run):
    run = make_run()
    (run / "result.json").unlink()
    with pytest.raises(InputError, match="no run has finished"):
        page_data([run])


def write_policy(folder):
    decision = {
        "target": "fc", "granularity": "channel", "ratio": 0.5, "kept": 2, "units": 4,
        "indices": None,
    }  # fmt: skip
    policy = {"schema": "prunepilot/policy", "version": 1, "model_hash": ""}
    (folder / "policy.json").write_text(json.dumps({**policy, "decisions": [decision]}))


def test_damaged_parts_of_a_run_are_listed_and_the_rest_is_shown(make_run, tmp_path):
    whole, no_policy, no_trials = (make_run(seed=seed) for seed in range(3))
    write_policy(whole)
    (whole / "trials.jsonl").write_text("")
    (no_policy / "trials.jsonl").write_text("")
    write_policy(no_trials)
    (no_trials / "trials.jsonl").write_text("{ not json\n{}\n")
    data = page_data([tmp_path])
    assert len(data["runs"]) == 1 and len(data["networks"]) > 1
    assert len(data["problems"]) == 2
    assert all("only its result is shown" in line for line in data["problems"])
    assert str(no_policy) in data["problems"][0] and str(no_trials) in data["problems"][1]


def test_a_page_of_several_runs_begins_with_the_best_and_says_what_is_missing(make_run, tmp_path):
    for seed, top1 in enumerate([0.9, 0.92]):
        make_run("amc", seed, top1=top1)
        make_run("uniform", seed)
    data = page_data([tmp_path])
    (figure,) = data["figures"]
    assert (figure["value"], figure["mood"]) == ("91.00 %", "up")
    assert figure["name"] == "best test top-1 at macs <= 50 %: amc, +11.00 over uniform"
    assert any("prunepilot bench" in line for line in data["missing"])
    assert [name for name, *_ in data["gains"]] == ["test_top1", "validation_top1", "score"]


def test_the_command_of_a_sweep_is_the_one_that_was_given(make_run, tmp_path):
    make_run(seed=0)
    overrides = ["seed=0,1", "model.kwargs.name='a b'"]
    (tmp_path / "sweep.json").write_text(json.dumps({"overrides": overrides}))
    command = "prunepilot search -m seed=0,1 'model.kwargs.name='\"'\"'a b'\"'\"''"
    assert page_data([tmp_path])["command"] == command
    (tmp_path / "sweep.json").write_text("{")
    assert page_data([tmp_path])["command"].startswith("prunepilot search (")


def test_curves_are_of_runs_of_one_score_and_one_label(make_run, tmp_path):
    for seed, changes in enumerate(({}, {"score": "top1"}, {"settings": {"acting": 0.0}})):
        folder = make_run(seed=seed, **changes)
        write_policy(folder)
        (folder / "trials.jsonl").write_text("")
    contents, unreadable = _all_contents(_named(load_runs(tmp_path).drop_duplicates("run")))
    assert not unreadable
    assert {(one.problem.rpartition(", ")[2], one.strategy) for one in contents} == {
        ("kl", "amc"), ("top1", "amc"), ("kl", "amc (acting=0.0)"),
    }  # fmt: skip


def content(scores=(), kept=()):
    curves = [{"group": "g", "kept": list(kept), "damage": [0.1] * len(kept)}] if kept else []
    probes = {"sensitivity": curves, "sensitivity_metric": "damage (kl)"}
    return _Contents("p", "amc", {}, list(scores), probes)


@pytest.mark.parametrize("score", [0.0, -1e-12, -0.37])
def test_scores_that_are_all_equal_lie_within_their_plot(score):
    (search,) = _searches([content([(1, score), (2, score)])])
    low, high = search["range"]
    (curve,) = search["curves"]
    assert low < min(curve["mean"]) <= max(curve["mean"]) < high and high - low >= 1e-4


@pytest.mark.parametrize(("kept", "drawn"), [((), 0), ((0.5,), 0), ((0.25, 0.5), 1)])
def test_the_sensitivity_of_a_single_point_is_missing(kept, drawn):
    nothing = {"sensitivity": [], "sensitivity_metric": ""}
    found = _sensitivity(nothing, [content(kept=kept)])
    assert len(found["sensitivity"]) == drawn
    shown = {**found, "networks": [], "benches": []}
    assert any("sensitivity curves" in line for line in _missing(shown)) is not bool(drawn)


def test_networks_know_whose_front_they_are_on(make_run, tmp_path):
    make_run(model="small")
    make_run(model="large")
    families = {network["family"] for network in page_data([tmp_path])["networks"]}
    assert families == {"small on images", "large on images"}
