"""The registry: what conf/ knows by name, and its settings."""

import pytest

from automl import registry
from automl.pruning.criteria.wanda import Wanda
from automl.types import InputError


def test_things_are_made_by_name_with_settings_replaced():
    assert registry.load("criterion", "wanda", {"images": 7}) == Wanda(images=7)
    assert "wanda" in registry.names("criterion")


def test_references_to_settings_of_a_run_are_left_to_the_defaults():
    assert registry.settings_of("engine", "process")["threads"] == "${threads}"
    registry.load("engine", "process", {"n": 1}).close()


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("wandb", {}, "no criterion is called 'wandb'; did you mean 'wanda'"),
        ("wanda", {"image": 1}, "criterion 'wanda' has no setting 'image'; did you mean 'images'"),
        ("wanda", {"_target_": "os.system"}, "has no setting '_target_'"),
        ("bn_scale", {"images": 1}, "has no setting 'images'; it has none"),
    ],
)
def test_unknown_names_and_settings_are_refused(name, settings, says):
    with pytest.raises(InputError, match=says):
        registry.load("criterion", name, settings)
