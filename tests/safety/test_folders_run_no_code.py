"""Nothing in a folder from outside is executed: a payload's file never appears."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from automl.cli import main
from automl.commands.compose import compose
from automl.executors.latency_replay import find_function
from automl.graph.program import find_setting, find_target
from automl.graph.trace import trace
from automl.model_folder import load_pruned, save_pruned
from automl.models import load_model
from automl.plan import IndexPlan
from automl.pruning.pruner import Pruner
from automl.runs import from_yaml, to_yaml
from automl.trust import SHORTER, check_config, check_factory
from automl.types import InputError


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A small network in the form of a graph, as a folder."""
    dense = load_model("automl.models.digits.digits_cnn", input_shape=(1, 8, 8), seed=1)
    traced = trace(dense.model, dense.example_inputs)
    pruner = Pruner(traced, reconstruct=None)
    policy = pruner.policy(np.maximum(traced.plan.dense // 2, 1))
    folder = tmp_path_factory.mktemp("made") / "slim"
    folder.mkdir()
    network = pruner.prune(policy)
    save_pruned(folder, network, dense=dense, plan=traced.plan, policy=policy)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("finished") / "run"
    settings = ["model=digits", "budget.macs=0.6", "strategy=uniform", "trials=1", "repair=none"]
    assert main(["search", *settings, f"run_dir={run}"]) == 0
    return run


@pytest.fixture
def folder(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "slim"))


@pytest.fixture
def sentinel(tmp_path) -> Path:
    return tmp_path / "sentinel"


def change(file: Path, edit) -> None:
    document = json.loads(file.read_text())
    edit(document)
    file.write_text(json.dumps(document))


def payload(sentinel: Path) -> str:
    return f"__import__('pathlib').Path({str(sentinel)!r}).touch()"


def rename_input(plan, code) -> None:
    plan["program"][0]["target"] = f"x={code}"
    plan["module_form"] = False  # so that the source is written


def rename_module(plan, code) -> None:
    call = next(one for one in plan["program"] if one["op"] == "call_module")
    call["target"] = f'a") or {code} or ("'


def rename_keyword(plan, code) -> None:
    call = next(one for one in plan["program"] if one["op"] == "call_function")
    call["kwargs"] = {f"a={code}, b": 1}


def rename_result(plan, code) -> None:
    plan["program"][1]["name"] = f"a = {code}"


@pytest.mark.parametrize("edit", [rename_input, rename_module, rename_keyword, rename_result])
def test_a_plan_writes_no_source(folder, sentinel, edit):
    change(folder / "plan.json", lambda plan: edit(plan, payload(sentinel)))
    with pytest.raises(InputError, match="the plan has an impossible"):
        load_pruned(folder)
    assert not sentinel.exists()


@pytest.mark.parametrize(
    "name",
    ["torch:load", "operator:call", "operator:methodcaller", "_operator:attrgetter", "os:system",
     "torch:hub", "torch:compile", "math:factorial", "aten.from_file.default", "aten.save.default",
     "load_library", "aten.__class__.mro", "c10d.send.default", "aten.add", "", "builtins:eval"],
)  # fmt: skip
def test_a_plan_calls_operators_alone(name):
    with pytest.raises(InputError, match="not allowed in a plan"):
        find_target(name)


@pytest.mark.parametrize("name", ["aten.add.Tensor", "aten.__and__.Tensor", "_operator:floordiv"])
def test_operators_of_the_tracer_are_found(name):
    assert callable(find_target(name))


@pytest.mark.parametrize("name", ["load", "nn", "ops", "__dict__", "Tensor"])
def test_settings_are_dtypes_layouts_and_memory_formats(name):
    assert str(find_setting("channels_last")) == "torch.channels_last"
    with pytest.raises(InputError, match="not allowed"):
        find_setting(name)


@pytest.mark.parametrize("name", ["torch.load", "torch.from_file", "torch.compile", "torch.save"])
def test_a_latency_table_names_functions_of_tensors_alone(name):
    assert callable(find_function("torch.matmul"))
    with pytest.raises(InputError, match="no torch function"):
        find_function(name)


def test_a_plan_makes_no_giant_axis(folder):
    plan = folder / "plan.json"
    for runs in (
        [[0, 0, 1 << 50]],
        [[0, 0, -1]],
        [[1 << 60, 0, 1]],
        [[0, 0, 1]] * 3 + [["a", 0, 1]],
    ):
        change(plan, lambda document, runs=runs: document["axes"].__setitem__(0, [runs, runs]))
        with pytest.raises(InputError, match=r"axis|axes"):
            IndexPlan.from_json(plan.read_text())


def test_nesting_without_end_is_told():
    text = '{"schema": ' + "[" * 100_000 + "]" * 100_000 + "}"
    with pytest.raises(InputError, match="not a readable plan"):
        IndexPlan.from_json(text)


def test_a_folder_calls_no_factory_of_its_own_choice(folder, sentinel):
    rebuild = {"factory": "os:system", "kwargs": {"command": f"touch {sentinel}"}, "trust": ["os"]}
    change(folder / "rebuild.json", lambda document: document.update(rebuild))
    with pytest.raises(InputError, match=r"asks to call 'os:system'.*--trust os "):
        load_pruned(folder)
    assert main(["bench", str(folder)]) == 2
    assert not sentinel.exists()


def test_a_trusted_package_is_called(folder, tmp_path, monkeypatch):
    source = "from automl.models.digits import digits_cnn as net\n"
    (tmp_path / "nets_of_mine.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    change(folder / "rebuild.json", lambda document: document.update(factory="nets_of_mine.net"))
    with pytest.raises(InputError, match="--trust nets_of_mine "):
        load_pruned(folder)
    with pytest.raises(InputError, match="--trust nets_of_mine "):
        load_pruned(folder, trust=("nets_of", "nets_of_mine.other"))
    assert load_pruned(folder, trust=("nets_of_mine",)) is not None
    assert load_pruned(folder, trust="nets_of_mine") is not None


@pytest.mark.parametrize(
    ("factory", "kwargs"),
    [("timm:resnet18", {"checkpoint_path": "/x"}), ("timm:resnet18", {"pretrained": True}),
     ("timm:hf_hub:someone/net", {}), ("hf:./here", {}),
        ("hf:timm_wrapper", {"architecture": "resnet18", "head": "ImageClassification"}),
        ("hf:resnet", {"layer_type": "hf-hub:someone/net"}), ("hf:resnet", {"names": ["a/b"]}),
        ("timm:resnet18", {"pretrained": False, "x": {"pretrained": True}}),
     ("torchvision:resnet18/..", {}),
     ("torchvision:resnet18", {"weights": "x.pt"}), ("automl.models.load.load_model", {}),
     ("timm:resnet18", {"a": [{"checkpoint_path": "x"}]}), (None, {}), ("x", None)],
)  # fmt: skip
def test_factories_that_load_files_are_refused(factory, kwargs):
    with pytest.raises(InputError):
        check_factory(factory, kwargs, (), "rebuild.json")


def test_networks_of_libraries_are_known():
    check_factory("torchvision:resnet18", {"weights": "DEFAULT"}, (), "rebuild.json")
    check_factory("timm:vit_tiny_patch16_224", {"pretrained": False}, (), "rebuild.json")


def test_a_shorter_network_is_one_of_a_known_factory():
    inner = {"factory": "automl.models.gpt.next_token_tiny", "kwargs": {}, "blocks": "blocks"}
    check_factory(SHORTER, {**inner, "removed": [3]}, (), "rebuild.json")
    for bad in ({**inner, "factory": "os.system"}, {**inner, "factory": SHORTER}, {}):
        with pytest.raises(InputError, match=r"rebuild\.json"):
            check_factory(SHORTER, bad, (), "rebuild.json")


def test_settings_of_a_folder_call_no_class_of_their_own_choice(
    finished, tmp_path, sentinel, capsys
):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    assert main(["resume", str(run)]) == 0
    assert main(["export", str(run), "--out", str(tmp_path / "out")]) == 0
    text = (run / "config.yaml").read_text()
    (run / "result.json").unlink()
    call = {"_target_": "os.system", "_args_": [f"touch {sentinel}"]}
    for edit in (
        {"strategy": call}, {"strategy": {**call, "_target_": "automl.paths.os.system"}},
        {"engine": {"_target_": "automl.engines.serial.Serial", "a": [{"b": call}]}},
        {"strategy": "${oc.create:'{_target_: os.system}'}"},
        {"model": {"factory": "os:system", "kwargs": {"command": f"touch {sentinel}"}}},
        {"engine": {"_target_": "automl.engines.ray.Ray", "address": "example.org:1"}},
        {"logger": {"_target_": "automl.loggers.MLflow", "uri": "http://example.org"}},
        {"logger": {"_target_": "automl.loggers.TensorBoard", "folder": str(sentinel)}},
        {"logger": {"_target_": "automl.loggers.WandB", "mode": "online"}},
        {"strategy": {"_target_": "automl.strategies.amc.AMC", "tensorboard": str(sentinel)}},
    ):  # fmt: skip
        (run / "config.yaml").write_text(to_yaml({**from_yaml(text), **edit, "trust": ["os"]}))
        assert main(["resume", str(run)]) == 2
        told = capsys.readouterr().err
        assert "asks to" in told or "settings of runs are resolved" in told
        assert not sentinel.exists()


@pytest.mark.parametrize("trust", ["", "trust=[o]", "trust=[osmosis]"])
def test_a_typed_class_that_nobody_vouched_for_is_not_called(sentinel, capsys, trust):
    call = ["strategy._target_=os.system", f"+strategy._args_=['touch {sentinel}']"]
    assert main(["search", *call, *filter(None, [trust])]) == 2
    assert "_target_=os.system is no class of PrunePilot" in capsys.readouterr().err
    assert not sentinel.exists()


def test_a_typed_class_of_a_trusted_package_is_composed():
    typed = ["strategy._target_=mine.strategies.Best", "trust=[mine]"]
    config = compose(typed)
    assert config["strategy"]["_target_"] == "mine.strategies.Best"
    assert "trust" not in config  # what a folder says of it is ignored
    with pytest.raises(InputError, match="trust must be a list"):
        compose(["trust=mine"])


def test_trust_covers_what_is_below_it():
    config = yaml.safe_load("strategy: {_target_: mine.strategies.Best}")
    with pytest.raises(InputError, match=r"--trust mine.strategies "):
        check_config(config, ("min",), "config.yaml")
    check_config({**config, "model": {"factory": "mine.net", "kwargs": {}}}, ("mine",), "x")
