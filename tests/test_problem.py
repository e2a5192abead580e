import math
import random

import numpy as np
import pytest
import torch
import toy

from automl.journal import Journal
from automl.policy import Policy
from automl.problem import SearchStopped, Trial, best
from automl.types import InputError, Measurement

WEIGHTS = np.linspace(1, 2, 4)


def scorer(**settings) -> toy.Scorer:
    return toy.Scorer(WEIGHTS, **settings)


def some_policies(problem, n: int) -> list[Policy]:
    """Distinct policies within the budget."""
    kept = [problem.space.low + i * problem.space.step * np.eye(4, dtype=int)[3] for i in range(n)]
    return [problem.policy(k) for k in kept]


def test_a_trial_holds_score_metrics_and_costs():
    problem = toy.problem()
    kept = problem.fit(np.ones(4))
    trial = problem.evaluate(problem.policy(kept))
    removed = 1 - kept / problem.space.units
    assert trial.index == 0 and trial.status == "ok" and not trial.cached
    assert trial.score == trial.measurement.metrics["top1"] == 1 - WEIGHTS @ removed**2
    assert trial.measurement.costs == problem.costs(kept) == problem.cost(trial.policy)
    assert trial.measurement.costs["macs"] <= problem.limits["macs"]
    assert trial.seconds >= 0 and trial.time.endswith("+00:00")


def test_equal_policies_are_scored_once():
    seen = []
    score = scorer()
    problem = toy.problem(scorer=score, on_trial=seen.append)
    first, second = some_policies(problem, 2)
    trials = problem.evaluate_many([first, second, first])
    again = problem.evaluate(second)
    assert len(score.seen) == 2
    assert [trial.index for trial in trials] == [0, 1, 0] and again.index == 1
    assert [trial.cached for trial in trials] == [False, False, True] and again.cached
    assert trials[0] == trials[2] and tuple(trials[:2]) == problem.trials == tuple(seen)


def test_the_dense_network_is_measured_once_and_is_no_trial(tmp_path):
    for scored in (1, 0):
        score = scorer()
        with Journal(tmp_path / "trials.jsonl") as journal:
            problem = toy.problem(budget={"macs": 1.0}, scorer=score, journal=journal)
            assert problem.dense == problem.dense
            assert problem.dense.score == 1.0
            assert problem.dense.costs == problem.dense_costs
            trial = problem.evaluate(problem.policy(problem.space.units))
            assert (trial.index, trial.cached, trial.score) == (0, True, 1.0)
            assert journal.to_frame()["index"].tolist() == [-1]
        assert len(score.seen) == scored


def test_what_other_journals_know_is_written_down_and_not_scored_again(tmp_path):
    with Journal(tmp_path / "theirs.jsonl") as theirs:
        policies = some_policies(toy.problem(), 2)
        first = toy.problem(scorer=scorer(), journal=theirs).evaluate(policies[0])
        rows = list(theirs)
    score = scorer()
    with Journal(tmp_path / "ours.jsonl") as ours:
        problem = toy.problem(scorer=score, journal=ours, known=rows)
        assert len(ours) == 0
        trials = problem.evaluate_many(policies)
        assert trials[0] == first and [trial.cached for trial in trials] == [True, False]
        assert len(score.seen) == 1 and len(ours) == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("score", "high"),
        ("score", None),
        ("status", 3),
        ("metrics", None),
        ("index", "a"),
        ("time", 0),
    ],
)
def test_a_journal_line_that_is_no_trial_is_refused_by_its_key(tmp_path, field, value):
    with Journal(tmp_path / "trials.jsonl") as journal:
        _ = toy.problem(scorer=scorer(), journal=journal).dense
        row = dict(next(iter(journal)))
    whole = {**row, field: value}
    rest = {name: other for name, other in row.items() if name != field}
    for damaged in (whole, rest):
        for others in ({"journal": [damaged]}, {"known": [damaged]}):
            with pytest.raises(InputError, match=rf"key {row['key']} is damaged \({field}\)"):
                toy.problem(scorer=scorer(), **others)


