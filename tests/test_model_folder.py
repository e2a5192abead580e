import json

import numpy as np
import pytest
import torch

from automl.graph.trace import trace
from automl.model_folder import load_pruned, save_pruned
from automl.models import LoadedModel, load_model
from automl.policy import Policy
from automl.pruning.granularities import CHANNEL
from automl.pruning.masks import masks_of
from automl.pruning.sparse_pruner import pruner_for
from automl.types import InputError

FACTORIES = '''
import torch
from torch import nn


class Tied(nn.Module):
    """Two layers share one weight, and a third name for it."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.left = nn.Conv2d(16, 16, 1, bias=False)
        self.right = nn.Conv2d(16, 16, 1, bias=False)
        self.right.weight = self.left.weight
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        return self.head(torch.relu(self.right(torch.relu(self.left(x)))).mean((2, 3)))


class Viewing(nn.Module):
    """Writes a size into forward, so that its slim form must be a graph."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.head = nn.Linear(16 * 4 * 4, 4)

    def forward(self, x):
        x = torch.relu(self.conv(x))
        return self.head(x.view(x.shape[0], 16 * 4 * 4))


class Shuffled(nn.Module):
    """Draws what its state does not hold, and keeps what is no tensor."""

    def __init__(self):
        super().__init__()
        self.order = torch.randperm(48)
        self.register_buffer("signs", torch.randn(48).sign(), persistent=False)
        self.body, self.head = nn.Linear(48, 16), nn.Linear(16, 4)

    def forward(self, x):
        return self.head(torch.relu(self.body(x.flatten(1)[:, self.order] * self.signs)))

    def get_extra_state(self):
        return {"version": 1}

    def set_extra_state(self, state):
        pass


class Bare(nn.Module):
    """Multiplies by a parameter of no module."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(16, 48))
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        return self.head(torch.relu(nn.functional.linear(x.flatten(1), self.w)))
'''


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """Prunes a network of FACTORIES by half and saves it: (folder, network, example)."""

    def save(name: str, grain=CHANNEL):
        (tmp_path / "made_networks.py").write_text(FACTORIES)
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(str(tmp_path))
        dense = load_model(f"made_networks.{name}", input_shape=(3, 4, 4), seed=1)
        return save_half(dense, tmp_path / "slim", grain)

    return save


def save_half(dense: LoadedModel, folder, grain=CHANNEL):
    traced = trace(dense.model, dense.example_inputs)
    pruner = pruner_for(traced, grain, reconstruct=None)
    policy = pruner.policy(np.maximum(pruner.plan.dense // 2, 1))
    network = pruner.prune(policy)
    with torch.no_grad():  # as if it had been trained since
        for parameter in network.parameters():
            parameter.mul_(1.25)
    folder.mkdir()
    save_pruned(folder, network, dense=dense, plan=pruner.plan, policy=policy)
    return folder, network, dense.example_inputs[0]


def form(folder) -> str:
    return json.loads((folder / "rebuild.json").read_text())["form"]


@pytest.mark.parametrize(
    ("name", "wanted"), [("Tied", "modules"), ("Viewing", "graph"), ("Shuffled", "modules")]
)
def test_what_is_loaded_computes_the_same(saved, name, wanted):
    folder, network, x = saved(name)
    assert form(folder) == wanted
    loaded = load_pruned(folder, ("made_networks",))
    assert not loaded.training
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), network(x), rtol=0, atol=0)


def test_shared_weights_stay_shared(saved):
    folder, _, _ = saved("Tied")
    loaded = load_pruned(folder, ("made_networks",))
    assert loaded.left.weight is loaded.right.weight


@pytest.mark.parametrize("grain", ["unstructured", ["channel", "unstructured"]])
def test_masks_of_a_parameter_of_no_module_come_back(saved, grain):
    folder, network, example = saved("Bare", grain)
    loaded = load_pruned(folder, trust="made_networks")
    assert masks_of(loaded)["w"].equal(masks_of(network)["w"])
    assert torch.equal(loaded(example), network(example))


def test_a_network_of_the_zoo_keeps_its_classes(tmp_path):
    dense = load_model("automl.models.digits.digits_cnn", input_shape=(1, 8, 8))
    folder, network, x = save_half(dense, tmp_path / "slim")
    loaded = load_pruned(folder, ("made_networks",))
    assert type(loaded) is type(dense.model)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), network(x), rtol=0, atol=0)


def test_folders_that_do_not_name_a_seed_are_of_the_first(saved):
    folder, network, x = saved("Shuffled")
    written = json.loads((folder / "rebuild.json").read_text())
    assert written.pop("seed") == 1
    (folder / "rebuild.json").write_text(json.dumps(written))
    loaded = load_pruned(folder, ("made_networks",))
    with torch.no_grad():
        assert not torch.allclose(loaded(x), network(x))
    for bad in ("1", 1.5, None, True):
        (folder / "rebuild.json").write_text(json.dumps({**written, "seed": bad}))
        with pytest.raises(InputError, match=r"rebuild.json cannot be read.*seed must be a whole"):
            load_pruned(folder, ("made_networks",))


def test_missing_and_damaged_files_are_told(saved, tmp_path):
    folder, _, _ = saved("Viewing")
    with pytest.raises(InputError, match="holds no pruned network"):
        load_pruned(tmp_path)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:100])
    with pytest.raises(InputError, match=r"model.safetensors is damaged"):
        load_pruned(folder, ("made_networks",))
    (folder / "rebuild.json").write_text("{}")
    with pytest.raises(InputError, match=r"rebuild.json cannot be read"):
        load_pruned(folder, ("made_networks",))


def test_files_that_do_not_belong_together_are_told(saved):
    folder, _, _ = saved("Viewing")
    policy = json.loads((folder / "policy.json").read_text())
    policy["decisions"][0]["kept"] += 1
    policy["decisions"][0]["indices"] = list(range(policy["decisions"][0]["kept"]))
    (folder / "policy.json").write_text(json.dumps(policy))
    with pytest.raises(InputError, match="does not fit the policy"):
        load_pruned(folder, ("made_networks",))


def test_a_policy_without_indices_cannot_rebuild(saved):
    folder, _, _ = saved("Viewing")
    policy = json.loads((folder / "policy.json").read_text())
    policy["decisions"][0]["indices"] = None
    (folder / "policy.json").write_text(json.dumps(policy))
    with pytest.raises(InputError, match="does not say which units"):
        load_pruned(folder, ("made_networks",))


def test_weights_of_another_network_are_told(saved):
    import safetensors.torch

    folder, network, _ = saved("Viewing")
    state = dict(network.state_dict())
    del state["head.bias"]
    (folder / "model.safetensors").write_bytes(safetensors.torch.save(state))
    with pytest.raises(InputError, match=r"lacks head.bias"):
        load_pruned(folder, ("made_networks",))


def test_the_policy_is_a_plain_policy_file(saved):
    folder, _, _ = saved("Viewing")
    assert isinstance(Policy.load(folder / "policy.json"), Policy)
