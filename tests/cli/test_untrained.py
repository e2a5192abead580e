"""Searches say what their figures would not: random weights, data nobody chose, idle budgets."""

import json

import pytest
from command import SEARCH

from automl.commands.compose import compose
from automl.commands.untrained import loads_weights
from automl.models.digits import digits_cnn
from automl.runs import RESULT

QUICK = [part for part in SEARCH if not part.startswith(("model", "data", "strategy", "trials"))]
QUICK = [*QUICK, "strategy=uniform", "trials=1", "data.limit=200", "repair=none"]
QUICK += ["latency_budget_s=0"]
OWN = (f"model={__name__}.random_network", "model.input_shape=[1,8,8]")


def random_network():
    return digits_cnn()


def test_a_search_of_random_weights_says_so(cli, tmp_path):
    run = ("model=digits", f"run_dir={tmp_path / 'run'}")
    result = cli(*QUICK, *run, "model.checkpoint=null")
    assert result.code == 0, result.err
    assert result.err.count("no weights were loaded") == 1
    assert "model.checkpoint=FILE" in result.err and "above chance" not in result.err


def test_a_network_of_ones_own_at_chance_is_told_with_the_data_that_nobody_chose(cli, tmp_path):
    result = cli(*QUICK, *OWN, f"run_dir={tmp_path / 'run'}")
    assert result.code == 0, result.err
    assert "data=digits, as no other data= was given" in result.err
    assert "not above chance: is it trained, and on digits?" in result.err
    assert "no weights were loaded" not in result.err  # its factory may have


def test_a_trained_network_on_data_that_were_chosen_is_searched_without_a_word(cli, tmp_path):
    budget = ("budget.macs={absolute: 1e99}", f"run_dir={tmp_path / 'run'}")
    result = cli(*QUICK, "model=digits", "data=digits", *budget)
    assert result.code == 0, result.err
    for line in ("no weights", "above chance", "data=digits, as"):
        assert line not in result.err
    assert result.err.count("nothing needs to be pruned") == 1
    rows = json.loads((tmp_path / "run" / RESULT).read_text())["rows"]
    assert rows[-1]["macs"] == rows[0]["macs"]


@pytest.mark.parametrize(
    ("settings", "loads"),
    [
        (["model=digits"], True),
        (["model=resnet32"], False),
        (["model=torchvision:resnet18", "model.kwargs.weights=DEFAULT"], True),
        (["model=timm:resnet18", "model.kwargs.pretrained=false"], False),
    ],
)
def test_weights_are_loaded_from_a_checkpoint_or_by_what_the_factory_is_asked(settings, loads):
    assert loads_weights(compose(settings)) is loads
