import sys

from automl.commands.overview import Overview

CELLS = {"a,seed=0": "amc", "a,seed=1": "amc", "u": "uniform", "v": "random"}


def shown(capsys):
    overview = Overview(4, 0, CELLS)
    overview.add("a,seed=0", "done", "test top-1 90.00 %", 2.0, 0.9)
    overview.add("a,seed=1", "done", "test top-1 95.00 %", 2.0, 0.95)
    overview.add("u", "failed", "no memory", 1.0, None)
    assert overview.failed == 1
    return capsys.readouterr().out


def test_elsewhere_than_on_a_terminal_every_cell_is_one_line(capsys):
    lines = shown(capsys).splitlines()
    assert len(lines) == 3
    assert lines[2].startswith("[3/4] u: FAILED: no memory (1 s, about")


def test_on_a_terminal_the_best_of_every_strategy_is_shown(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    out = shown(capsys)
    assert "3 of 4 cells finished, 1 failed, about" in out
    rows = [line for line in out.splitlines() if "95.00" in line and "amc" in line]
    assert rows and "a,seed=1" in rows[-1]
