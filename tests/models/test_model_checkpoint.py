"""Checkpoints: what loads, what is refused and how, and that nothing in a file is ever run."""

import argparse
import pickle

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from automl.models import resolve_checkpoint
from automl.models.checkpoint import load_checkpoint, read_state_dict
from automl.types import InputError


def small(out=3):
    torch.manual_seed(out)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, out))


def assert_equal_weights(a, b):
    for (name, x), (_, y) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
        assert torch.equal(x, y), name


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "best_prec1": 91.7, "epoch": 3},
        lambda state: {"model": state, "optimizer": {"lr": 0.1}},
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {"state_dict": {f"module.{name}": v for name, v in state.items()}},
        lambda state: {f"_orig_mod.{name}": value for name, value in state.items()},
        lambda state: {f"_orig_mod.module.{name}": value for name, value in state.items()},
    ],
    ids=["bare", "state_dict", "model", "module.", "both", "compiled", "compiled in parallel"],
)
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th"])
def test_wrapped_and_prefixed_state_dicts_load(tmp_path, wrap, suffix):
    model, other = small(), small()
    nn.init.ones_(model[0].weight)
    torch.save(wrap(model.state_dict()), tmp_path / f"x{suffix}")
    load_checkpoint(other, tmp_path / f"x{suffix}")
    assert_equal_weights(model, other)


class Extra(nn.Linear):
    """Keeps more than tensors in its state."""

    def __init__(self):
        super().__init__(2, 2)

    def get_extra_state(self):
        return {"version": 1}

    def set_extra_state(self, state):
        pass


@pytest.mark.parametrize("network", [Extra, lambda: nn.Sequential(Extra(), nn.ReLU())])
def test_what_modules_keep_beside_tensors_is_left_out(tmp_path, network):
    model, other = network(), network()
    torch.save(model.state_dict(), tmp_path / "x.pt")
    load_checkpoint(other, tmp_path / "x.pt")
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_safetensors_load(tmp_path):
    model, other = small(), small()
    nn.init.ones_(model[0].weight)
    save_file(model.state_dict(), tmp_path / "x.safetensors")
    load_checkpoint(other, tmp_path / "x.safetensors")
    assert_equal_weights(model, other)


def test_batch_counters_may_be_missing(tmp_path):
    model, other = small(), small()
    state = model.state_dict()
    del state["1.num_batches_tracked"]
    torch.save(dict(state), tmp_path / "x.pt")
    load_checkpoint(other, tmp_path / "x.pt")
    assert_equal_weights(model, other)


def test_a_model_whose_own_names_start_with_module_keeps_them(tmp_path):
    model = nn.Module()
    model.module = nn.Linear(2, 2)
    model.head = nn.Linear(2, 2)
    torch.save(model.state_dict(), tmp_path / "x.pt")
    load_checkpoint(model, tmp_path / "x.pt")


