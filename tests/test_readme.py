import re
import shlex
from pathlib import Path

import pytest
import torch

import automl
from automl.cli import VERBS, _parser
from automl.commands.compose import compose, expand
from automl.models import load_model

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()
COMMANDS = [line.strip() for line in README.splitlines() if line.startswith("    prunepilot ")]


def test_the_python_of_the_readme_runs():
    dense = load_model("automl.models.digits.digits_cnn", input_shape=(1, 8, 8))
    images = torch.zeros(1, 1, 8, 8)
    names = {
        "model": dense.model,
        "example_inputs": dense.example_inputs,
        "evaluate": lambda network: network(images).mean().item(),
        "print": lambda *_: None,
    }
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block.replace("trials=200", "trials=5"), names)
    assert names["terminated"] and names["info"]["trial"].status == "ok"
    dense_macs = automl.trace(dense.model, dense.example_inputs).macs
    assert automl.trace(names["small"], dense.example_inputs).macs <= 0.5 * dense_macs


def test_it_is_one_page_with_a_picture_and_a_start_of_two_commands():
    assert len(README.splitlines()) <= 115
    assert re.search(r"!\[[^]]+\]\(docs/images/[\w-]+\.png\)", README)
    start = README.partition("## Start")[2]
    assert re.match(r"\n\n    git clone .*\n    make demo\n", start)


def test_the_environment_takes_ten_lines():
    (block,) = [
        b for b in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "import envs" in b
    ]
    assert len([line for line in block.splitlines() if line.strip()]) <= 10


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_readme_are_understood(command):
    arguments = shlex.split(command)[1:]
    parsed = _parser(arguments).parse_args(arguments)
    for overrides in expand(getattr(parsed, "overrides", [])):
        compose(overrides)


def test_every_verb_has_its_line():
    table = README.partition("## Verbs")[2].partition("\n##")[0]
    assert re.findall(r"^\| `([\w-]+)", table, flags=re.MULTILINE) == list(VERBS)
