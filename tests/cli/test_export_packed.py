import json

import pytest
import torch
from command import SEARCH
from torch import nn

from automl.cli import main
from automl.executors.autotune import PackedModule
from automl.export import packed
from automl.model_folder import load_pruned
from automl.types import InputError

SMALL = [part for part in SEARCH if not part.startswith(("trials", "strategy", "budget"))]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    masked = ["strategy=uniform", "granularity=unstructured", "budget.params=0.2", "trials=1"]
    assert main([*SMALL, *masked, f"run_dir={folder / 'run'}"]) == 0
    out = folder / "out"
    assert main(["export", str(folder / "run"), "--format", "packed", "--out", str(out)]) == 0
    return folder / "run", out


def test_packed_layers_are_loaded_again_and_compute_the_same(exported):
    run, out = exported
    network, x = packed.load_packed(out), torch.rand(5, 1, 8, 8)
    layers = [m for m in network.modules() if isinstance(m, PackedModule)]
    assert {one.packed.name for one in layers} == {"conv", "spmm"}
    with torch.no_grad():
        assert torch.allclose(network(x), load_pruned(run)(x), atol=1e-4)
    assert "packed.json" in (out / "MODEL_CARD.md").read_text()
    found = json.loads((out / "latency.json").read_text())
    assert found["input_shape"] == [1, 1, 8, 8] and found["threads"] == 1
    assert set(found["networks"]) == {"torch", "packed"}
    assert all(one["median_ms"] > 0 and one["rounds"] > 14 for one in found["networks"].values())
    assert "| packed |" in (out / "MODEL_CARD.md").read_text()
    made = packed.packing(out / packed.FILE)
    assert made.formats["conv"] == len(layers) - made.formats["spmm"]
    assert made.nbytes < 0.5 * sum(p.nbytes for p in load_pruned(run).parameters())


def test_layers_without_zeros_stay_dense():
    inputs, torch_layer = torch.rand(3, 16), nn.Linear(16, 8)
    assert packed._smallest(torch_layer) is None
    with torch.no_grad():
        torch_layer.weight[:, 3:] = 0
    way = packed._smallest(torch_layer)
    assert way is not None and torch.allclose(way(inputs), torch_layer(inputs), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (packed.REST, b"", "damaged"),
        (packed.CONVOLUTIONS, b"[", "cannot be read; export the run again"),
        (packed.FILE, None, "does not exist"),
    ],
)
def test_damaged_folders_say_so(exported, tmp_path, name, content, message):
    for file in exported[1].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        packed.load_packed(tmp_path)


def test_layers_of_another_network_are_refused(exported, tmp_path):
    for file in exported[1].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    description = json.loads((tmp_path / packed.FILE).read_text())
    layers = description["layers"]
    description["layers"] = {f"other.{name}": layer for name, layer in layers.items()}
    (tmp_path / packed.FILE).write_text(json.dumps(description))
    with pytest.raises(InputError):
        packed.load_packed(tmp_path)
