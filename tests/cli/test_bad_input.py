import json
import sys

import pytest
import safetensors.torch
import torch

from automl.commands.compose import compose, expand
from automl.models.digits import digits_cnn

QUICK = ("threads=1", "device=cpu", "repair=none")


def is_one_line(text: str) -> bool:
    return text.startswith("prunepilot") and text.count("\n") == 1 and text.endswith("\n")


def refuses(cli, tmp_path, *arguments, says):
    """The command ends with 2 and one line, and leaves the folder as it was."""
    before = sorted(tmp_path.rglob("*"))
    result = cli(*arguments)
    assert result.code == 2, result
    assert is_one_line(result.err), result.err
    assert says in result.err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["serach"], "did you mean 'search'?"),
        (["search", "--sed=1"], "unrecognized arguments: --sed=1"),
        (["search", "seed"], "settings are KEY=VALUE"),
        (["search", "modle=digits"], "no setting named 'modle'; did you mean 'model'?"),
        (["search", "strategy=randm"], "no strategy named 'randm'; did you mean 'random'?"),
        (["search", "model=digts"], "no model named 'digts'; did you mean 'digits'?"),
        (["search", "model=null"], "no model named 'None'"),
        (["search", "budget.mac=0.5"], "did you mean 'budget.macs'?"),
        (
            ["search", "strategy=random", "strategy.tau=2"],
            "strategy.tau is a setting of strategy=amc",
        ),
        (["prune", "ratio=0.5", "budget.macs=0.3"], "budget.macs is of searches, and nothing is"),
        (["prune", "ratio=0.5", "strategy=amc"], "strategy is of searches"),
        (["search", "strategy=random", "strategy.spred=2"], "did you mean 'strategy.spread'?"),
        (["search", "strategy=random,uniform"], "is a sweep"),
        (["search", "exclude=["], "cannot read 'exclude=['"),
        (["search", "trials=0"], "trials must be a whole number >= 1, got 0"),
        (["search", "trials=many"], "trials must be a whole number >= 1, got 'many'"),
        (["search", "seed=-1"], "seed must be a whole number >= 0, got -1"),
        (["search", f"seed={10**30}"], "seed must be at most 4294967295"),
        (
            ["search", "finetune=short", f"finetune.seed={10**30}"],
            "seed must be an integer >= 0 of 63 bits",
        ),
        (["search", "latency_budget_s=x"], "latency_budget_s must be a number >= 0, got 'x'"),
        (
            ["search", "strategy=random", f"strategy.spread={10**400}"],
            "strategy.spread must be a number below 1e308",
        ),
        (["search", f"exclude=[{-(10**400)}]"], "exclude[0] must be a number below 1e308"),
        (["search", "scoring=fast"], "scoring is a section: set its keys"),
        (["search", "depth=2"], "depth is a section: set its keys, as depth.KEY=VALUE"),
        (["search", "~strategy"], "strategy cannot be left out"),
        (["trace", "exclude={}"], "exclude"),
        (["search", "threads=0"], "threads must be a whole number >= 1, got 0"),
        (["search", f"threads={10**30}"], "threads must be at most 1024"),
        (["search", "run_dir=[1]"], "run_dir must be a path"),
        (["search", "engine=process", "engine.n=0"], "Processes.n must be a whole number >= 1"),
        (["sensitivity", "engine=process", "engine.n=0", *QUICK], "must be a whole number >= 1"),
        (["search", "device=gpu"], "device must be auto, cpu, cuda"),
        (["search", "dtype=int8"], "dtype must be float32"),
        (["search", "strategy=random", "strategy.spread=-1"], "Random.spread must be > 0"),
        (["search", "finetune.lr=0"], "FinetuneConfig.lr must be > 0"),
        (["search", "budget.macs=0"], "budget.macs must be a positive"),
        (["search", "budget.macs=half"], "budget.macs must be a number"),
        (["search", "budget=none"], "budget is empty"),
        (["search", "budget.macs=1e-9"], "budget"),
        (["search", "budget.macs={fraction:0.5,absolute:9}"], "both absolute and relative"),
        (["search", "granularity.rounding=0"], "granularity.rounding must be a whole number >= 1"),
        (["search", "granularity.min_keep=2"], "min_keep must be in [0, 1]"),
        (["search", "granularity.min_keep=x"], "min_keep must be in [0, 1], got 'x'"),
        (["search", "scoring.score=acc"], "score must be one of top1, loss, kl"),
        (
            ["search", "scoring.batch_size=0"],
            "scoring.batch_size must be null, auto or a whole number >= 1",
        ),
        (["search", "scoring.racing=yes please"], "scoring.racing must be true or false"),
        (["search", "scoring.racing=true", "scoring.racing_delta=1"], "scoring.racing_delta must"),
        (["search", "scoring.racing=true", "scoring.racing_round=0"], "scoring.racing_round must"),
        (["search", "exclude=[nothing*]"], "exclude pattern 'nothing*' matches no layer"),
        (["search", "exclude=linear"], "exclude must be a list of patterns"),
        (["search", "trace_deadline_s=soon"], "trace_deadline_s must be a number"),
        (["search", "model=plain20", "data=digits"], "has images of shape (1, 8, 8)"),
        (["search", "model=resnet20", "data=digits", "model.checkpoint=null"], "data.split"),
        (["search", "data=imagefolder", "data.root=absent"], "data.root absent is not a folder"),
        (["search", "data.split=half"], "data.split must be"),
        (["search", "model.checkpoint=absent.pt"], "absent.pt"),
        (["search", "model=no.such.factory"], "there is no module no"),
        (["search", "model=automl.models.digits.digits_cn"], "digits_cn"),
        (["search", "model.kwargs.widht=3"], "does not take model.kwargs"),
        (["search", "model.kwargs=3"], "model.kwargs is a section"),
        (["search", "model.input_shape=3"], "model.input_shape must be positive whole numbers"),
        (
            ["search", "strategy=amc", "strategy.episodes_per_round=none"],
            "strategy.episodes_per_round must be a whole number, got 'none'",
        ),
        (["sensitivity", "--budgets", "half"], "numbers such as 0.5,0.25, got 'half'"),
        (["resume", "absent"], "absent holds no run"),
        (["prune", "--out", "slim"], "prune takes ratio=0.5"),
        (["prune", "ratio=.5", "--policy", "p", "--out", "slim"], "or --policy FILE, not both"),
        (["prune", "ratio=1", "--out", "slim"], "ratio must be in [0, 1)"),
        (["prune", "ratio=-0.1", "--out", "slim"], "ratio must be in [0, 1)"),
        (["prune", "ratio=half", "--out", "slim"], "to remove, got 'half'"),
        (["prune", "ratio={linear:2}", "--out", "slim"], "to remove, got 2"),
        (["prune", "ratio={}", "--out", "slim"], "ratio={} names nothing to prune"),
        (["prune", "--policy", "absent.json", "--out", "slim"], "cannot read policy"),
        (["trace", "data.root=3"], "data.root must be a path"),
        (["trace", "model.checkpoint=3"], "model.checkpoint must be a path"),
        (["trace", "model.input_shape=[3,8,8]"], "fails on the example inputs"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_code_2(cli, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    verb, *rest = arguments
    quick = QUICK if verb == "search" else ()
    refuses(cli, tmp_path, verb, *quick, *rest, says=says)


def test_a_folder_with_another_run_is_not_touched(cli, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("seed: 1\n")
    refuses(cli, tmp_path, "search", *QUICK, f"run_dir={run}", says="holds another run")
    assert (run / "config.yaml").read_text() == "seed: 1\n"


def test_a_folder_with_other_files_is_not_touched(cli, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    refuses(cli, tmp_path, "search", *QUICK, f"run_dir={tmp_path}", says="holds files that are no")
    there = f"{tmp_path} is there already"
    refuses(cli, tmp_path, "prune", "ratio=0.5", "--out", tmp_path, says=f"--out {there}")
    refuses(cli, tmp_path, "prune", "ratio=0.5", f"run_dir={tmp_path}", says=f"run_dir {there}")


def test_a_run_whose_settings_are_unreadable_is_refused(cli, tmp_path):
    (tmp_path / "config.yaml").write_text("seed: [")
    refuses(cli, tmp_path, "resume", tmp_path, says="config.yaml: not YAML")


def test_a_folder_that_cannot_be_made_is_refused(cli, tmp_path):
    (tmp_path / "file").write_text("")
    inside = tmp_path / "file" / "run"
    refuses(cli, tmp_path, "search", *QUICK, f"run_dir={inside}", says="cannot be written")
    for run_dir in (inside, inside.parent):
        sweep = ("search", "-m", *QUICK, "seed=0,1", f"run_dir={run_dir}")
        refuses(cli, tmp_path, *sweep, says="cannot be written")


def test_a_name_too_long_for_the_disk_is_refused(cli, tmp_path):
    name = tmp_path / ("a" * 300)
    refuses(cli, tmp_path, "search", *QUICK, f"run_dir={name}", says="File name too long")


def test_an_output_below_a_file_is_refused(cli, tmp_path):
    (tmp_path / "file").write_text("")
    below = tmp_path / "file" / "slim"
    arguments = ("prune", "ratio=0.5", "--out", below, "repair=none")
    refuses(cli, tmp_path, *arguments, says="cannot be made")


def test_a_corrupt_checkpoint_is_refused(cli, tmp_path):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not weights")
    refuses(cli, tmp_path, "trace", f"model.checkpoint={broken}", says="broken.safetensors")


def test_a_network_whose_outputs_are_nan_is_refused(cli, tmp_path):
    network = digits_cnn()
    for parameter in network.parameters():
        torch.nn.init.constant_(parameter, float("nan"))
    weights = tmp_path / "nan.safetensors"
    weights.write_bytes(safetensors.torch.save(network.state_dict()))
    arguments = ("search", *QUICK, f"model.checkpoint={weights}", f"run_dir={tmp_path / 'a'}")
    refuses(cli, tmp_path, *arguments, says="NaN")


def test_a_policy_of_another_network_is_refused(cli, tmp_path):
    policy = {
        "schema": "prunepilot/policy",
        "version": 1,
        "model_hash": "",
        "decisions": [
            {"target": "elsewhere", "granularity": "channel", "ratio": 0.5, "kept": 4, "units": 8,
             "indices": None}
        ],
    }  # fmt: skip
    (tmp_path / "policy.json").write_text(json.dumps(policy))
    arguments = ("prune", "--policy", tmp_path / "policy.json", "--out", tmp_path / "slim")
    refuses(cli, tmp_path, *arguments, "repair=none", says="target 'elsewhere'")


def test_comparing_without_a_finished_run_says_so(cli, tmp_path):
    run = tmp_path / "cell"
    run.mkdir()
    (run / "config.yaml").write_text("strategy: {}\n")
    result = cli("compare", tmp_path)
    assert result.code == 2 and is_one_line(result.err)
    assert "no run has finished" in result.err
    assert "unfinished (prunepilot resume" in result.err


@pytest.mark.parametrize("text", ["{", "[" * 50_000, "[]"])
def test_a_damaged_failure_is_told(cli, tmp_path, text):
    run = tmp_path / "cell"
    run.mkdir()
    (run / "config.yaml").write_text("strategy: {}\n")
    (run / "failed.json").write_text(text)
    result = cli("compare", tmp_path)
    assert result.code == 2 and is_one_line(result.err)
    assert "failed (its failed.json is damaged)" in result.err


@pytest.mark.parametrize(
    "value", ["~/a", "runs/größe", "runs/a=b", "runs/a(1)", "runs/it's mine", "a b/c"]
)
def test_paths_need_no_quotes_of_hydra(value, tmp_path):
    assert compose([f"run_dir={value}"])["run_dir"] == value
    assert compose([f"run_dir={tmp_path / value}"])["run_dir"] == str(tmp_path / value)
    assert expand([f"run_dir={value}", "seed=0,1"])[1][1] == "seed=1"


@pytest.mark.parametrize(
    ("content", "name", "says"),
    [
        ("def f(:", "f", "line 1: invalid syntax"),
        ("raise SystemExit(3)", "f", "ends the program (exit code 3) when it is imported"),
        ("from torch import nn; f = nn.Linear(2, 2)", "f", "is a network: name a function"),
    ],
)
def test_models_of_ones_own_that_are_none(cli, tmp_path, monkeypatch, content, name, says):
    (tmp_path / "own_model.py").write_text(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    sys.modules.pop("own_model", None)
    result = cli("trace", f"model=own_model.{name}", "model.input_shape=[1,8,8]")
    assert result.code == 2 and is_one_line(result.err) and says in result.err
    result = cli("trace", "model=own_model.py", "model.input_shape=[1,8,8]")
    assert result.code == 2 and "name a function in it, as model=own_model.make" in result.err


def test_a_sweep_and_an_analysis_are_no_run_and_it_says_what_they_are(cli, tmp_path):
    (tmp_path / "sweep.json").write_text("{}")
    refuses(cli, tmp_path, "resume", tmp_path, says="is a sweep: name one of the runs in it")
    run = tmp_path / "an analysis"
    settings = ("model=digits", *QUICK, "repair.calibration_images=16", "trials=4")
    assert cli("sensitivity", *settings, f"run_dir={run}").code == 0
    says = "is a sensitivity analysis, which ends with policies, not with a network"
    refuses(cli, tmp_path, "export", run, "--out", tmp_path / "out", says=says)
    refuses(cli, tmp_path, "compare", run, says="holds no networks: sensitivity analyses")


def test_commands_to_copy_are_quoted_and_name_the_setting_that_was_given(cli, tmp_path):
    run = tmp_path / "a run"
    search = ("search", *QUICK, "strategy=random", "trials=2", "latency_budget_s=0")
    assert cli(*search, f"run_dir={run}").code == 0
    refuses(
        cli, tmp_path, *search, "seed=1", f"run_dir={run}",
        says=f"(seed: 0 there, 1 here); choose another run_dir, or go on with that one: "
        f"prunepilot resume '{run}'",
    )  # fmt: skip
    other = [word.replace("random", "uniform") for word in search]
    refuses(cli, tmp_path, *other, f"run_dir={run}", says="(strategy: Random there, Uniform here)")
    again = cli("resume", run)
    assert again.code == 0 and f"finished before: {run}" in again.out and "wrote" not in again.out
    assert "latency" not in again.out.split("\n", 12)[-1]
