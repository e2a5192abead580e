import dataclasses
import math
import sys
from subprocess import run

import numpy as np
import pytest
import yaml

from automl.paths import conf_dir
from automl.training.config import FinetuneConfig
from automl.types import InputError

OPTIONS = sorted(path.stem for path in (conf_dir() / "finetune").glob("*.yaml"))


def read(option):
    return yaml.safe_load((conf_dir() / "finetune" / f"{option}.yaml").read_text("utf-8"))


@pytest.mark.parametrize(
    "field, value, rule",
    [
        ("epochs", -1, "an integer >= 0"),
        ("epochs", 2.5, "an integer >= 0"),
        ("epochs", True, "an integer >= 0"),
        ("optimizer", "adam", "sgd or adamw"),
        ("lr", 0, "> 0"),
        ("lr", -0.1, "> 0"),
        ("lr", "0.1", "> 0"),
        ("lr", math.nan, "> 0"),
        ("lr", math.inf, "> 0"),
        ("momentum", 1.0, r"in \[0, 1\)"),
        ("momentum", -0.1, r"in \[0, 1\)"),
        ("weight_decay", -1e-4, ">= 0"),
        ("decay_norm_and_bias", "no", "true or false"),
        ("batch_size", 0, "an integer >= 1"),
        ("schedule", "step", "cosine or constant"),
        ("warmup_epochs", -1, r"from 0 to epochs \(5\)"),
        ("warmup_epochs", 6, r"from 0 to epochs \(5\)"),
        ("label_smoothing", 1.0, r"in \[0, 1\)"),
        ("mixup", -0.1, ">= 0"),
        ("distill_weight", 1.1, r"in \[0, 1\]"),
        ("distill_temperature", 0, "> 0"),
        ("early_stop_patience", 0, "null or an integer >= 1"),
        ("max_grad_norm", 0.0, "null or > 0"),
        ("seed", None, "an integer >= 0 of 63 bits"),
        ("seed", 2**63, "an integer >= 0 of 63 bits"),
        ("precision", "float16", "null, float32 or bfloat16"),
    ],
)
def test_every_field_is_checked_by_name_rule_and_value(field, value, rule):
    with pytest.raises(
        InputError, match=rf"^FinetuneConfig\.{field} must be {rule}, got "
    ) as error:
        FinetuneConfig(**{field: value})
    assert str(error.value).endswith(repr(value))


def test_the_edges_are_allowed():
    FinetuneConfig(epochs=0, momentum=0, distill_weight=1, warmup_epochs=0, weight_decay=0)
    FinetuneConfig(epochs=2, warmup_epochs=2, early_stop_patience=1, max_grad_norm=1e-3)


def test_counts_of_numpy_are_counts():
    names = ("epochs", "batch_size", "seed", "early_stop_patience")
    config = FinetuneConfig(**dict.fromkeys(names, np.int64(3)))
    assert all(type(getattr(config, name)) is int for name in names)  # checkpoints hold them


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        FinetuneConfig().lr = 1.0


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_names_every_field_and_makes_a_config(option):
    content = read(option)
    path, _, name = content.pop("_target_").rpartition(".")
    assert getattr(sys.modules[path], name) is FinetuneConfig
    assert content.pop("seed") == "${seed}"
    fields = {field.name for field in dataclasses.fields(FinetuneConfig)} - {"seed"}
    assert set(content) == fields
    FinetuneConfig(**content)


def test_the_options_are_none_short_long_and_from_scratch():
    assert OPTIONS == ["long", "none", "scratch", "short"]
    epochs = [read(option)["epochs"] for option in ("none", "short", "long", "scratch")]
    assert epochs[0] == 0 and epochs == sorted(epochs)


def test_settings_are_checked_without_torch():
    script = (
        "import sys, automl.training.config as c; c.FinetuneConfig(); print('torch' in sys.modules)"
    )
    done = run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
