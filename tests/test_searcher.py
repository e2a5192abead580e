import copy
import json
import math
import threading
import warnings
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_model
from torch import nn

import automl
from automl.graph.trace import trace
from automl.hashing import weights_hash
from automl.plan import IndexPlan
from automl.policy import Policy
from automl.problem import SearchStopped
from automl.pruning.refine import Refinement
from automl.runs import RunFolder
from automl.searcher import Searcher
from automl.strategies.amc import AMC
from automl.strategies.random import Random
from automl.strategies.slimming import Global, Slimming
from automl.types import InputError, SearchResult


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return torch.relu(x + self.conv2(torch.relu(self.bn(self.conv1(x)))))


def network() -> nn.Module:
    torch.manual_seed(0)
    stem, down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, 2, 1)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)]
    return nn.Sequential(stem, Block(8), down, Block(16), *head).eval()


IMAGES = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    OUTPUTS = network()(IMAGES)


class Evaluate:
    """Minus the squared distance to the dense outputs; counts calls, fails when told to."""

    def __init__(self, faults=None) -> None:
        self.calls = 0
        self.faults = faults or {}

    def __call__(self, model) -> float:
        self.calls += 1
        fault = self.faults.get(self.calls - 1)
        if isinstance(fault, BaseException):
            raise fault
        if fault is not None:
            return fault
        with torch.no_grad():
            return -float((model(IMAGES) - OUTPUTS).square().mean())


def lacking_a_key(model) -> float:
    return {}["acc"]


@pytest.fixture(autouse=True)
def traced_once(monkeypatch):
    """The network is always the same, and tracing is what would take most of the time here."""

    def traced(model, example_inputs, exclude=()):
        same = weights_hash(model) == weights_hash(network())
        return _trace(exclude) if same else trace(model, example_inputs)

    monkeypatch.setattr("automl.searcher.trace", traced)


@cache
def _trace(exclude):
    return trace(network(), IMAGES[:2], exclude=exclude)


def searcher(evaluate=None, **settings) -> Searcher:
    settings = {"budget": {"macs": 0.5}, "strategy": "random", **settings}
    return Searcher(network(), IMAGES[:2], evaluate or Evaluate(), **settings)


def test_a_search_finds_a_policy_within_the_budget_that_beats_or_equals_uniform():
    run = searcher(calibration=IMAGES).search(trials=30, seed=0)
    table = run.compare("uniform")
    assert table.index.tolist() == ["dense", "uniform", "found"]
    assert np.all(table.macs[["uniform", "found"]] <= 0.5 * table.macs["dense"])
    assert table.score["dense"] == 0 and table.score["found"] >= table.score["uniform"]
    assert len(run.trials) <= 30 and run.trials.score.max() == table.score["found"]
    assert run.dense.score == 0
    assert {"score", "macs", "params", "kept", "seconds", "status"} <= set(run.trials.columns)


def test_the_network_applied_costs_what_the_policy_says():
    run = searcher(rounding=1).search(trials=3, seed=1)
    small = run.apply()
    retraced = trace(small, IMAGES[:2])
    found = run.compare().loc["found"]
    assert (retraced.macs, retraced.params) == (found.macs, found.params)
    assert small is run.apply() and small(IMAGES).shape == OUTPUTS.shape


