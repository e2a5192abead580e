"""The kinds of files that come from outside: whole samples of each, and what reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import nn

from automl.budget import Budget
from automl.commands.build import Bench
from automl.commands.settings import instantiate
from automl.commands.stored import stored_settings
from automl.cost.lut.entry import Entry
from automl.cost.lut.fingerprint import Fingerprint
from automl.cost.lut.importing import import_table
from automl.cost.lut.signature import Signature
from automl.cost.lut.table import Table
from automl.executors import formats, packed_file
from automl.export.packed import load_packed
from automl.export.packed import write as write_packed
from automl.graph.trace import trace
from automl.journal import Journal
from automl.model_folder import kept_units, load_pruned, save_pruned
from automl.models import load_model
from automl.models.checkpoint import load_checkpoint
from automl.plan import IndexPlan
from automl.policy import Policy
from automl.policy_csv import load_csv, save_csv
from automl.pruning.pruner import Pruner
from automl.runs import RunFolder, to_yaml
from automl.strategies.amc_agent import load_agent, save_agent
from automl.training import checkpoint as finetuning

Reader = Callable[[Path], Any]


@dataclass(frozen=True)
class Kind:
    """One kind of file.

    Attributes:
        make: Writes whole samples into a folder.
        files: Those that are damaged, with their formats (see ``fuzz_inputs.FORMS``).
        read: Reads what is in the folder, as PrunePilot does.
        seal: Mends checksums after a file was changed, so that what they guard is reached.
    """

    make: Callable[[Path], None]
    files: Mapping[str, str]
    read: Reader
    seal: Callable[[Path], None] = lambda folder: None


def network() -> nn.Module:
    """A network with batch norm, a residual sum and a linear layer, as small as may be."""
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
                         nn.Linear(144, 3))  # fmt: skip


def _make_folder(folder: Path) -> None:
    dense = load_model("automl.models.digits.digits_cnn", input_shape=(1, 8, 8), seed=1)
    traced = trace(dense.model, dense.example_inputs, deadline_s=1e4)
    pruner = Pruner(traced, reconstruct=None)
    policy = pruner.policy(np.maximum(traced.plan.dense // 4, 1))
    save_pruned(folder, pruner.prune(policy), dense=dense, plan=traced.plan, policy=policy)


def _run_folder(folder: Path) -> None:
    model = load_pruned(folder)
    with torch.inference_mode():
        _try(lambda: model(torch.ones(1, 1, 8, 8)))


def _try(call: Callable[[], Any]) -> None:
    """Runs a network that may not fit together: it may raise, but not crash or run code."""
    try:
        call()
    except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError):
        return


def _make_policy(folder: Path) -> None:
    _make_folder(folder)
    policy = Policy.load(folder / "policy.json")
    save_csv(policy, folder / "policy.csv")


def _read_policy(folder: Path) -> None:
    policy = Policy.load(folder / "policy.json")
    kept_units(policy, _plan((folder / "plan.json").read_text()))


@cache
def _plan(text: str) -> IndexPlan:
    """The whole plan, read once."""
    return IndexPlan.from_json(text)


def _make_table(folder: Path) -> None:
    stamp = Fingerprint(
        device="cpu", processor="one", capability="", cores=1, threads=1, torch="2",
        date="2026-01-01", dtype="float32", layout="contiguous", source="made up",
    )  # fmt: skip
    table = Table(folder / "table.json", stamp)
    shapes = [(3, 8), (8, 16), (16, 16)]
    table.add(
        (Signature("conv2d", 1, a, b, 8, 8, (3, 3), (1, 1), 1, detail='{"bias":false}'),
         Entry(5, 10.0 + a, 1.0, 9.0)) for a, b in shapes
    )  # fmt: skip


def _seal_table(folder: Path) -> None:
    import hashlib
    import json

    content = (folder / "table.csv").read_bytes()
    document = json.loads((folder / "table.json").read_text())
    if isinstance(document, dict) and "sha256" in document:
        document["bytes"], document["sha256"] = len(content), hashlib.sha256(content).hexdigest()
        (folder / "table.json").write_text(json.dumps(document))


def _make_imported(folder: Path) -> None:
    import json
    import pickle

    _make_table(folder)
    rows = {"kind": "conv2d", "in_channels": 3, "out_channels": 8, "kernel": [3, 3], "median_us": 9,
            "stride": [1, 1], "groups": 1, "height": 8, "width": 8}  # fmt: skip
    (folder / "rows.json").write_text(json.dumps([rows, {**rows, "in_channels": 8}]))
    layer = {
        "layer_type_str": "Conv2d", "input_feature_map_size": [1, 3, 8, 8], "kernel_size": (3, 3),
        "stride": (1, 1), "groups": 1, "is_depthwise": False, "num_simplifiable_channels": 3,
        "latency": {(3, 8): 0.1, (2, 8): 0.09},
    }  # fmt: skip
    (folder / "netadapt.pkl").write_bytes(pickle.dumps({"conv1": layer}))


def _read_imported(folder: Path) -> None:
    for name in ("table.csv", "rows.json", "netadapt.pkl"):
        for left in ("out.json", "out.csv"):
            (folder / left).unlink(missing_ok=True)
        import_table(folder / name, folder / "out.json", device="one")


def _make_packed(folder: Path) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((8, 256)).astype(np.float32)
    weight[:, np.arange(256) % 4 > 1] = 0
    layers = {name: formats.load(name).pack(weight) for name in formats.names() if name != "dense"}
    packed_file.save(layers, folder)


def _read_packed(folder: Path) -> None:
    for layer in packed_file.load(folder).values():
        _try(lambda layer=layer: layer(np.ones((2, layer.in_features), np.float32)))


def _seal_packed(folder: Path) -> None:
    import hashlib
    import json

    document = json.loads((folder / "packed.json").read_text())
    if isinstance(document, dict) and "sha256" in document:
        content = (folder / "packed.safetensors").read_bytes()
        document["sha256"] = hashlib.sha256(content).hexdigest()
        (folder / "packed.json").write_text(json.dumps(document))


def _make_packed_network(folder: Path) -> None:
    _make_folder(folder)
    model = load_pruned(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter[torch.rand(parameter.shape) < 0.9] = 0
    write_packed(model, torch.ones(1, 1, 8, 8), folder)


def _run_packed_network(folder: Path) -> None:
    model = load_packed(folder)
    with torch.inference_mode():
        _try(lambda: model(torch.ones(1, 1, 8, 8)))


def _make_config(folder: Path) -> None:
    from automl.commands.compose import compose

    config = compose(["strategy=netadapt", "budget.macs=0.5", "engine=process"])
    (folder / "config.yaml").write_text(to_yaml(config))


def _read_config(folder: Path) -> None:
    from automl.commands.running import SearchRun

    config = stored_settings(RunFolder(folder), ())
    SearchRun.of({**config, "run_dir": str(folder / "none")})
    Budget.parse(config["budget"])
    for name in ("strategy", "criterion", "energy", "engine"):
        made = instantiate(config[name], name)
        if hasattr(made, "close"):
            made.close()
    _ = Bench(config).device


def _make_checkpoint(folder: Path) -> None:
    torch.manual_seed(0)
    state = network().state_dict()
    torch.save({"state_dict": state}, folder / "new.pt")
    torch.save(state, folder / "old.pth", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(state, folder / "weights.safetensors")
    finetuning.save_checkpoint(folder / "tuning.pt", {"a": 1}, {"model": state, "epoch": 3})


def _read_checkpoint(folder: Path) -> None:
    for name in ("new.pt", "old.pth", "weights.safetensors"):
        load_checkpoint(network(), folder / name)
    finetuning.load_checkpoint(folder / "tuning.pt", {"a": 1}, torch.device("cpu"))


def _make_journal(folder: Path) -> None:
    with Journal(folder / "trials.jsonl") as journal:
        for i in range(5):
            journal.append({
                "key": f"{i}", "policy": "p", "score": i / 5, "status": "ok", "seconds": 1.0,
                "metrics": {"top1": 0.5, "kl": float("nan")}, "costs": {"macs": 0.5},
            })  # fmt: skip


def _read_journal(folder: Path) -> None:
    Journal.read(folder / "trials.jsonl")
    with Journal(folder / "trials.jsonl") as journal:
        journal.to_frame()
        len(journal)


def _agent() -> Any:
    torch.manual_seed(0)
    policy = nn.Sequential(nn.Linear(11, 4), nn.ReLU(), nn.Linear(4, 1))
    policy.net_arch = [4]  # type: ignore[assignment]
    return SimpleNamespace(policy=policy)


def _make_agent(folder: Path) -> None:
    save_agent(_agent(), "ddpg", folder)


_FOLDER = {"plan.json": "json", "policy.json": "json", "rebuild.json": "json",
           "model.safetensors": "safetensors"}  # fmt: skip

KINDS: dict[str, Kind] = {
    "policy, JSON": Kind(_make_policy, {"policy.json": "json"}, _read_policy),
    "policy, CSV": Kind(
        _make_policy, {"policy.csv": "csv"}, lambda at: load_csv(at / "policy.csv")
    ),
    "latency table": Kind(
        _make_table, {"table.json": "json", "table.csv": "csv"},
        lambda at: Table.load(at / "table.json"), _seal_table,
    ),
    "foreign table": Kind(
        _make_imported, {"table.csv": "csv", "rows.json": "json", "netadapt.pkl": "pickle"},
        _read_imported,
    ),
    "packed layers": Kind(
        _make_packed, {"packed.json": "json", "packed.safetensors": "safetensors"}, _read_packed,
        _seal_packed,
    ),
    "packed network": Kind(
        _make_packed_network,
        {"packed.json": "json", "packed.safetensors": "safetensors", "rest.safetensors":
         "safetensors", "packed_convolutions.json": "json"},
        _run_packed_network, _seal_packed,
    ),
    "configuration": Kind(_make_config, {"config.yaml": "yaml"}, _read_config),
    "checkpoint": Kind(
        _make_checkpoint,
        {"new.pt": "zip", "old.pth": "pickle", "weights.safetensors": "safetensors",
         "tuning.pt": "zip"},
        _read_checkpoint,
    ),
    "plan": Kind(
        _make_folder, {"plan.json": "json"},
        lambda at: IndexPlan.from_json((at / "plan.json").read_text("utf-8", "replace")),
    ),
    "model folder": Kind(_make_folder, _FOLDER, _run_folder),
    "journal": Kind(_make_journal, {"trials.jsonl": "jsonl"}, _read_journal),
    "agent": Kind(
        _make_agent, {"agent.safetensors": "safetensors"},
        lambda at: load_agent(_agent(), "ddpg", at),
    ),
}  # fmt: skip