class Bomb:
    """Runs when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_pickles_that_need_code_are_refused_and_not_run(tmp_path):
    torch.save({"state_dict": small().state_dict(), "x": Bomb(tmp_path / "ran")}, tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"would run code.*torch\.save\(torch\.load\("):
        read_state_dict(tmp_path / "x.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_whole_modules_are_refused_with_how_to_convert(tmp_path, zipped):
    torch.save(small(), tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"more than tensors \(torch\.nn.*state_dict\(\)"):
        read_state_dict(tmp_path / "x.pth")


def test_arguments_beside_the_weights_are_named(tmp_path):
    content = {"state_dict": small().state_dict(), "args": argparse.Namespace(lr=0.1)}
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"argparse\.Namespace"):
        read_state_dict(tmp_path / "x.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.95])
def test_truncated_files_are_refused_in_one_line(tmp_path, suffix, keep):
    path = tmp_path / f"x{suffix}"
    if suffix == ".pt":
        torch.save(small().state_dict(), path)
    else:
        save_file(small().state_dict(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: keep if isinstance(keep, int) else int(len(whole) * keep)])
    with pytest.raises(InputError, match="cannot be read") as caught:
        read_state_dict(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"<!DOCTYPE html>" * 20, pickle.dumps({"a": 1}), b"\x00" * 99])
def test_other_files_are_refused_in_one_line(tmp_path, content):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.pt cannot be read"):
        read_state_dict(tmp_path / "x.pt")


def test_truncated_old_style_files_are_refused(tmp_path):
    torch.save(small().state_dict(), tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(whole[:-5])
    with pytest.raises(InputError, match="cannot be read"):
        read_state_dict(tmp_path / "x.pt")


@pytest.mark.parametrize("content", [{"epoch": 3}, {}, torch.zeros(3), {"state_dict": {"a": 1}}])
def test_files_without_a_state_dict_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(InputError, match="must hold a state dict"):
        read_state_dict(tmp_path / "x.pt")


def test_missing_files_and_unknown_endings_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"nope\.pt is not there"):
        read_state_dict(tmp_path / "nope.pt")
    (tmp_path / "x.onnx").touch()
    with pytest.raises(InputError, match=r"must end in \.safetensors.*'\.onnx'"):
        read_state_dict(tmp_path / "x.onnx")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("0.bias"), "it lacks '0.bias'"),
        (lambda state: state.update({"4.weight": torch.zeros(1)}), "the model has no '4.weight'"),
        (
            lambda state: state.update({"3.weight": torch.zeros(5, 8)}),
            r"'3.weight' is \[5, 8\] in the file, \[3, 8\] in the model",
        ),
    ],
)
def test_the_first_mismatch_is_named_and_nothing_is_loaded(tmp_path, change, message):
    model, state = small(), dict(small(3).state_dict())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state["0.weight"] = torch.zeros_like(state["0.weight"])
    change(state)
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(InputError, match=message):
        load_checkpoint(model, tmp_path / "x.pt")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


# Where checkpoints lie


def test_package_paths_are_shipped_weights():
    path = resolve_checkpoint("package:weights/digits.safetensors")
    assert path is not None
    assert path.is_file()
    with pytest.raises(InputError, match="package:weights/none"):
        resolve_checkpoint("package:weights/none.safetensors")


def test_data_paths_are_found_below_the_root_or_beside_it(tmp_path, monkeypatch):
    monkeypatch.delenv("PRUNEPILOT_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cifar10").mkdir()
    weights = tmp_path / "checkpoints" / "x.th"
    weights.parent.mkdir()
    weights.touch()
    assert resolve_checkpoint("data:checkpoints/x.th", tmp_path) == weights
    assert resolve_checkpoint("data:checkpoints/x.th", tmp_path / "cifar10") == weights
    monkeypatch.setenv("PRUNEPILOT_DATA", str(tmp_path))
    assert resolve_checkpoint("data:checkpoints/x.th") == weights
    with pytest.raises(InputError, match=r"looked for .*nope\.th.*data\.root"):
        resolve_checkpoint("data:nope.th", tmp_path)


def test_other_paths_stay_and_none_is_none(tmp_path):
    assert resolve_checkpoint(None) is None
    assert resolve_checkpoint(tmp_path / "x.pt") == tmp_path / "x.pt"


def test_tensors_with_two_names_are_found_under_one(tmp_path):
    def tied():
        network = nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 7, bias=False))
        network[1].weight = network[0].weight
        return network

    source, target = tied(), tied()
    save_model(source, str(tmp_path / "tied.safetensors"))
    load_checkpoint(target, tmp_path / "tied.safetensors")
    assert torch.equal(target[1].weight, source[0].weight)
    assert target[0].weight is target[1].weight
    with pytest.raises(InputError, match=r"lacks '\d.weight'"):
        untied = nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 7, bias=False))
        load_checkpoint(untied, tmp_path / "tied.safetensors")