def test_failures_of_other_journals_are_tried_again(tmp_path):
    policy = some_policies(toy.problem(), 1)[0]
    with Journal(tmp_path / "theirs.jsonl") as theirs:
        failed = toy.problem(scorer=scorer(faults={0: math.nan}), journal=theirs).evaluate(policy)
        rows = list(theirs)
    assert failed.status == "failed"
    assert toy.problem(scorer=scorer(), known=rows).evaluate(policy).status == "ok"


@pytest.mark.parametrize("fault", [math.nan, RuntimeError("no data\nat all")])
def test_a_dense_network_that_cannot_be_scored_is_bad_input_and_tried_again(tmp_path, fault):
    with Journal(tmp_path / "trials.jsonl") as journal:
        with pytest.raises(InputError, match=r"the dense network cannot be scored: .*Error") as bad:
            _ = toy.problem(scorer=scorer(faults={0: fault}), journal=journal).dense
        assert "\n" not in str(bad.value)
        assert toy.problem(scorer=scorer(), journal=journal).dense.score == 1.0


def test_several_budgets_hold_at_once():
    problem = toy.problem(budget={"macs": 0.5, "params": {"absolute": 10_000}})
    costs = problem.costs(problem.fit(np.ones(4)))
    assert costs["macs"] <= problem.limits["macs"]
    assert costs["params"] <= problem.limits["params"] == 10_000
    assert problem.within(np.stack([problem.space.low, problem.space.units])).tolist() == [
        True,
        False,
    ]


def test_an_infeasible_budget_is_refused_before_anything_is_scored():
    score = scorer()
    with pytest.raises(InputError, match=r"macs .* is below the least reachable .* % of dense\)$"):
        toy.problem(budget={"macs": 1e-4}, scorer=score)
    with pytest.raises(InputError, match=r"\(numbers up to 1 are fractions of the dense"):
        toy.problem(budget={"macs": 2}, scorer=score)
    with pytest.raises(InputError, match=r"budget.latency_ms cannot be held: no cost model"):
        toy.problem(budget={"latency_ms": 3})
    assert score.seen == []


def test_a_network_without_targets_is_refused():
    with pytest.raises(InputError, match="nothing in this network can be pruned"):
        toy.problem(())


def test_a_policy_over_budget_is_refused_unless_asked_for():
    problem = toy.problem()
    dense = problem.policy(problem.space.units)
    with pytest.raises(ValueError, match=r"must be within budget, got macs .* of "):
        problem.evaluate(dense)
    cheap = problem.policy(problem.space.low)
    with pytest.raises(ValueError, match="must be within budget"):
        problem.evaluate_many([cheap, dense])
    assert problem.trials == ()
    assert problem.evaluate(dense, allow_over_budget=True).score == 1.0


def test_a_policy_of_another_network_or_weights_is_refused():
    problem = toy.problem()
    with pytest.raises(InputError, match="another network"):
        problem.evaluate(Policy.from_kept(toy.targets(16), [8]))
    other = Policy.from_kept(problem.targets, problem.space.low, model_hash="other")
    with pytest.raises(InputError, match="other weights"):
        problem.evaluate(other)


def test_a_journalled_trial_is_answered_with_the_same_index_and_not_scored(tmp_path):
    scored, trials = [], []
    for _ in range(2):
        score = scorer()
        with Journal(tmp_path / "trials.jsonl") as journal:
            problem = toy.problem(scorer=score, journal=journal)
            trials.append(problem.evaluate_many(some_policies(problem, 3)))
        scored.append(len(score.seen))
    assert scored == [3, 0]
    assert trials[0] == trials[1]
    assert [trial.cached for trial in trials[1]] == [True] * 3
    assert [trial.seconds for trial in trials[0]] == [trial.seconds for trial in trials[1]]
    assert [trial.time for trial in trials[0]] == [trial.time for trial in trials[1]]


