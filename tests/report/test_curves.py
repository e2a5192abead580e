import pytest

from automl.report.curves import (
    analysis_curves,
    probe_curves,
    scores,
    search_curves,
)


def row(index, kept, score, status="ok", macs=1.0):
    return {
        "index": index, "kept": list(kept), "score": score, "status": status,
        "costs": {"macs": macs},
    }  # fmt: skip


def test_scores_are_of_own_trials_within_the_budget():
    rows = [row(-1, (4, 4), 0.0), row(0, (2, 4), -2.0), row(1, (4, 2), -1.0, macs=9.0)]
    rows += [row(2, (2, 2), 0.0, "failed"), row(3, (1, 4), -3.0), row(4, (3, 3), -0.5)]
    found = scores(rows, {"trials": 4, "limits": {"macs": 2.0}})
    assert found == [(1, -2.0), (4, -3.0)]


def test_trials_of_policies_tried_twice_leave_no_room_for_the_baselines():
    rows = [row(0, (2, 4), -2.0), row(1, (1, 4), -3.0), row(2, (3, 3), -0.5)]
    assert scores(rows, {"trials": 3, "networks": 2}) == [(1, -2.0), (2, -3.0)]


def test_trials_keep_their_numbers_where_some_were_scored_again_or_ended_out_of_order():
    cut = [row(-1, (4, 4), 0.0), row(0, (2, 4), -2.0), row(1, (1, 4), None, "failed")]
    resumed = [row(2, (3, 4), -0.5), row(1, (1, 4), -3.0)]
    found = scores([*cut, *resumed], {"trials": 3})
    assert found == [(1, -2.0), (2, -3.0), (3, -0.5)]


def test_curves_are_means_over_seeds_and_stay_where_a_search_ended():
    runs = [("p", "a", [(1, 1.0), (2, 3.0)]), ("p", "a", [(1, 2.0)]), ("q", "a", [])]
    (problem,) = search_curves(runs)
    (curve,) = problem["curves"]
    assert (problem["name"], curve["seeds"], curve["mean"]) == ("p", 2, [1.5, 2.5])
    assert curve["error"] == [0.5, 0.5]


def test_trials_that_prune_one_group_are_its_sensitivity():
    rows = [row(-1, (4, 8), 0.0), row(0, (1, 8), -0.5), row(1, (2, 8), -0.1)]
    rows += [row(2, (2, 4), -9.0), row(3, (4, 4), -0.2), row(4, (3, 8), 0.0, "failed")]
    found = probe_curves(rows, ["x", "y"], [4, 8], "kl")
    assert found["sensitivity_metric"] == "damage (kl)"
    x, y = found["sensitivity"]
    assert (x["group"], x["kept"], x["damage"]) == ("x", [0.25, 0.5], [0.5, 0.1])
    assert (y["group"], y["kept"], y["damage"]) == ("y", [0.5], [0.2])


@pytest.mark.parametrize("rows", [[], [row(0, (1, 8), -0.5)], [row(-1, (4, 8), 0.0)]])
def test_without_the_dense_network_or_such_trials_there_are_no_curves(rows):
    assert probe_curves(rows, ["x", "y"], [4, 8], "kl") == {
        "sensitivity": [], "sensitivity_metric": ""
    }  # fmt: skip


@pytest.mark.parametrize("damage", ["nan", "inf", "", "much"])
def test_a_damaged_analysis_is_told_of_and_the_next_one_is_drawn(tmp_path, damage):
    bad, good = tmp_path / "bad", tmp_path / "good"
    for folder, value in ((bad, damage), (good, "0.5")):
        folder.mkdir()
        lines = ["target,keep,status,kl_damage", f"conv1,0.5,ok,{value}"]
        (folder / "sensitivity.csv").write_text("\n".join(lines))
    found, (line,) = analysis_curves([bad, good])
    assert found["sensitivity"] == [{"group": "conv1", "kept": [0.5], "damage": [0.5]}]
    assert line.startswith(f"{bad / 'sensitivity.csv'}: unreadable (")
