import pytest
import torch

from automl.training.checkpoint import load_checkpoint, save_checkpoint
from automl.types import InputError

CPU = torch.device("cpu")
IDENTITY = {"lr": 0.1, "epochs": 3, "network": "a" * 64, "teacher": None}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "finetune.pt"
    save_checkpoint(path, IDENTITY, {"model": {"w": torch.arange(3.0)}, "history": [{"epoch": 1}]})
    return path


def test_a_checkpoint_comes_back_as_it_was_and_alone_in_its_folder(path):
    state = load_checkpoint(path, IDENTITY, CPU)
    assert torch.equal(state["model"]["w"], torch.arange(3.0))
    assert state["history"] == [{"epoch": 1}]
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_breaks_leaves_the_one_before(path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("automl.paths.os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, IDENTITY, {"model": {}})
    assert "w" in load_checkpoint(path, IDENTITY, CPU)["model"]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "change, told",
    [
        ({"lr": 0.05}, r"made with lr=0\.1, not 0\.05"),
        ({"network": "b" * 64}, "made with another network;"),
        ({"teacher": "c" * 64}, r"made with teacher=None, not cccccccc\.\.\.;"),
    ],
)
def test_another_runs_checkpoint_is_refused_by_one_line_that_says_why(path, change, told):
    with pytest.raises(InputError, match=told) as caught:
        load_checkpoint(path, {**IDENTITY, **change}, CPU)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value) and "delete it to start over" in str(caught.value)


def test_a_field_that_one_side_lacks_is_a_difference(path):
    with pytest.raises(InputError, match="made with momentum=None, not 1"):
        load_checkpoint(path, {**IDENTITY, "momentum": 1}, CPU)


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", b"PK\x03\x04 torn"])
def test_a_damaged_file_is_refused_in_one_line(path, content):
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read") as caught:
        load_checkpoint(path, IDENTITY, CPU)
    assert "\n" not in str(caught.value)


def test_a_torn_file_is_refused(path):
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="cannot be read"):
        load_checkpoint(path, IDENTITY, CPU)


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {}}])
def test_other_files_of_torch_are_refused(path, content):
    torch.save(content, path)
    with pytest.raises(InputError, match="is no fine-tuning checkpoint"):
        load_checkpoint(path, IDENTITY, CPU)


@pytest.mark.parametrize("change", [{"state": None}, {"identity": ["seed"]}])
@pytest.mark.parametrize("removed", [True, False])
def test_a_checkpoint_without_its_parts_is_refused(path, change, removed):
    whole = torch.load(path, weights_only=True)
    ((name, _),) = change.items()
    if removed:
        del whole[name]
    torch.save({**whole, **({} if removed else change)}, path)
    with pytest.raises(InputError, match="is damaged"):
        load_checkpoint(path, IDENTITY, CPU)


def test_pickles_that_run_code_are_not_loaded(path):
    torch.save(pytest.raises, path)
    with pytest.raises(InputError, match="cannot be read"):
        load_checkpoint(path, IDENTITY, CPU)