@pytest.mark.parametrize(
    "changes",
    [
        {"scorer": scorer(fingerprint="other data")},
        {"pruner": {"fingerprint": "other criterion"}},
        {"pruner": {"model_hash": "other weights"}},
    ],
)
def test_other_evaluation_settings_are_scored_anew(tmp_path, changes):
    for settings in ({}, changes):
        with Journal(tmp_path / "trials.jsonl") as journal:
            problem = toy.problem(journal=journal, **settings)
            assert not problem.evaluate(problem.policy(problem.space.low)).cached


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (math.nan, "ValueError: the score is nan"),
        (-math.inf, "ValueError: the score is -inf"),
        (RuntimeError("no such\nlayer"), "RuntimeError: no such layer"),
        (KeyError(), "KeyError"),
        ("high", "ValueError: could not convert string to float: 'high'"),
    ],
)
def test_a_failing_trial_is_journalled_and_the_search_goes_on(tmp_path, fault, error):
    for scored in (3, 0):
        score = scorer(faults={1: fault})
        with Journal(tmp_path / "trials.jsonl") as journal:
            problem = toy.problem(scorer=score, journal=journal)
            trials = problem.evaluate_many(some_policies(problem, 3))
        assert [trial.status for trial in trials] == ["ok", "failed", "ok"]
        assert trials[1].error == error
        assert trials[1].measurement is None and trials[1].score == -math.inf
        assert len(score.seen) == scored


def test_where_a_trial_failed_is_logged(caplog):
    problem = toy.problem(scorer=scorer(faults={0: RuntimeError("boom")}))
    with caplog.at_level("INFO", "automl.evaluation"):
        problem.evaluate(problem.policy(problem.space.low))
    assert "trial 0 failed" in caplog.text and "in __call__" in caplog.text


def test_three_failures_in_a_row_stop_the_search_and_are_tried_again_on_resume(tmp_path):
    def broken(call):
        return RuntimeError("disk gone") if call >= 2 else None

    path = tmp_path / "trials.jsonl"
    with Journal(path) as journal:
        problem = toy.problem(scorer=scorer(every=broken), journal=journal)
        with pytest.raises(SearchStopped, match=r"3 trials in a row failed, .*disk gone"):
            problem.evaluate_many(some_policies(problem, 8))
        assert len(journal) == 5
    score = scorer()
    with Journal(path) as journal:
        problem = toy.problem(scorer=score, journal=journal)
        trials = problem.evaluate_many(some_policies(problem, 8))
        assert [trial.status for trial in trials] == ["ok"] * 8
        assert len(score.seen) == 6
        assert journal.to_frame()["status"].tolist() == ["ok"] * 8


@pytest.mark.parametrize("cut_after", [None, 1, 2])
@pytest.mark.parametrize(
    ("first", "usual", "raised"),
    [
        (OSError("disk gone"), 3, 3),  # the machine's fault, and what came of it
        (RuntimeError("x"), 3, 5),  # told to bear more since
    ],
)
def test_whatever_stopped_an_earlier_run_is_tried_again(first, usual, raised, cut_after):
    rows: list = []
    faults = {2: first, 3: ValueError("a"), 4: ValueError("a")}
    problem = toy.problem(scorer=scorer(faults=faults), journal=rows, max_failures=usual)
    with pytest.raises(SearchStopped):
        problem.evaluate_many(some_policies(problem, 8))
    if cut_after is not None:  # while it was trying again
        problem = toy.problem(scorer=scorer(), journal=rows, max_failures=raised)
        problem.evaluate_many(some_policies(problem, 2 + cut_after))
    score = scorer()
    problem = toy.problem(scorer=score, journal=rows, max_failures=raised)
    trials = problem.evaluate_many(some_policies(problem, 8))
    assert [trial.status for trial in trials] == ["ok"] * 8
    assert len(score.seen) == 6 - (cut_after or 0)


def test_failures_that_are_not_in_a_row_do_not_stop_the_search():
    def half(call):
        return RuntimeError("x") if call % 3 else None

    problem = toy.problem(scorer=scorer(every=half))
    trials = problem.evaluate_many(some_policies(problem, 8))
    assert sum(trial.status == "failed" for trial in trials) == 5


