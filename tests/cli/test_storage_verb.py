import builtins

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from automl.cost.storage import FORMATS, largest
from automl.model_folder import load_pruned
from automl.models.digits import digits_cnn

ON_CPU = ("threads=1", "device=cpu", "repair=none")
ON_DIGITS = ("model.input_shape=[1,8,8]",)


class Tied(nn.Module):
    """Two convolutions of one weight."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.a = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.b = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.head = nn.Linear(8, 10)
        self.b.weight = self.a.weight

    def forward(self, x):
        x = self.b(self.a(self.stem(x).relu()).relu()).relu()
        return self.head(x.mean((2, 3)))


class Conv1D(nn.Module):
    """As in transformers: inputs first."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf = nf
        self.weight, self.bias = nn.Parameter(torch.rand(nx, nf)), nn.Parameter(torch.zeros(nf))

    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight)


class InputsFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(1, 6, 2, 2)
        self.more = nn.ConvTranspose2d(6, 8, 2, groups=2)
        self.head = Conv1D(10, 8)

    def forward(self, x):
        return self.head(self.more(self.up(x).relu()).relu().mean((2, 3)))


def storage(cli, *arguments):
    return cli("storage", "model=digits", *ON_CPU, *arguments)


def table(cli, tmp_path, *arguments) -> pd.DataFrame:
    result = storage(cli, "--out", tmp_path / "out", *arguments)
    assert result.code == 0, result.err
    return pd.read_csv(tmp_path / "out" / "storage.csv", index_col="density")


