import json
from pathlib import Path

import pytest
import yaml

from automl.runs import CONFIG, RESULT


@pytest.fixture
def make_run(tmp_path):
    """Writes a finished run's folder; returns it."""

    def make(
        strategy="amc", seed=0, budget="macs <= 50 % of dense", top1=0.9, uniform=0.8,
        latency=0.6, settings=None, model="net", **changes,
    ) -> Path:  # fmt: skip
        folder = tmp_path / f"{strategy}-{seed}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        config = {
            "strategy": {"_target_": "automl.strategies.amc.AMC", **(settings or {})},
            "choices": {"strategy": strategy},
            "seed": seed,
            "finetune": {"epochs": 0},
            "model": {"name": model},
        }
        (folder / CONFIG).write_text(yaml.safe_dump(config))
        names = {
            "dense": (0.95, 1.0, 100),
            "uniform": (uniform, 0.7, 50),
            "found": (top1, latency, 50),
        }
        if strategy == "uniform":
            names = {"dense": names["dense"], "found = uniform": (uniform, latency, 50)}
        rows = [
            {
                "name": name, "macs": macs, "params": macs, "score": 0.1, "validation_top1": 0.9,
                "test_top1": accuracy, "latency_ms": 2 * ratio, "latency_ratio": ratio,
                "costs": {"macs": macs, "params": macs, "size_bytes": 4.0 * macs},
            }
            for name, (accuracy, ratio, macs) in names.items()
        ]  # fmt: skip
        result = {
            "schema": "prunepilot/result", "version": 1, "model": model, "data": "images",
            "score": "kl", "budget": budget, "trials": 200, "failed": 1, "search_seconds": 12.5,
            "rows": rows, **changes,
        }  # fmt: skip
        (folder / RESULT).write_text(json.dumps(result))
        return folder

    return make
