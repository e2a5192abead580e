import io

import pytest

from automl.commands.overview import LiveOverview, Overview, _table, overview
from automl.commands.standing import Entry, Standing, duration
from automl.progress import Nothing, hidden, progress
from automl.runs import JOURNAL


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def entries(folder, strategies=("amc", "uniform"), settings=("macs=0.3", "macs=0.5")):
    return [
        Entry(f"{s},{b},seed=0", s, b, folder / f"{s},{b}", 10)
        for s in strategies
        for b in settings
    ]


def run_some(standing, stream):
    with overview(standing, stream) as shown:
        shown.add("amc,macs=0.3,seed=0", "done", "test top-1 90.00 %", 2.0, 0.9)
        shown.add("amc,macs=0.5,seed=0", "done", "test top-1 95.00 %", 2.0, 0.95)
        shown.add("uniform,macs=0.3,seed=0", "failed", "no [memory]", 1.0, None)
    return stream.getvalue()


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    return Terminal()


def test_elsewhere_than_on_a_terminal_every_cell_is_one_line(tmp_path):
    standing = Standing(entries(tmp_path))
    lines = run_some(standing, io.StringIO()).splitlines()
    assert len(lines) == 3 and standing.failed == 1
    assert lines[2].startswith("[3/4] uniform,macs=0.3,seed=0: FAILED: no [memory] (1 s, about")


def test_a_terminal_shows_lines_and_a_table_drawn_in_its_place(tmp_path, terminal):
    out = run_some(Standing(entries(tmp_path)), terminal)
    assert "[3/4] uniform,macs=0.3,seed=0: FAILED: no [memory] (1 s)" in out
    last = out.rpartition("of 4 cells finished")[2]
    assert "1 failed" in last and "left" in last
    (row,) = [line for line in last.splitlines() if "amc" in line]
    assert "2/2" in row and "90.00" in row and "95.00" in row
    assert "\x1b[1A" in out  # the cursor went up: the table was drawn over itself


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(tmp_path, terminal, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    shown = overview(Standing(entries(tmp_path)), terminal)
    assert type(shown) is Overview and not shown.live


def test_a_cell_that_another_command_runs_is_neither_finished_nor_failed(tmp_path, terminal):
    standing = Standing(entries(tmp_path)[:2])
    with overview(standing, terminal) as shown:
        shown.add("amc,macs=0.3,seed=0", "done", "test top-1 90.00 %", 2.0, 0.9)
        shown.add("amc,macs=0.5,seed=0", "elsewhere", "another command runs it", 0.0, None)
    out = terminal.getvalue()
    assert "[2/2] amc,macs=0.5,seed=0: another command runs it" in out and "FAILED" not in out
    title = "1 of 2 cells finished, 0 failed, 1 left to another command, "
    assert str(_table(standing).title).startswith(title)


def test_running_cells_are_those_whose_journals_grow(tmp_path, terminal):
    cells = entries(tmp_path)
    for cell in cells:
        cell.folder.mkdir()
    (cells[1].folder / JOURNAL).write_text("{}\n" * 3)  # was cut before
    standing = Standing(cells, done=[cells[0].name])
    standing.known(cells[0].name, 0.875)
    assert standing.running() == [] and standing.seconds_left() is None
    (cells[1].folder / JOURNAL).write_text("{}\n" * 5)
    assert standing.running() == [(cells[1], 5)]
    (cells[1].folder / JOURNAL).write_text("{}\n" * 10)
    assert standing.seconds_left() > 0  # its networks are still to be measured
    (cells[1].folder / JOURNAL).write_text("{}\n" * 5)
    with overview(standing, terminal) as shown:
        assert isinstance(shown, LiveOverview)
    out = terminal.getvalue()
    assert f"running: {cells[1].name}, trial 5 of 10" in out
    assert "1 of 4 cells finished" in out and "87.50" in out


def test_many_settings_share_a_column_and_many_cells_a_line(tmp_path, terminal):
    cells = entries(tmp_path, ("amc",), [f"macs=0.{i}" for i in range(1, 10)])
    standing = Standing(cells)
    for cell in cells:
        cell.folder.mkdir()
        (cell.folder / JOURNAL).write_text("{}\n")
    standing.known(cells[0].name, 0.5)
    standing.known(cells[8].name, 0.75)
    with overview(standing, terminal):
        pass
    out = terminal.getvalue()
    assert "75.00" in out and "macs=0.1 " not in out
    assert "... and 3 more cells" in out


def test_searches_can_leave_showing_to_someone_else():
    with hidden():
        assert isinstance(progress(3, "trials"), Nothing)
        with progress(3, "trials", stream := io.StringIO()) as shown:
            shown.update(1, "best")
        assert stream.getvalue() == ""
    with hidden(False):
        assert not isinstance(progress(3, "trials"), Nothing)


def test_durations_are_said_in_their_own_unit():
    assert [duration(s) for s in (12, 300, 7200)] == ["12 s", "5 min", "2.0 h"]