def test_the_network_applied_is_refined_and_trials_are_not():
    few = Refinement(steps=60, lr=0.01, batch_size=len(IMAGES) // 2)
    plain, refined = (
        searcher(calibration=IMAGES, refine=how).search(trials=5, seed=1) for how in (None, few)
    )
    assert plain.trials.score.tolist() == refined.trials.score.tolist()
    before, after = (Evaluate()(run.apply()) for run in (plain, refined))
    assert after > before


def test_the_dense_network_is_left_as_it_was():
    model = network()
    with torch.no_grad():
        model[-1].bias.fill_(1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Searcher(model, IMAGES[:2], Evaluate(), budget={"macs": 0.5}, calibration=IMAGES).search(3)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_second_search_of_the_same_searcher_answers_from_the_first():
    evaluate = Evaluate()
    one = searcher(evaluate)
    first = one.search(trials=6, seed=0)
    scored = evaluate.calls
    again = one.search(trials=6, seed=0)
    assert again.policy == first.policy and evaluate.calls == scored


def test_a_run_folder_holds_journal_table_policy_and_settings(tmp_path):
    run = searcher(run_dir=tmp_path / "run").search(trials=4, seed=0)
    names = {path.name for path in (tmp_path / "run").iterdir() if not path.name.endswith(".lock")}
    assert names == {
        "config.yaml", "environment.json", "policy.json", "trials.jsonl", "trials.parquet"
    }  # fmt: skip
    assert Policy.load(tmp_path / "run" / "policy.json") == run.policy
    table = pd.read_parquet(tmp_path / "run" / "trials.parquet")
    assert table["index"].tolist() == [-1, *run.trials["index"]]


@pytest.mark.parametrize("cut_after", [1, 4])
def test_a_search_that_is_cut_goes_on_to_the_same_bytes(tmp_path, cut_after):
    searcher(run_dir=tmp_path / "whole").search(trials=8, seed=0)
    cut = Evaluate(faults={cut_after: KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        searcher(cut, run_dir=tmp_path / "cut").search(trials=8, seed=0)
    rest = Evaluate()
    searcher(rest, run_dir=tmp_path / "cut").search(trials=8, seed=0)
    expected, found = ((tmp_path / name / "policy.json").read_bytes() for name in ("whole", "cut"))
    assert found == expected
    assert cut.calls - 1 + rest.calls == 9  # the dense network and eight trials


def test_a_finished_search_can_be_extended(tmp_path):
    searcher(run_dir=tmp_path).search(trials=4, seed=0)
    evaluate = Evaluate()
    run = searcher(evaluate, run_dir=tmp_path).search(trials=6, seed=0)
    assert len(run.trials) == 6 and evaluate.calls == 2
    assert run.trials.score.tolist() == searcher().search(trials=6, seed=0).trials.score.tolist()


def test_comparing_goes_through_the_run_folder_too(tmp_path):
    run = searcher(run_dir=tmp_path).search(trials=3, seed=0)
    evaluate = Evaluate()
    first = run.compare("uniform", Random(spread=0.5))
    again = searcher(evaluate, run_dir=tmp_path).search(trials=3, seed=0).compare("uniform")
    assert first.index.tolist() == ["dense", "uniform", "Random", "found"]
    assert again.loc["uniform"].equals(first.loc["uniform"]) and evaluate.calls == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"budget": {"macs": 0.4}}, "budget.macs.fraction: 0.5 there, 0.4 here"),
        ({"strategy": "uniform"}, "strategy.class"),
        ({"strategy": Random(spread=2.0)}, "strategy.spread: 1.0 there, 2.0 here"),
        ({"criterion": "l1"}, "pruner: "),
        ({"rounding": 4}, "rounding: 8 there, 4 here"),
        ({"exclude": ["0"]}, "exclude"),
    ],
)
def test_a_folder_of_another_search_is_refused_and_left_alone(tmp_path, changed, message):
    searcher(run_dir=tmp_path).search(trials=2, seed=0)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match=f"holds another run .*{message}"):
        searcher(run_dir=tmp_path, **changed).search(trials=2, seed=0)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_cannot_be_scored_is_bad_input_and_leaves_no_trial():
    for fault in (math.nan, RuntimeError("no data")):
        with pytest.raises(InputError, match=r"the dense network cannot be scored: .*Error"):
            searcher(Evaluate(faults={0: fault})).search(trials=3)


@pytest.mark.parametrize("engine", ["serial", "process"])
def test_an_evaluation_that_fails_on_the_dense_network_says_where_and_is_the_cause(engine):
    with pytest.raises(
        InputError, match=r"KeyError: 'acc' \(.*test_searcher\.py, line \d+\)"
    ) as told:
        searcher(lacking_a_key, engine=engine).search(trials=3)
    assert isinstance(told.value.__cause__, KeyError) == (engine == "serial")


