"""Depth pruning: the block that is missed least goes, the rest of the network stays as it was."""

import pytest
import torch
from torch import nn

import automl
from automl.pruning.depth import removal_scores, shorten, without_blocks
from automl.types import InputError


class Residual(nn.Module):
    """Adds a constant to its input."""

    def __init__(self, by):
        super().__init__()
        self.by = nn.Parameter(torch.tensor(float(by)))

    def forward(self, x):
        return x + self.by


def network(*values):
    return nn.Sequential(nn.Identity(), nn.Sequential(*(Residual(v) for v in values)))


class NearnessToDense:
    """Minus how far the output is from that of the dense network; counts how often it is asked."""

    fingerprint = "nearness"

    def __init__(self, dense):
        self.inputs = torch.zeros(1)
        self.wanted = dense(self.inputs).detach()
        self.asked = 0

    @torch.no_grad()
    def __call__(self, model):
        self.asked += 1
        return -float((model(self.inputs) - self.wanted).abs()), {}


def test_scores_are_those_of_the_network_without_the_block():
    model = network(1, -5, 3)
    assert removal_scores(model, "1", NearnessToDense(model)) == {0: -1.0, 1: -5.0, 2: -3.0}


def test_costs_are_measured_anew_after_every_removal():
    """Left out one by one, 2 and 3 cost most; after 2 is gone, -2 is what restores the balance."""
    model = network(2, 7, -2, 3)
    scorer = NearnessToDense(model)
    found = shorten(model, "1", scorer, 2)
    assert sorted(found.removed) == [0, 2]
    assert found.scores == (-2.0, 0.0)
    assert scorer.asked == 4 + 3
    assert [block.by.item() for block in found.model[1]] == [7.0, 3.0]
    assert len(model[1]) == 4


def test_nothing_removed_is_a_copy():
    model = network(1, 2)
    found = shorten(model, "1", NearnessToDense(model), 0)
    assert found.removed == found.scores == ()
    assert found.model is not model
    assert len(found.model[1]) == 2


def test_module_lists_are_shortened_too():
    model = nn.Module()
    model.blocks = nn.ModuleList(nn.Linear(1, 1) for _ in range(4))
    assert list(without_blocks(model, "blocks", [0, 2]).blocks.state_dict()) == [
        "0.weight", "0.bias", "1.weight", "1.bias",
    ]  # fmt: skip


def test_a_shorter_decoder_can_be_pruned_in_width():
    from automl.data import load_data
    from automl.models import load_model
    from automl.scoring import ClassifierScorer

    loaded = load_model(
        "automl.models.gpt.next_token_tiny",
        checkpoint="package:weights/gpt_tiny.safetensors",
        input_shape=[24],
    )
    data = load_data("next_token", limit=256)
    part = data.validation
    scorer = ClassifierScorer(part.images, part.labels, score="kl", dense=loaded.model)
    short = shorten(loaded.model, "blocks", scorer, 2)
    every = removal_scores(loaded.model, "blocks", scorer)
    assert every[short.removed[0]] == max(every.values()) == short.scores[0]
    slim = automl.prune(short.model, loaded.example_inputs, 0.25)
    assert len(slim.blocks) == 2
    assert slim.blocks[0].mlp.fc1.weight.shape == (72, 36)
    assert scorer(slim)[0] < 0


@pytest.mark.parametrize(
    ("blocks", "remove", "message"),
    [
        ("2", 1, "got '2'; there are 1$"),
        ("1.0", 1, r"got '1\.0'"),
        ("1", 2, "remove must be 0 to 1 of 1, got 2"),
        ("1", -1, "remove must be 0 to 1"),
    ],
)
def test_what_is_not_there_is_refused(blocks, remove, message):
    model = network(1, 2)
    with pytest.raises(InputError, match=message):
        shorten(model, blocks, NearnessToDense(model), remove)


def test_blocks_that_change_the_shape_cannot_go():
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3)))

    def scorer(network):
        return float(network(torch.zeros(1, 2)).sum()), {}

    with pytest.raises(InputError, match=r"0\.0 cannot be left out"):
        shorten(model, "0", scorer, 1)
