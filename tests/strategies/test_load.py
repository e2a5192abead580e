import subprocess
import sys

import pytest

from automl.strategies import load, names
from automl.types import InputError


def test_every_yaml_is_a_strategy():
    assert {"uniform", "deep", "shallow", "random"} <= set(names())


def test_settings_replace_those_of_the_file():
    assert load("deep").towards == "deep" and load("shallow").towards == "shallow"
    assert load("random", spread=0.5).spread == 0.5


def test_an_unknown_name_or_setting_gets_the_nearest():
    with pytest.raises(InputError, match="no strategy is called 'randm'; did you mean 'random'"):
        load("randm")
    with pytest.raises(
        InputError, match="'deep' has no setting 'contras'; did you mean 'contrast'"
    ):
        load("deep", contras=2.0)


def test_importing_the_registry_needs_neither_torch_nor_hydra():
    program = (
        "import sys, automl.strategies, automl.problem, automl.strategies.random\n"
        "print([m for m in ('torch', 'hydra', 'pandas', 'filelock') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
