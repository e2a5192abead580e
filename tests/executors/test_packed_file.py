import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from automl.executors import packed_file
from automl.executors.csc import Csc
from automl.executors.pell import Pell
from automl.types import InputError


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((33, 100)) * (rng.random((33, 100)) < 0.2)).astype(np.float32)
    packed_file.save({"fc1": Pell().pack(weight), "fc2": Csc().pack(weight)}, tmp_path / "packed")
    return tmp_path / "packed"


def change(folder, **values):
    file = folder / "packed.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_the_arrays_are_a_safetensors_file(folder):
    arrays = load_file(folder / "packed.safetensors")
    packed = packed_file.load(folder)
    assert {name.split("/")[0] for name in arrays} == {"fc1", "fc2"}
    assert np.array_equal(arrays["fc1/value"], packed["fc1"].value)


def test_streams_start_at_a_cache_line(folder):
    packed = packed_file.load(folder)["fc1"]
    assert packed.index.ctypes.data % 64 == packed.value.ctypes.data % 64 == 0


def test_writing_to_a_loaded_array_does_not_reach_the_file(folder):
    before = (folder / "packed.safetensors").read_bytes()
    packed_file.load(folder)["fc1"].value[:] = 7
    assert (folder / "packed.safetensors").read_bytes() == before


def test_a_wrong_checksum_is_refused_unless_asked_for(folder):
    file = folder / "packed.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match="checksum is wrong"):
        packed_file.load(folder)
    assert list(packed_file.load(folder, verify=False)) == ["fc1", "fc2"]


@pytest.mark.parametrize("content", [b"", b"\x01", b"\xff" * 40, b"\x08" + b"\0" * 7 + b"notjson!",
                                     (50_000).to_bytes(8, "little") + b"[" * 50_000])  # fmt: skip
def test_files_that_are_no_safetensors_are_refused(folder, content):
    (folder / "packed.safetensors").write_bytes(content)
    for verify in (True, False):
        with pytest.raises(InputError, match=r"packed\.safetensors"):
            packed_file.load(folder, verify=verify)


@pytest.mark.parametrize("name", ["packed.json", "packed.safetensors"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"{name} does not exist"):
        packed_file.load(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": "x"}'])
def test_descriptions_that_are_none_are_refused(folder, text):
    (folder / "packed.json").write_text(text)
    with pytest.raises(InputError, match="does not describe a packed model"):
        packed_file.load(folder)


def test_newer_versions_are_refused(folder):
    change(folder, version=packed_file.VERSION + 1)
    with pytest.raises(InputError, match="upgrade prunepilot"):
        packed_file.load(folder)


@pytest.mark.parametrize(
    "layers",
    [{"fc9": {"kind": "csc_float32", "settings": {}, "arrays": ["value"]}},
     {"fc1": {"kind": "nonsense", "settings": {}, "arrays": []}},
     {"fc1": {}}, {"fc1": None}],
)  # fmt: skip
def test_descriptions_that_do_not_fit_are_refused(folder, layers):
    change(folder, layers=layers)
    with pytest.raises(InputError, match="does not describe the arrays beside it"):
        packed_file.load(folder)
