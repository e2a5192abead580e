"""Tables keep every cell, however narrow the terminal."""

import io

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from automl.commands.wide_table import parts, show

WORDS = st.text("abc %", min_size=1, max_size=12).map(str.strip).filter(bool)


@st.composite
def tables(draw):
    columns, rows = draw(st.integers(2, 7)), draw(st.integers(1, 4))
    table = Table(title="what it shows", caption="what it means")
    for number in range(columns):
        table.add_column(f"h{number}", no_wrap=draw(st.booleans()))
    for _ in range(rows):
        table.add_row(*draw(st.lists(WORDS, min_size=columns, max_size=columns)))
    return table


def cells(table):
    return [list(column.cells) for column in table.columns]


def printed(table, width):
    stream = io.StringIO()
    Console(file=stream, width=width).print(table)
    return stream.getvalue()


@given(tables(), st.integers(50, 120), st.integers(1, 2))
def test_every_column_is_there_once_and_whole_behind_those_that_name_the_rows(table, width, lead):
    shown = list(parts(table, Console(file=io.StringIO(), width=width), lead))
    named, all_cells = cells(table)[:lead], cells(table)
    assert all(cells(part)[:lead] == named for part in shown)
    assert [column for part in shown for column in cells(part)[lead:]] == all_cells[lead:]
    assert [part.title for part in shown] == ["what it shows"] + [None] * (len(shown) - 1)
    assert [part.caption for part in shown] == [None] * (len(shown) - 1) + ["what it means"]
    for part in shown:
        text = printed(part, width)
        assert all(cell in text for column in part.columns for cell in column.cells)


def test_a_table_that_fits_is_printed_as_it_is():
    table = Table("a", "b")
    table.add_row("1", "2")
    assert list(parts(table, Console(file=io.StringIO(), width=20))) == [table]


def test_sections_stay_apart():
    table = Table("a", "b" * 15, "c" * 15)
    table.add_row("1", "2", "3", end_section=True)
    table.add_row("4", "5", "6")
    shown = list(parts(table, Console(file=io.StringIO(), width=30)))
    assert [[row.end_section for row in part.rows] for part in shown] == [[True, False]] * 2


def test_what_names_the_rows_is_folded_before_a_figure_is_cut():
    table = Table()
    for heading in ("budget", "strategy", "val score", "over uniform"):
        table.add_column(heading, no_wrap=True)
    name = "netadapt, trials=200, scoring.images=512, repair.refine=null, granularity.rounding=4"
    table.add_row("macs <= 50 %", name, "kl 0.00812", "+1.23 (p < .01)")
    shown = list(parts(table, Console(file=io.StringIO(), width=80), lead=2))
    text = "".join(printed(part, 80) for part in shown)
    assert "…" not in text
    assert all(cell in text for cell in ("macs <= 50 %", "kl 0.00812", "+1.23 (p < .01)"))
    assert all(word in text.replace("\n", " ") for word in ("netadapt,", "trials=200,"))
    assert max(map(len, text.splitlines())) <= 80


def test_what_looks_like_markup_is_printed_as_it_is(capsys):
    table = Table(title="m on [/data/w.pt]", caption="A: [red]")
    table.add_column("x=[a,b]")
    table.add_row("exclude=[conv1,bn1] model.kwargs.w=[/data/w.pt] :smile:")
    show(table)
    out = capsys.readouterr().out
    for column in table.columns:
        assert column.header in out and all(cell in out for cell in column.cells)
    assert "m on [/data/w.pt]" in out and "A: [red]" in out