def test_who_has_no_run_folder_is_not_told_to_resume(tmp_path):
    for folder in (None, tmp_path):
        evaluate = Evaluate(faults=dict.fromkeys(range(1, 9), ValueError("odd")))
        with pytest.raises(SearchStopped, match=r"odd \(.*test_searcher\.py, line \d+\); ") as told:
            searcher(evaluate, run_dir=folder).search(trials=8, seed=0)
        assert ("then resume" in str(told.value)) == (folder is not None)


def test_failing_trials_are_in_the_table_and_three_in_a_row_stop(tmp_path):
    run = searcher(Evaluate(faults={2: math.nan})).search(trials=4, seed=0)
    assert run.trials.status.tolist() == ["ok", "failed", "ok", "ok"]
    faults = dict.fromkeys(range(1, 9), math.nan)
    with pytest.raises(SearchStopped, match="3 trials in a row failed"):
        searcher(Evaluate(faults=faults), run_dir=tmp_path).search(trials=8)
    assert len(searcher(run_dir=tmp_path).search(trials=8).trials) == 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": {"macs": 0.001}}, "macs .* is below the least reachable"),
        ({"budget": {"mcas": 0.5}}, "did you mean 'macs'"),
        ({"strategy": "randon"}, "did you mean 'random'"),
        ({"exclude": ["nothing*"]}, "matches no layer"),
        ({"exclude": "nothing*"}, r"'nothing\*' matches no layer"),
        ({"rounding": 0}, "rounding must be >= 1"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_scored(settings, message):
    evaluate = Evaluate()
    with pytest.raises(InputError, match=message):
        searcher(evaluate, **settings)
    assert evaluate.calls == 0


@pytest.mark.parametrize(
    "arguments", [{"trials": 0}, {"trials": 1.5}, {"seed": -1}, {"seed": True}]
)
def test_bad_trials_and_seeds_are_refused(arguments):
    with pytest.raises(InputError, match=f"{next(iter(arguments))} must be an integer >= "):
        searcher().search(**arguments)


def test_metrics_of_a_mapping_are_columns_and_the_score_is_named():
    def evaluate(model):
        return {"top1": 0.5, "cost": float(sum(p.numel() for p in model.parameters()))}

    run = searcher(evaluate, score_key="cost").search(trials=5)
    assert run.trials.top1.tolist() == [0.5] * 5
    assert run.trials.score.tolist() == run.trials.cost.tolist() == run.trials.params.tolist()


def test_several_budgets_hold_at_once():
    run = searcher(budget={"macs": 0.8, "params": 0.4}).search(trials=5)
    dense, found = (run.compare().loc[name] for name in ("dense", "found"))
    assert found.macs <= 0.8 * dense.macs and found.params <= 0.4 * dense.params


@pytest.mark.parametrize("returns", [True, False])
def test_the_final_network_is_fine_tuned_once_in_place_or_not(returns):
    tuned = []

    def finetune(model):
        with torch.no_grad():
            model[-1].bias.fill_(torch.rand(()).item())
        tuned.append(model)
        return nn.Sequential(model) if returns else None

    torch.manual_seed(5)
    run = searcher(finetune=finetune).search(trials=2)
    assert tuned == []
    small = run.apply()
    assert run.apply() is small and len(tuned) == 1
    assert isinstance(small[0], nn.Sequential) == returns
    torch.manual_seed(6)
    searcher(finetune=finetune).search(trials=2).apply()
    assert torch.equal(tuned[0][-1].bias, tuned[1][-1].bias)  # its random numbers are its own


def test_what_fine_tuning_returns_must_be_a_network():
    run = searcher(finetune=lambda model: 0.9).search(trials=2)
    with pytest.raises(InputError, match="finetune must return the network, or None"):
        run.apply()


def test_an_export_can_be_loaded_into_the_plan_of_the_dense_network(tmp_path):
    run = searcher(calibration=IMAGES).search(trials=3)
    files = run.export(tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(p.name for p in files)
    policy = Policy.load(tmp_path / "out" / "policy.json")
    plan = IndexPlan.from_json((tmp_path / "out" / "plan.json").read_text())
    policy.check(plan.targets)
    again = searcher().pruner.prune(policy)
    load_model(again, tmp_path / "out" / "model.safetensors")
    assert torch.equal(again(IMAGES), run.apply()(IMAGES))


@pytest.mark.parametrize("granularity", ["channel", ("channel", "unstructured")])
def test_an_export_of_a_network_from_python_is_loaded_beside_its_dense_network(
    tmp_path, granularity
):
    run = searcher(calibration=IMAGES, granularity=granularity).search(trials=3)
    run.export(tmp_path / "out")
    dense = copy.deepcopy(network())
    before = weights_hash(dense)
    with pytest.raises(InputError, match=r"no rebuild.json.*load_pruned\(folder, dense=network\)"):
        automl.load_pruned(tmp_path / "out")
    again = automl.load_pruned(tmp_path / "out", dense=dense)
    assert torch.equal(again(IMAGES), run.apply()(IMAGES))
    assert weights_hash(dense) == before
    with pytest.raises(InputError, match="the plan is of another model"):
        automl.load_pruned(tmp_path / "out", dense=nn.Linear(3, 2))


def test_an_export_writes_over_nothing_and_names_what_it_knows(tmp_path):
    run = searcher().search(trials=2)
    with pytest.raises(
        InputError, match="cannot export as 'tflite'; known formats are safetensors"
    ):
        run.export(tmp_path / "out", formats=["safetensors", "tflite"])
    assert not (tmp_path / "out").exists()
    run.export(tmp_path / "out", formats="safetensors")
    with pytest.raises(InputError, match=r"policy.json' exists; choose another folder"):
        run.export(tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write to"):
        run.export(tmp_path / "file")


def test_a_persons_own_function_scores_in_other_processes_too():
    here = searcher(budget={"macs": 0.5}).search(trials=4)
    shift = torch.zeros(5)  # a closure, which pickles by value only

    def evaluate(model):
        with torch.no_grad():
            return -float((model(IMAGES) - OUTPUTS + shift).square().mean())

    there = searcher(evaluate, budget={"macs": 0.5}, engine="process").search(trials=4)
    assert there.policy == here.policy
    assert list(there.trials["score"]) == list(here.trials["score"])


def test_a_function_that_cannot_go_to_other_processes_is_one_clear_line():
    lock = threading.Lock()

    def evaluate(model):
        with lock:
            return 0.0

    with pytest.raises(InputError, match=r"cannot be sent to another process .* engine=serial"):
        searcher(evaluate, budget={"macs": 0.5}, engine="process").search(trials=2)


def test_trials_are_reported_as_they_finish():
    seen = []
    run = searcher(on_trial=seen.append).search(trials=4)
    assert [trial.index for trial in seen] == run.trials["index"].tolist() == [0, 1, 2, 3]


def test_nothing_in_a_search_warns_and_policies_are_plain_json():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = searcher(calibration=IMAGES).search(trials=2)
    assert json.loads(run.policy.to_json())["model_hash"] == run.searcher.pruner.model_hash


@pytest.mark.parametrize("strategy", ["cmaes", "tpe", "random"])
def test_seeds_that_generators_do_not_take_are_refused_before_anything_is_scored(strategy):
    evaluate = Evaluate()
    with pytest.raises(InputError, match="seed must be at most 4294967295, got 4294967296"):
        searcher(evaluate, strategy=strategy).search(trials=2, seed=2**32)
    assert evaluate.calls == 0


def test_what_is_scored_before_a_search_is_known_to_it_and_leaves_the_folder_usable(tmp_path):
    evaluate = Evaluate()
    one = searcher(evaluate, strategy="amc", run_dir=tmp_path / "run")
    with one.problem() as problem:
        problem.evaluate(problem.policy(problem.fit(np.ones(len(problem.targets)))))
    assert evaluate.calls == 1
    run = one.search(trials=3, seed=0)  # the uniform policy is its first
    scored = evaluate.calls
    assert len(run.trials) == 3 and searcher(strategy="amc").search(3).policy == run.policy
    again = Evaluate()
    resumed = searcher(again, strategy="amc", run_dir=tmp_path / "run").search(trials=3, seed=0)
    assert resumed.policy == run.policy and scored == 1 + 3
    assert again.calls == 0


def test_the_problem_holds_the_run_folders_lock(tmp_path):
    one = searcher(run_dir=tmp_path)
    one.search(trials=1, seed=0)
    with one.problem(), pytest.raises(InputError, match="is in use by another process"):
        one.search(trials=1, seed=0)
    one.search(trials=1, seed=0)


def test_comparisons_stay_out_of_the_searchs_own_journal(tmp_path):
    one = searcher(run_dir=tmp_path)
    one.search(trials=3, seed=0).compare("random", Random(spread=0.5))
    one.search(trials=4, seed=0)
    table = pd.read_parquet(tmp_path / "trials.parquet")
    assert table["index"].tolist() == [-1, 0, 1, 2, 3]


def test_a_mended_search_goes_on_whatever_was_searched_since():
    faults = dict.fromkeys(range(3, 6), math.nan)
    one = searcher(Evaluate(faults=faults), strategy="random")
    with pytest.raises(SearchStopped, match="3 trials in a row failed"):
        one.search(trials=8, seed=1)
    assert len(one.search(trials=8, seed=0).trials) == 8
    run = one.search(trials=8, seed=1)
    assert run.trials.status.tolist() == ["ok"] * 8


def test_strategies_of_one_name_have_a_row_each():
    run = searcher().search(trials=2, seed=0)
    table = run.compare(Random(spread=0.1), Random(spread=5.0), "uniform", Random(spread=2.0))
    rows = ["dense", "Random", "Random 2", "uniform", "Random 3", "found"]
    assert table.index.tolist() == rows


@pytest.mark.parametrize(
    ("there", "here", "message"),
    [
        (Global(["l2"]), Global(["none"]), r"strategy.normalise: \['l2'\] there, \['none'\] here"),
        (Slimming(settings={"epochs": 1}), Slimming(settings={"epochs": 2}), "settings.epochs: 1"),
        (AMC(), AMC(agent="runs/a"), "strategy.agent: None there, runs/a here"),
    ],
)
def test_settings_of_every_plain_kind_tell_searches_apart(tmp_path, there, here, message):
    def start(strategy):
        folder = RunFolder(tmp_path)
        folder.start(searcher(strategy=strategy, run_dir=tmp_path)._identity(0), dict)

    start(there)
    start(there)
    with pytest.raises(InputError, match=message):
        start(here)


def test_what_a_strategy_found_is_no_setting_of_it(tmp_path):
    one = searcher(strategy="netadapt", run_dir=tmp_path)
    before = one._identity(0)
    one.search(trials=20, seed=0)
    assert one.strategy.family and one._identity(0) == before
    assert before["strategy"].keys() == {"class", "winner", "decay", "tolerance", "guard"}


def test_ctrl_c_that_an_evaluation_makes_another_error_of_ends_the_search(tmp_path):
    class Wrapping(Evaluate):
        def __call__(self, model):
            score = super().__call__(model)
            if self.calls == 3:
                try:
                    raise KeyboardInterrupt
                except BaseException as error:
                    raise RuntimeError("wrapped") from error
            return score

    with pytest.raises(KeyboardInterrupt):
        searcher(Wrapping(), run_dir=tmp_path / "run").search(trials=6)
    lines = (tmp_path / "run" / "trials.jsonl").read_text().splitlines()
    assert all(json.loads(line)["status"] == "ok" for line in lines)


# ---- strategies of one's own


class Own:
    """Chooses, of the policies it tried, one over the budget, or the uniform one."""

    def __init__(self, width: float = 0.5, *, over: bool = False) -> None:
        self.width, self._over = width, over
        self.calls, self.scores = 0, []

    def search(self, problem, trials, seed):
        self.calls += 1
        kept = problem.fit(np.ones(len(problem.targets)))
        found = [problem.evaluate(problem.policy(one)) for one in (problem.space.low, kept)]
        dense = problem.policy(problem.space.units)
        found.append(problem.evaluate(dense, allow_over_budget=True))
        self.scores = [trial.score for trial in found]
        return SearchResult(found[-1 if self._over else 1].policy, tuple(found))


@dataclass(frozen=True, slots=True)
class Slotted:
    width: float = 0.5

    def search(self, problem, trials, seed):
        return Own().search(problem, trials, seed)


class Named(NamedTuple):
    width: float = 0.5

    def search(self, problem, trials, seed):
        return Own().search(problem, trials, seed)


class Loose(Own):
    """Takes what its constructor does not name."""

    def __init__(self, **settings) -> None:
        super().__init__(**settings)


def test_a_policy_over_the_budget_is_refused_and_the_mended_strategy_goes_on(tmp_path):
    told = []

    class Watch:
        on_search_start = on_trial = staticmethod(lambda given: None)
        on_search_end = staticmethod(told.append)

    with pytest.raises(InputError, match=r"^strategy Own chose a policy over the budget \(macs "):
        searcher(strategy=Own(over=True), run_dir=tmp_path, callbacks=[Watch()]).search(trials=3)
    assert told == [None]
    evaluate = Evaluate()
    run = searcher(evaluate, strategy=Own(), run_dir=tmp_path).search(trials=3)
    assert evaluate.calls == 0 and len(run.trials) == 3
    budget = 0.5 * run.searcher.trace.macs
    assert trace(run.apply(), IMAGES[:2]).macs <= budget
    assert run.compare().loc["found"].macs <= budget
    with pytest.raises(InputError, match=r"^strategy Own chose a policy over the budget"):
        run.compare(Own(over=True))


@pytest.mark.parametrize("strategy", [Slotted(0.25), Named(0.25)], ids=["slots", "namedtuple"])
def test_settings_are_found_wherever_the_strategy_keeps_them(tmp_path, strategy):
    run = searcher(strategy=strategy, run_dir=tmp_path).search(trials=3)
    assert RunFolder(tmp_path).config()["strategy"]["width"] == 0.25
    assert len(run.trials) == 3
    with pytest.raises(InputError, match=r"strategy.width: 0.25 there, 0.5 here"):
        searcher(strategy=type(strategy)(), run_dir=tmp_path).search(trials=3)


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (Own, r"strategy must be an instance: write Own\(...\), not Own"),
        (lambda problem, trials, seed: None, r"search\(problem, trials, seed\), got function"),
        (42, "have a method search.*, got int"),
    ],
)
def test_what_is_no_strategy_is_refused_before_anything_is_scored(strategy, message):
    evaluate = Evaluate()
    with pytest.raises(InputError, match=message):
        searcher(evaluate, strategy=strategy)
    run = searcher(evaluate).search(trials=1)
    scored = evaluate.calls
    with pytest.raises(InputError, match=message):
        run.compare(strategy)
    assert evaluate.calls == scored == 2


@pytest.mark.parametrize("kind", [Own, Loose])
def test_a_strategy_that_counts_its_calls_goes_on_and_serves_another_searcher(tmp_path, kind):
    strategy = kind(width=0.25)
    one = searcher(strategy=strategy, run_dir=tmp_path / "a")
    policies = [one.search(trials=3).policy, one.search(trials=4).policy]
    assert policies[0] == policies[1] and strategy.calls == 2
    other = searcher(strategy=kind(width=0.25), run_dir=tmp_path / "a")
    assert other.search(trials=3).policy == policies[0]
    assert RunFolder(tmp_path / "a").config()["strategy"]["width"] == 0.25


def test_what_a_strategy_counts_is_no_setting_of_it(tmp_path):
    strategy = Own()
    searcher(strategy=strategy, run_dir=tmp_path).search(trials=3)
    searcher(strategy=strategy, run_dir=tmp_path).search(trials=3)
    assert RunFolder(tmp_path).config()["strategy"].keys() == {"class", "width"}


def test_numbers_of_numpy_are_counts_and_seeds(tmp_path):
    settings = {"rounding": np.int64(2), "max_failures": np.int64(2), "min_keep": np.float64(0.1)}
    strategy = Own(width=np.float32(0.25))
    one = searcher(strategy=strategy, run_dir=tmp_path, **settings)
    run = one.search(np.int64(3), seed=np.uint8(7))
    assert type(run.asked) is type(run.seed) is int
    config = RunFolder(tmp_path).config()
    assert (config["seed"], config["rounding"], config["strategy"]["width"]) == (7, 2, 0.25)
    assert searcher(strategy="random").search(np.int64(3)).policy == searcher().search(3).policy
