"""What holds for every data set, and every argument that is refused."""

import numpy as np
import pytest
import torch
import yaml

from automl.data import load_data, split_for
from automl.data.roots import candidate_roots, data_root
from automl.paths import conf_dir
from automl.types import InputError

CONFIGS = {
    path.stem: yaml.safe_load(path.read_text("utf-8"))
    for path in sorted((conf_dir() / "data").glob("*.yaml"))
}
GENERATED = ("languages", "next_token", "clicks", "shapes")  # tests/data/test_ids.py has theirs
ROOTS = {
    "digits": None,
    "cifar10": "parquet_root",
    "imagefolder": "picture_root",
}


def load(name, request, **options):
    root = ROOTS[name]
    options.setdefault("root", request.getfixturevalue(root) if root else None)
    if name == "cifar10":
        options.setdefault("validation_size", 10)
    if name == "imagefolder":
        options.setdefault("size", 16)
    return load_data(name, **options)


def keys(part):
    return {image.numpy().tobytes() for image in part.images}


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_every_yaml_holds_the_arguments_of_load_data(name, request):
    config = CONFIGS[name]
    assert list(config) == [
        "name",
        "root",
        "split",
        "validation_size",
        "seed",
        "limit",
        "size",
    ]
    assert config["name"] == name
    assert name in ROOTS or name in GENERATED
    if name != "cifar10":  # its yaml's validation_size is that of the real 50,000 images
        root = ROOTS.get(name)
        config = config | {"root": request.getfixturevalue(root) if root else None}
        load_data(config.pop("name"), **config)


@pytest.mark.parametrize("name", sorted(ROOTS))
@pytest.mark.parametrize("seed", [0, 7])
def test_the_three_parts_are_disjoint_and_whole(name, seed, request):
    data = load(name, request, seed=seed)
    train, validation, test = keys(data.train), keys(data.validation), keys(data.test)
    assert len(train) == len(data.train) > 0
    assert len(validation) == len(data.validation) > 0
    assert len(test) == len(data.test) > 0
    assert not train & validation
    assert not train & test
    assert not validation & test


@pytest.mark.parametrize("name", sorted(ROOTS))
def test_the_same_arguments_give_the_same_data(name, request):
    first, second = load(name, request), load(name, request)
    assert first.fingerprint == second.fingerprint
    assert torch.equal(first.validation.images, second.validation.images)
    assert first.split == "holdout"
    assert first.name == name


@pytest.mark.parametrize("name", ["cifar10", "imagefolder"])
def test_the_fingerprint_follows_split_seed_and_limit(name, request):
    options = [{}, {"seed": 1}, {"limit": 5}, {"validation_size": 9}]
    if name == "cifar10":
        options.append({"split": "test_halves"})
    prints = [load(name, request, **some).fingerprint for some in options]
    assert len(set(prints)) == len(prints)


def test_counts_and_seeds_of_numpy_give_the_same_data():
    plain = {"seed": 2, "limit": 20, "validation_size": 30}
    counted = {name: np.int64(value) for name, value in plain.items()}
    one, other = load_data("digits", **plain), load_data("digits", **counted)
    assert one.fingerprint == other.fingerprint


@pytest.mark.parametrize("name", sorted(ROOTS))
def test_a_limit_holds_for_every_part(name, request):
    data = load(name, request, limit=6)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [6, 6, 6]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "cifar"}, "no data set is called 'cifar'; did you mean 'cifar10'"),
        ({"name": "mnist"}, "no data set is called 'mnist'"),
        ({"split": "test-halves"}, "data.split must be .*did you mean 'test_halves'"),
        ({"split": None}, "data.split must be"),
        ({"validation_size": 0}, "data.validation_size must be a whole number of at least 1"),
        ({"validation_size": 2.5}, "data.validation_size must be a whole number"),
        ({"limit": "all"}, "data.limit must be a whole number"),
        ({"limit": True}, "data.limit must be a whole number"),
        ({"size": -3}, "data.size must be a whole number"),
        ({"seed": -1}, "data.seed must be a whole number of at least 0"),
        ({"seed": None}, "data.seed must be a whole number"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        load_data(**{"name": "digits", **options})


@pytest.mark.parametrize(
    ("split", "trained_on", "expected"),
    [
        ("auto", "all_train", "test_halves"),
        ("auto", "train", "holdout"),
        ("auto", None, "holdout"),
        ("holdout", "all_train", "holdout"),
        ("test_halves", None, "test_halves"),
    ],
)
def test_auto_splits_by_what_the_weights_have_seen(split, trained_on, expected):
    assert split_for(split, trained_on) == expected


def test_unknown_training_sets_are_refused():
    with pytest.raises(InputError, match=r"model\.trained_on must be train, all_train or null"):
        split_for("auto", "everything")


# Where data lies


def test_an_explicit_root_must_exist(tmp_path):
    with pytest.raises(InputError, match=r"data\.root .*nowhere is not a folder.*cifar10/train"):
        load_data("cifar10", root=tmp_path / "nowhere")


def test_the_variable_is_used_where_no_root_is_given(parquet_root, monkeypatch):
    monkeypatch.setenv("PRUNEPILOT_DATA", str(parquet_root))
    assert data_root(None, "x") == parquet_root
    assert len(load_data("cifar10", validation_size=10).train) == 50


def test_a_variable_that_names_nothing_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNEPILOT_DATA", str(tmp_path / "gone"))
    with pytest.raises(InputError, match=r"PRUNEPILOT_DATA names .*gone, which is not a folder"):
        load_data("cifar10")


def test_data_beside_the_project_is_found_last(tmp_path, monkeypatch):
    beside, chosen = tmp_path / "shared" / "data", tmp_path / "chosen"
    for folder in (beside, chosen, tmp_path / "project"):
        folder.mkdir(parents=True)
    monkeypatch.setattr("automl.data.roots._CHECKOUT", tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    assert candidate_roots() == [beside]
    monkeypatch.setenv("PRUNEPILOT_DATA", str(chosen))
    assert candidate_roots() == [chosen, beside]
    assert candidate_roots(tmp_path) == [tmp_path, chosen, beside]


def test_no_data_anywhere_says_how_to_name_it(tmp_path, monkeypatch):
    monkeypatch.setattr("automl.data.roots._CHECKOUT", tmp_path / "project")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"set data\.root=FOLDER or PRUNEPILOT_DATA"):
        load_data("cifar10")
