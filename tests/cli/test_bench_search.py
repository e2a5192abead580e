"""``prunepilot bench-search``: a trial's time by steps and by kind of work."""

import json

import pytest

from automl.commands.bench_search import summary

SMALL = ("model=digits", "budget.macs=0.5", "repair.calibration_images=16", "scoring.images=40")


def test_steps_and_shares_are_complete(cli):
    done = cli("bench-search", *SMALL, "--trials", "2", "--json")
    assert done.code == 0
    found = json.loads(done.out)
    assert list(found["steps_s"]) == ["materialise", "repair", "fold", "score"]
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert found["trials_per_second"] == pytest.approx(1 / found["trial_s"])


def test_the_table_says_what_is_outside_of_forward_passes(cli):
    done = cli("bench-search", *SMALL, "--trials", "1")
    assert "| repair |" in done.out and "trials/s |" in done.out
    assert "; outside of forward passes " in done.out.splitlines()[-1]


def test_medians_are_over_trials():
    rows = [{"a": 1.0, "b": 1.0}, {"a": 3.0, "b": 1.0}, {"a": 9.0, "b": 1.0}]
    found = summary(rows, 5.0, {"forward": 1.0})
    assert (found["trial_s"], found["steps_s"]["a"], found["first_s"]) == (4.0, 3.0, 5.0)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(("--trials", "0"), "--trials must be at least 1"),
     (("granularity=unstructured", "ratio=0.5"), "steps of granularity=channel")],
)  # fmt: skip
def test_bad_input_is_one_line(cli, arguments, told):
    done = cli("bench-search", *SMALL, *arguments)
    assert done.code == 2 and told in done.err