def test_the_number_of_failures_is_a_setting():
    problem = toy.problem(scorer=scorer(every=lambda _: math.nan), max_failures=1)
    with pytest.raises(SearchStopped, match="1 trials in a row failed"):
        problem.evaluate(problem.policy(problem.space.low))
    with pytest.raises(ValueError, match=r"Problem.max_failures must be >= 1, got 0"):
        toy.problem(max_failures=0)


def test_an_interrupt_passes_through_with_everything_before_it_written(tmp_path):
    path = tmp_path / "trials.jsonl"
    with Journal(path) as journal:
        problem = toy.problem(scorer=scorer(faults={2: KeyboardInterrupt()}), journal=journal)
        with pytest.raises(KeyboardInterrupt):
            problem.evaluate_many(some_policies(problem, 5))
        assert len(Journal.read(path)) == 2


def test_a_trial_draws_the_same_random_numbers_alone_and_among_others():
    def draw():
        return random.random(), np.random.rand(), torch.rand(()).item()

    class Noisy:
        fingerprint = "noisy"

        def __call__(self, model):
            return sum(draw()), {}

    def last_of(n: int) -> float:
        problem = toy.problem(scorer=Noisy())
        return problem.evaluate_many(some_policies(problem, 3)[3 - n :])[-1].score

    assert last_of(1) == last_of(3)
    problem = toy.problem(scorer=Noisy())
    assert len({trial.score for trial in problem.evaluate_many(some_policies(problem, 3))}) == 3


def test_a_trial_leaves_the_random_numbers_of_its_caller_alone():
    def seeded():
        random.seed(1), np.random.seed(1), torch.manual_seed(1)

    def draw():
        return random.random(), np.random.rand(), torch.rand(()).item()

    class Noisy:
        fingerprint = "noisy"

        def __call__(self, model):
            draw()
            raise RuntimeError

    seeded()
    expected = draw()
    problem = toy.problem(scorer=Noisy())
    seeded()
    problem.evaluate(problem.policy(problem.space.low))
    assert draw() == expected


def test_the_best_trial_is_the_first_of_the_highest():
    def trial(index: int, score: float | None) -> Trial:
        found = None if score is None else Measurement(score)
        status = "failed" if score is None else "ok"
        return Trial(index, Policy(()), found, status, None if found else f"e{index}", 0.0)

    assert best([trial(0, 0.1), trial(1, None), trial(2, 0.3), trial(3, 0.3)]).index == 2
    with pytest.raises(SearchStopped, match="no trial succeeded: e1"):
        best([trial(0, None), trial(1, None)])
    with pytest.raises(SearchStopped, match="no trial succeeded"):
        best([])


def test_rounding_and_least_fraction_shape_the_grids():
    problem = toy.problem(rounding=1, min_keep=0.25, budget={"params": 0.9})
    assert [counts[0] for counts in problem.grids] == [4, 4, 8, 16]
    assert problem.grids[0].tolist() == list(range(4, 17))


@pytest.mark.parametrize(
    "error",
    [
        "WorkerLost: its process was ended by SIGKILL, maybe for want of memory (tried 2 times)",
        "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
        "RuntimeError: CUDA error: out of memory",
        "RuntimeError: cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory",
        "BlockingIOError: [Errno 11] Resource temporarily unavailable",
        "ConnectionResetError: [Errno 104] Connection reset by peer",
        "OSError: [Errno 12] Cannot allocate memory",
    ],
)
def test_what_the_machine_was_at_fault_for_is_scored_again_on_resume(error):
    rows = []
    problem = toy.problem(scorer=scorer(faults={1: RuntimeError("x")}), journal=rows)
    problem.evaluate_many(some_policies(problem, 3))
    (failed,) = (row for row in rows if row["status"] == "failed")
    failed["error"] = error
    score = scorer()
    again = toy.problem(scorer=score, journal=rows)
    assert [t.status for t in again.evaluate_many(some_policies(again, 3))] == ["ok"] * 3
    assert len(score.seen) == 1
