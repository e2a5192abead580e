import importlib.util
import json
import sys

import pytest
import torch
from torch import nn

from automl import Searcher
from automl.loggers import MLflow, TensorBoard, WandB
from automl.runs import RESULT
from automl.types import InputError


class Kept:
    def __init__(self):
        self.seen = []

    def on_search_start(self, info):
        self.seen.append(("start", info.name, dict(info.dense)["macs"] > 0))

    def on_trial(self, trial):
        self.seen.append(("trial", trial.index))

    def on_search_end(self, found):
        self.seen.append(("end", found))


class Broken(Kept):
    def on_trial(self, trial):
        super().on_trial(trial)
        raise OSError("the server is gone")


def searcher(**changes):
    torch.manual_seed(0)
    layers = [nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)]
    model = nn.Sequential(*layers)
    inputs = torch.randn(16, 8)
    return Searcher(
        model,
        inputs,
        lambda net: float(-net(inputs).detach().var()),
        budget={"macs": 0.5},
        strategy="random",
        rounding=1,
        **changes,
    )


def test_callbacks_see_the_start_every_trial_and_what_was_found():
    kept = Kept()
    run = searcher(callbacks=[kept]).search(trials=5)
    assert kept.seen[0] == ("start", "search", True)
    assert [one for one in kept.seen if one[0] == "trial"] == [("trial", i) for i in range(5)]
    assert kept.seen[-1][1].policy == run.policy


def test_a_callback_that_fails_is_left_out_and_the_search_goes_on():
    broken, kept = Broken(), Kept()
    with pytest.warns(RuntimeWarning, match="Broken failed in on_trial and is left out") as warned:
        run = searcher(callbacks=[broken, kept]).search(trials=4)
    assert len(warned) == 1 and len(run.trials) == 4
    assert broken.seen[1:] == [("trial", 0)]
    assert len(kept.seen) == 6


def test_a_search_that_is_cut_says_so():
    kept = Kept()

    def stop(trial):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        searcher(callbacks=[kept], on_trial=stop).search(trials=4)
    assert kept.seen[-1] == ("end", None)


def read_scalars(folder):
    loaded = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = loaded.EventAccumulator(str(folder))
    events.Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def test_tensorboard_reads_the_scalars_back(tmp_path):
    pytest.importorskip("tensorboard")
    run = searcher(callbacks=[TensorBoard()], run_dir=tmp_path / "run").search(trials=4)
    scalars = read_scalars(tmp_path / "run" / "tensorboard")
    scores = [scalars["score"][step] for step in range(4)]
    assert scores == pytest.approx(list(run.trials["score"]))
    assert scalars["best_score"][3] == pytest.approx(max(scores))
    assert all(0 < ratio <= 0.5 for ratio in scalars["cost_ratio/macs"].values())


@pytest.mark.filterwarnings("ignore")  # MLflow's own packages warn about each other
def test_mlflow_reads_the_metrics_back(tmp_path):
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    logger = MLflow(uri=uri)
    run = searcher(callbacks=[logger]).search(trials=3)
    client = MlflowClient(tracking_uri=uri)
    (logged,) = client.search_runs([client.get_experiment_by_name("prunepilot").experiment_id])
    history = client.get_metric_history(logged.info.run_id, "score")
    assert [m.value for m in history] == pytest.approx(list(run.trials["score"]))
    assert logged.info.status == "FINISHED" and logged.data.params["seed"] == "0"


def wandb_records(data):
    """The messages of an offline run's file: LevelDB's log format after seven bytes."""
    block, whole, at = 32768, b"", 7
    while at + 7 <= len(data):
        if block - at % block < 7:  # too little for a header: padding
            at += block - at % block
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def read_wandb(file):
    """(configuration, history rows, exit code) of an offline run."""
    from wandb.proto import wandb_internal_pb2

    config, history, code = {}, [], None
    for message in wandb_records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(message)
        for item in record.run.config.update:
            config[item.key] = json.loads(item.value_json)
        if record.HasField("history"):
            items = record.history.item
            row = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
            history.append(row)
        if record.HasField("exit"):
            code = record.exit.exit_code
    return config, history, code


@pytest.mark.filterwarnings("ignore")  # of the packages that it brings
def test_wandb_offline_writes_a_run_that_it_reads_back(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = searcher(callbacks=[WandB()], run_dir=tmp_path / "run").search(trials=3)
    (file,) = (tmp_path / "run").glob("wandb/offline-run-*/*.wandb")
    config, history, code = read_wandb(file)
    assert config["seed"] == 0 and code == 0
    assert [row["_step"] for row in history] == [0, 1, 2]
    assert [row["score"] for row in history] == pytest.approx(list(run.trials["score"]))
    assert all(0 < row["cost_ratio/macs"] <= 0.5 for row in history)


class Recorded:
    """Stands in for the package wandb and for a run of it."""

    def __init__(self):
        self.started, self.logged, self.ended = {}, [], None

    def init(self, **settings):
        self.started = settings
        return self

    def log(self, figures, step):
        self.logged.append((step, figures))

    def finish(self, exit_code):
        self.ended = exit_code


def test_wandb_is_told_the_settings_every_trial_and_the_end(tmp_path, monkeypatch):
    recorded = Recorded()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "wandb", recorded)
    logger = WandB(project="mine", mode="online")
    run = searcher(callbacks=[logger], run_dir=tmp_path / "run").search(trials=3)
    assert recorded.started["project"] == "mine" and recorded.started["mode"] == "online"
    assert recorded.started["dir"] == str(tmp_path / "run")
    assert recorded.started["config"]["seed"] == 0
    assert [step for step, _ in recorded.logged] == [0, 1, 2]
    scores = [figures["score"] for _, figures in recorded.logged]
    assert scores == pytest.approx(list(run.trials["score"]))
    assert recorded.ended == 0


@pytest.mark.parametrize(
    ("kind", "package"),
    [
        (TensorBoard, "prunepilot[tensorboard]"),
        (MLflow, "prunepilot[mlflow]"),
        (WandB, "prunepilot[wandb]"),
    ],
)
def test_what_is_not_installed_says_the_line_to_install_it(monkeypatch, kind, package):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError) as refused:
        kind()
    assert f"pip install '{package}'" in str(refused.value)


def test_modes_of_wandb_are_checked():
    with pytest.raises(InputError, match="offline or online"):
        WandB(mode="sometimes")


def test_the_command_writes_scalars_and_wall_time(tmp_path):
    pytest.importorskip("tensorboard")
    from automl.cli import main

    settings = "search model=digits strategy=random trials=2 latency_budget_s=0 logger=tensorboard"
    settings += " repair.refine=null"
    assert main([*settings.split(), f"run_dir={tmp_path / 'run'}", "device=cpu", "threads=1"]) == 0
    assert set(read_scalars(tmp_path / "run" / "tensorboard")["score"]) == {0, 1}
    result = json.loads((tmp_path / "run" / RESULT).read_text())
    assert result["wall_seconds"] >= 0.5 * result["search_seconds"] > 0