def test_it_shows_every_format_and_writes_table_and_plot(cli, tmp_path):
    pytest.importorskip("matplotlib")
    result = storage(cli, "--densities", "0.1,1", "--out", tmp_path / "out")
    assert result.code == 0, result.err
    assert all(form.name in result.out for form in FORMATS)
    assert f"wrote {tmp_path / 'out'} (storage.csv, storage.png)" in result.out
    frame = pd.read_csv(tmp_path / "out" / "storage.csv", index_col="density")
    params = sum(p.numel() for p in digits_cnn().parameters())
    assert frame["dense fp32"].tolist() == [4 * params] * 2
    assert (tmp_path / "out" / "storage.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_there_is_the_table_alone(cli, tmp_path, monkeypatch):
    real = builtins.__import__

    def no_matplotlib(name, *rest, **more):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", no_matplotlib)
    result = storage(cli, "--densities", "0.5", "--out", tmp_path / "out")
    assert result.code == 0
    assert "(storage.csv)" in result.out and "matplotlib is not installed" in result.out


def test_the_smallest_of_each_kind_is_marked(cli):
    lines = storage(cli, "--densities", "0.01,1").out.splitlines()
    cells = {line.split("│")[1].strip(): line.split("│")[2:4] for line in lines if "│" in line}
    marked = {name: ["*" in cell for cell in row] for name, row in cells.items()}
    assert marked["dense fp32"] == [False, True]
    assert marked["index table fp32"] == [True, False]
    assert marked["CSC relative 4-bit codes (EIE)"] == [True, False]
    assert marked["dense int8"] == [False, False]  # the only one of its values


def test_magnitude_counts_exactly(cli, tmp_path):
    mean = table(cli, tmp_path, "--densities", "0.1")
    exact = table(cli, tmp_path / "exact", "--densities", "0.1", "--magnitude")
    assert exact["2:4 fp32"].equals(mean["2:4 fp32"])
    assert not exact["CSC relative fp32"].equals(mean["CSC relative fp32"])
    np.testing.assert_allclose(exact["bitmap fp32"], mean["bitmap fp32"], rtol=1e-3)


def test_a_policy_is_measured_by_what_it_leaves(cli, tmp_path):
    slim = tmp_path / "slim"
    pruned = cli("prune", "model=digits", *ON_CPU, "ratio=0.5", "--out", slim)
    assert pruned.code == 0, pruned.err
    frame = table(cli, tmp_path, "--densities", "1", "--policy", slim / "policy.json")
    params = sum(p.numel() for p in load_pruned(slim).parameters())
    assert frame["dense fp32"].tolist() == [4 * params]


def test_matrices_have_a_row_per_output_where_layers_have_inputs_first(cli, tmp_path):
    frame = table(cli, tmp_path, "--densities=0.5", f"model={__name__}.InputsFirst", *ON_DIGITS)
    fours = 6 * 1 + 8 * 3 + 10 * 2  # of 4, 12 and 8 weights an output
    assert frame["2:4 fp32"].tolist() == [fours * 2 * 34 / 8 + 4 * (6 + 8 + 10)]


def test_a_weight_of_two_layers_is_stored_once_and_as_a_weight(cli, tmp_path):
    frame = table(cli, tmp_path, "--densities", "0.5", f"model={__name__}.Tied", *ON_DIGITS)
    matrices, others = 8 * 9 + 8 * 8 * 9 + 8 * 10, 8 + 10
    assert frame["dense fp16"].tolist() == [2 * matrices + 4 * others]


def test_a_weight_of_two_layers_is_stored_once_in_what_a_policy_leaves(cli, tmp_path):
    network = (f"model={__name__}.Tied", *ON_DIGITS, *ON_CPU)
    slim = tmp_path / "slim"
    pruned = cli("prune", *network, "data=digits", "ratio=0.5", "--out", slim)
    assert pruned.code == 0, pruned.err
    frame = table(cli, tmp_path, "--densities=0.5", *network, "--policy", slim / "policy.json")
    left = list(load_pruned(slim, trust=(__name__,)).parameters())
    others = sum(p.numel() for p in left if p.ndim == 1)
    matrices = sum(p.numel() for p in left if p.ndim > 1)
    assert frame["dense fp16"].tolist() == [2 * matrices + 4 * others]


def test_a_saved_network_is_measured_with_its_zeros(cli, tmp_path):
    slim = tmp_path / "slim"
    pruned = cli(
        "prune", "model=digits", "threads=1", "device=cpu", "granularity=nm", "ratio=0.5",
        "repair.calibration_images=16", "repair.refine=null", "--out", slim,
    )  # fmt: skip
    assert pruned.code == 0, pruned.err
    result = cli("storage", "--saved", slim, "--densities", "1")
    assert result.code == 0, result.err
    heading = next(line for line in result.out.splitlines() if "as it is" in line)
    row = next(line for line in result.out.splitlines() if "2:4 fp32" in line)
    assert "as it is (0.5" in heading
    assert row.split("│")[-2].strip() != "-"  # every matrix can be stored as 2:4


def test_a_saved_network_takes_no_settings(cli, tmp_path):
    result = cli("storage", "--saved", tmp_path, "seed=1")
    assert result.code == 2 and "--saved takes no settings" in result.err
    result = cli("storage", "--saved", tmp_path)
    assert result.code == 2 and result.err.count("\n") == 1


@pytest.mark.parametrize("text", ["", "x", "0", "1.5", "0.1,,2", "nan"])
def test_densities_off_the_scale_are_refused(cli, text):
    result = storage(cli, f"--densities={text}")
    assert result.code == 2
    assert "--densities must be numbers in (0, 1]" in result.err


def test_a_folder_with_files_is_refused_before_anything_is_loaded(cli, tmp_path):
    (tmp_path / "there").write_text("")
    result = storage(cli, "--out", tmp_path)
    assert result.code == 2 and "choose a new folder" in result.err


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_loaded(cli, tmp_path):
    (tmp_path / "file").write_text("")
    result = storage(cli, "--out", tmp_path / "file" / "new")
    assert result.code == 2 and "cannot be made: Not a directory" in result.err


def test_the_largest_weights_are_marked():
    weight = np.array([[0.1, -3.0], [2.0, 0.0]])
    assert largest(weight, 0.5).tolist() == [[False, True], [True, False]]
    assert largest(weight, 0.0).sum() == 0 and largest(weight, 1.0).all()
    assert largest(np.ones(10), 0.3).tolist() == [True] * 3 + [False] * 7
