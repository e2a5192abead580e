import pytest
from command import SEARCH

from automl.cli import main
from automl.model_folder import load_pruned
from automl.policy import Policy

PRUNE = [part for part in SEARCH[1:] if "=" in part and not part.startswith(("strategy", "budget"))]


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """The folder of a network pruned by one ratio."""
    out = tmp_path_factory.mktemp("policy") / "half"
    assert main(["prune", *PRUNE, "ratio=0.5", "--out", str(out)]) == 0
    return out


def test_show_and_diff_print_every_group(pruned, tmp_path, capsys):
    assert main(["policy", "show", str(pruned)]) == 0
    shown = capsys.readouterr().out
    policy = Policy.load(pruned / "policy.json")
    assert all(one.target in shown for one in policy.decisions) and "50.0 %" in shown
    edited = tmp_path / "edited.csv"
    assert main(["policy", "convert", str(pruned), str(edited)]) == 0
    edited.write_text(edited.read_text().replace("0.5000", "0.2500", 1))
    capsys.readouterr()
    assert main(["policy", "diff", str(pruned), str(edited)]) == 0
    out = capsys.readouterr().out
    count = len(policy.decisions)
    assert f"{count - 1} of {count} groups keep as many units" in out and "+" in out


def test_a_csv_that_a_person_edited_is_applied(pruned, tmp_path, capsys):
    edited, out = tmp_path / "edited.csv", tmp_path / "out"
    assert main(["policy", "convert", str(pruned), str(edited)]) == 0
    edited.write_text(edited.read_text().replace("0.5000", "0.2500", 1))
    assert main(["apply", str(edited), *PRUNE, "--out", str(out)]) == 0
    before, after = (Policy.load(folder / "policy.json") for folder in (pruned, out))
    assert after.decisions[0].kept == pytest.approx(1.5 * before.decisions[0].kept, abs=1)
    assert [d.kept for d in after.decisions[1:]] == [d.kept for d in before.decisions[1:]]
    assert all(d.indices for d in after.decisions)
    assert sum(p.numel() for p in load_pruned(out).parameters()) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["policy", "show", "nowhere.json"], "cannot read policy"),
        (["policy", "convert", "{run}", "x.txt"], "must end in .csv or .json"),
        (["policy", "convert", "{run}", "{run}"], "exists; choose a new file"),
        (["policy"], "FORM"),
    ],
)
def test_bad_input_is_one_line(pruned, tmp_path, capsys, arguments, message):
    named = [a.format(run=pruned, new=tmp_path / "new") for a in arguments]
    assert main(named) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_a_policy_of_another_network_is_refused(pruned, tmp_path, capsys):
    other = tmp_path / "other.csv"
    assert main(["policy", "convert", str(pruned), str(other)]) == 0
    name = Policy.load(pruned / "policy.json").decisions[0].target
    other.write_text(other.read_text().replace(name, "elsewhere", 1))
    capsys.readouterr()
    assert main(["apply", str(other), *PRUNE, "--out", str(tmp_path / "new")]) == 2
    assert "another network: it prunes target 'elsewhere'" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
