"""The tables in lut/ are of the networks that they say."""

from __future__ import annotations

import pytest
import torch

from automl.commands.build import Bench
from automl.commands.compose import compose
from automl.cost.lut.table import Table
from automl.paths import lut_dir

NAME = "cpu-amd-epyc-avx512-1t-float32-torch2.13"


@pytest.mark.data
@pytest.mark.skipif(not torch.__version__.startswith("2.13."), reason="is of torch 2.13")
def test_the_shipped_table_is_calibrated_for_resnet20(data_root):
    settings = ["model=resnet20", f"data.root={data_root}", "budget.latency_ms=0.5", "threads=1"]
    bench = Bench(compose([*settings, "device=cpu", "repair=none"]))
    table = Table.load(lut_dir() / NAME)
    assert list(table.calibrations) == [bench.latency_table.operators.key]
