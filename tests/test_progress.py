import io

from automl.progress import Bar, Lines, progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_with_the_best_so_far():
    stream = Terminal()
    with progress(3, "trials", stream) as shown:
        assert isinstance(shown, Bar)
        shown.update(3, "best: top1 0.9876")
    assert "3/3" in stream.getvalue()
    assert "0.9876" in stream.getvalue()


def test_titles_and_what_is_best_are_shown_as_they_are():
    stream = Terminal()
    with progress(2, "layers={conv1:[channel]} [/x]", stream) as shown:
        shown.update(1, "failed: [/red] {}")
    assert "layers={conv1:[channel]} [/x]" in stream.getvalue()
    assert "failed: [/red] {}" in stream.getvalue()


def test_lines_come_at_most_every_few_seconds_and_end_with_the_last_state():
    stream = io.StringIO()
    with Lines(100, "trials", stream, every_s=1e9) as shown:
        for done in range(1, 101):
            shown.update(done, f"best {done}")
    assert stream.getvalue() == "trials 0/100\ntrials 100/100  best 100\n"


def test_lines_show_every_state_where_nothing_holds_them_back():
    stream = io.StringIO()
    with Lines(2, "trials", stream, every_s=0) as shown:
        shown.update(1, "a")
        shown.update(2, "b")
    assert stream.getvalue() == "trials 0/2\ntrials 1/2  a\ntrials 2/2  b\n"


def test_a_break_still_shows_the_last_state():
    stream = io.StringIO()
    try:
        with Lines(9, "trials", stream, every_s=1e9) as shown:
            shown.update(4, "x")
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert stream.getvalue().endswith("trials 4/9  x\n")
