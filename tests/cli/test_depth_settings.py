"""``depth.*``: whole blocks go first, from the command line, and are gone when loaded again."""

from __future__ import annotations

import json

import pytest
import torch

from automl.model_folder import load_pruned

GPT = ("model=gpt_tiny", "data.limit=256", "threads=1", "device=cpu", "repair=none")
ONE = ("depth.blocks=blocks", "depth.remove=1")


def test_a_decoder_is_pruned_in_depth_and_width(cli, tmp_path):
    out = tmp_path / "slim"
    result = cli("prune", *GPT, *ONE, "ratio=.25", "--out", out)
    assert result.code == 0, result.err
    assert "left out blocks.3: kl 0." in result.err
    rows = [line for line in result.out.splitlines() if "100.0 %" in line or "without" in line]
    assert len(rows) == 2 and "without blocks.3" in rows[1] and "(75.0 %)" in rows[1]
    network = load_pruned(out)
    assert len(network.blocks) == 3
    assert network.blocks[0].mlp.fc1.weight.shape == (72, 40)
    rebuild = json.loads((out / "rebuild.json").read_text())
    assert rebuild["kwargs"]["removed"] == [3]


def test_depth_alone_needs_no_ratio(cli, tmp_path):
    out = tmp_path / "short"
    assert cli("prune", *GPT, "depth.blocks=blocks", "depth.remove=2", "--out", out).code == 0
    network = load_pruned(out)
    assert len(network.blocks) == 2
    assert network(torch.zeros(1, 24, dtype=torch.int64)).shape == (1, 16)


def test_a_search_prunes_what_is_left_in_width(cli, tmp_path):
    out = tmp_path / "run"
    result = cli("search", *GPT, *ONE, "trials=2", "budget.macs=.6", "latency_budget_s=0",
                 f"run_dir={out}")  # fmt: skip
    assert result.code == 0, result.err
    assert len(load_pruned(out).blocks) == 3
    dense = json.loads((out / "result.json").read_text())["rows"][0]
    assert dense["score"] > 0  # the divergence is that to the network with all its blocks


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["depth.remove=1"], "depth.blocks must be the path of a list"),
        (["depth.blocks=blocks"], "depth.remove must be a whole number >= 1"),
        (["depth.blocks=blocks", "depth.remove=0"], "depth.remove must be a whole number >= 1"),
        (["depth.blocks=blocks", "depth.remove=4"], "remove must be 0 to 3 of blocks, got 4"),
        (["depth.blocks=layers", "depth.remove=1"], "got 'layers'; there are blocks"),
    ],
)
def test_settings_of_depth_that_make_no_sense_are_refused(cli, tmp_path, settings, says):
    result = cli("prune", *GPT, *settings, "ratio=.5", "--out", tmp_path / "out")
    assert result.code == 2 and result.err.count("\n") == 1
    assert says in result.err
    assert not (tmp_path / "out").exists()
