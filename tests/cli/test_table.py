from automl.commands.table import Row, print_table

RESULT = {
    "model": "m", "data": "d", "budget": "macs <= 50 % of dense", "score": "kl", "trials": 3,
    "failed": 0, "form": "graph", "device": "cpu", "validation_images": 10, "test_images": 20,
}  # fmt: skip

ROWS = [
    Row("dense", 4_000_000_000, 1000, 0.0, 0.9925, 0.99, 2.0, 1.0),
    Row("found", 1_999_000_000, 512, 0.0143, None, 0.98),
]


def test_it_shows_counts_shares_scores_and_what_was_not_measured(capsys):
    print_table(ROWS, RESULT)
    text = capsys.readouterr().out
    for part in ("4 G (100.0 %)", "2 G (50.0 %)", "512 (51.2 %)", "0.0143", "99.25 %", "2 ms"):
        assert part in text
    found = next(line for line in text.splitlines() if "found" in line)
    assert found.count(" - ") == 3
    assert "graph module" in text


def test_a_search_that_found_no_more_policies_says_what_decides_how_many_there_are(capsys):
    print_table(ROWS, RESULT)
    assert "no new policy" not in capsys.readouterr().out
    print_table(ROWS, {**RESULT, "exhausted": True})
    (line,) = [one for one in capsys.readouterr().out.splitlines() if "no new policy" in one]
    assert "granularity.rounding decides" in line


def test_policies_that_were_tried_twice_are_told_of_and_only_they(capsys):
    for more in ({}, {"networks": 3}):
        print_table(ROWS, {**RESULT, **more})
        assert "\n3 trials, 0 failed; " in capsys.readouterr().out
    print_table(ROWS, {**RESULT, "networks": 2})
    assert "\n3 trials, 2 networks, 0 failed; " in capsys.readouterr().out


def test_a_score_that_is_top1_has_no_column_of_its_own(capsys):
    print_table(ROWS[:1], {**RESULT, "score": "top1"})
    assert "val top1" not in capsys.readouterr().out


def test_names_of_models_and_data_are_no_markup(capsys):
    print_table(ROWS, {**RESULT, "model": "m[a,b]", "data": "d[/data/x]"})
    assert "m[a,b] on d[/data/x]" in capsys.readouterr().out
