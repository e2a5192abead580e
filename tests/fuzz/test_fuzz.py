"""The short form of scripts/fuzz.py, that its checks can fail, and what it found once."""

import random
import sys
from pathlib import Path

import numpy as np
import pytest

from automl.commands.settings import instantiate
from automl.executors import formats, packed_file
from automl.executors.packed_check import MOST_WEIGHTS, check_geometry, check_layer
from automl.export.packed import CONVOLUTIONS
from automl.journal import Journal
from automl.runs import from_yaml
from automl.types import InputError

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import fuzz
import fuzz_inputs
from fuzz_kinds import KINDS, Kind

#: Files of each kind; whole networks take longest to read.
FILES = dict.fromkeys(KINDS, 40) | {"packed network": 15}
SPARSE = [name for name in formats.names() if name != "dense"]


@pytest.fixture(scope="module")
def watch():
    return fuzz.Watch()


@pytest.mark.parametrize(("name", "files"), FILES.items())
def test_damaged_files_are_taken_or_refused(name, files, watch):
    tally = fuzz.fuzz(name, files, 7, watch)
    assert tally.faults == []
    assert tally.accepted + tally.refused == files and tally.refused > 0


def _sample(folder: Path) -> None:
    (folder / "a.json").write_text('{"a": [1, 2]}')


def _hang(folder: Path) -> None:
    while True:
        pass


def _crash(folder: Path) -> None:
    import ctypes

    ctypes.string_at(0)


def _call(folder: Path) -> None:
    import os

    os.system("true")


def _outside(folder: Path) -> None:
    (folder.parent / "canary").write_text("x")


@pytest.mark.parametrize(
    ("does", "told"),
    [(_hang, "more than 1 s"), (_crash, "the process died"), (_call, "os.system"),
     (_outside, "open"), (lambda at: 1 / 0, "ZeroDivisionError")],
)  # fmt: skip
def test_what_must_not_happen_is_seen(does, told, watch, monkeypatch, tmp_path):
    """The first read, of the whole sample, is let pass."""
    monkeypatch.setattr(fuzz, "_SECONDS", 1)
    calls = []

    def read(folder):
        calls.append(folder)
        return len(calls) == 1 or does(folder)

    monkeypatch.setitem(KINDS, "bad", Kind(_sample, {"a.json": "json"}, read))
    tally = fuzz.fuzz("bad", 1, 0, watch)
    assert len(tally.faults) == 1 and told in tally.faults[0][1]


@pytest.mark.parametrize("form", [*fuzz_inputs.FORMS, "bytes"])
def test_inputs_can_be_made_again_from_their_number(form, tmp_path):
    samples = {"json": b'{"a": 1}', "jsonl": b'{"a": 1}\n', "yaml": b"a: 1\n", "csv": b"a,b\n1,2\n"}
    if form in ("zip", "pickle", "safetensors"):
        KINDS["checkpoint"].make(tmp_path)
        file = {"zip": "new.pt", "pickle": "old.pth", "safetensors": "weights.safetensors"}[form]
        samples[form] = (tmp_path / file).read_bytes()
    whole = samples.get(form, b"abc")
    made = [fuzz_inputs.mutate(whole, form, random.Random("3-5")) for _ in range(2)]
    assert made[0] == made[1]
    assert len({fuzz_inputs.mutate(whole, form, random.Random(i)) for i in range(30)}) > 5


# ---- packed layers


def weight(name: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    dense = rng.standard_normal((33, 68)).astype(np.float32)
    dense[:, np.arange(68) % 4 > 1] = 0
    return dense


@pytest.mark.parametrize("name", SPARSE)
def test_layers_that_were_packed_pass(name):
    form = formats.load(name)
    check_layer(form.pack(weight(name)), "fc")
    check_layer(form.pack(np.zeros((3, 8), np.float32)), "fc")


@pytest.mark.parametrize("name", SPARSE)
def test_no_place_can_be_changed(name):
    """Whatever array says where something is: kernels would follow it out of bounds."""
    layer = formats.load(name).pack(weight(name))
    for key, array in layer.arrays.items():
        if key in ("bias", "value", "scale", "offset", "codebook"):
            continue
        changed = array.copy()
        changed.reshape(-1)[-1] = np.iinfo(changed.dtype).max
        if np.array_equal(changed, array):
            continue
        object.__setattr__(layer, key, changed)
        with pytest.raises(InputError, match="packed layer fc is damaged"):
            check_layer(layer, "fc")
        object.__setattr__(layer, key, array)


@pytest.mark.parametrize("inputs", [-1, 0, MOST_WEIGHTS, 1 << 70, True, "8", None])
def test_impossible_sizes_are_refused_before_anything_is_made(inputs):
    layer = formats.load("csc").pack(weight("csc"))
    object.__setattr__(layer, "in_features", inputs)
    with pytest.raises(InputError, match="impossible size"):
        check_layer(layer, "fc")


def test_a_file_is_checked_unless_it_is_ones_own(tmp_path):
    layer = formats.load("csc").pack(weight("csc"))
    layer.stream[0] = 0xFFFFFFFF
    packed_file.save({"fc": layer}, tmp_path)
    with pytest.raises(InputError, match="packed layer fc is damaged"):
        packed_file.load(tmp_path)
    assert list(packed_file.load(tmp_path, verify=False)) == ["fc"]


@pytest.mark.parametrize(
    "change",
    [{"shape": [33, 68, 1, 2]}, {"shape": [33, 68]}, {"groups": 0}, {"groups": 2},
     {"stride": [0, 1]}, {"padding": [-1, 0]}, {"dilation": [1 << 40, 1]},
     {"stride": 1}, {"more": 1}],
)  # fmt: skip
def test_impossible_convolutions_are_refused(change):
    layer = formats.load("spmm").pack(weight("spmm"))
    good = {"shape": [33, 68, 1, 1], "stride": [1, 1], "padding": [0, 0], "dilation": [1, 1]}
    check_geometry(layer, {**good, "groups": 1}, "conv")
    with pytest.raises(InputError, match="geometry is impossible"):
        check_geometry(layer, {**good, "groups": 1, **change}, "conv")
    assert CONVOLUTIONS.endswith(".json")


# ---- what was found once


@pytest.mark.parametrize(
    "text",
    ["a: &a [*a]", "a: " + "[" * 5000,
     "\n".join(["a0: &a0 [x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40)])],
)  # fmt: skip
def test_settings_that_are_larger_than_they_look_are_refused(text):
    with pytest.raises(ValueError, match=r"more than 100000 settings|not YAML"):
        from_yaml(text)


@pytest.mark.parametrize("value", ['"\\ud800"', "[" * 5000, '{"a": 1' + "0" * 400 + "}"])
def test_journal_lines_that_no_table_holds_are_damaged(value, tmp_path):
    path = tmp_path / "trials.jsonl"
    path.write_text(f'{{"schema":1,"key":"a","metrics":{value}}}\n{{"schema":1,"key":"b"}}\n')
    with pytest.raises(InputError, match="line 1 is damaged"):
        Journal.read(path)


def test_a_section_that_names_no_class_is_refused():
    for section in ({"epochs": 1}, {"_target_": None, "epochs": 1}):
        with pytest.raises(InputError, match=r"finetune._target_ must name a class, got None"):
            instantiate(section, "finetune")


def test_a_key_that_is_no_text_is_refused():
    section = {"_target_": "automl.cost.energy_tables.EnergyTable", "multiply_pj": {None: 1.0}}
    with pytest.raises(InputError, match="energy: Incompatible key type"):
        instantiate(section, "energy")
