import pytest
from hypothesis import given
from hypothesis import strategies as st

from automl.policy import Decision, Policy
from automl.policy_csv import load_csv, load_policy, save_csv
from automl.types import InputError


@st.composite
def policies(draw):
    # Names are paths of modules: any letters and marks, no control characters.
    letters = st.characters(categories=["L", "N", "P"])
    names = draw(st.lists(st.text(letters, min_size=1), unique=True, min_size=1, max_size=6))
    made = []
    for name in names:
        units = draw(st.integers(1, 10**6))
        kept = draw(st.integers(1, units))
        made.append(Decision(name, "channel", 1 - kept / units, kept, units))
    return Policy(tuple(made))


@given(policies())
def test_a_policy_comes_back_with_the_same_counts(tmp_path_factory, policy):
    path = tmp_path_factory.mktemp("csv") / "policy.csv"
    save_csv(policy, path)
    back = load_csv(path)
    assert [d.kept for d in back.decisions] == [d.kept for d in policy.decisions]
    assert [d.target for d in back.decisions] == [d.target for d in policy.decisions]


def test_ratios_are_short_and_edited_ones_count(tmp_path):
    path = tmp_path / "policy.csv"
    save_csv(Policy((Decision("conv", "channel", 0.5, 8, 16),)), path)
    assert path.read_text() == "target,granularity,units,ratio\nconv,channel,16,0.5000\n"
    path.write_text(path.read_text().replace("0.5000", ".75"))
    assert load_policy(path).decisions[0].kept == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("target,units,ratio\n", "no column 'granularity'"),
        (
            "target,granularity,units,ratio\na,channel,16,1.5\n",
            r"line 2: ratio must be in \[0, 1\)",
        ),
        ("target,granularity,units,ratio\na,channel,x,.5\n", "line 2: units must be a whole"),
        ("target,granularity,units,ratio\na,channel\n", "line 2: units must be a whole"),
        ("target,granularity,units,ratio\na,channel,0,.5\n", r"units must be in \[1, "),
        (
            "target,granularity,units,ratio\na,channel,4,.5\na,channel,4,.5\n",
            "must name every target once",
        ),
        ("\x00", "no column"),
        ("target,granularity,units,ratio\na,channel,4,0,5\n", "line 2: more fields than columns"),
        ("target,granularity,units,ratio\n", "holds no rows"),
    ],
)
def test_bad_lines_are_named(tmp_path, text, message):
    path = tmp_path / "policy.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        load_csv(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot read policy"):
        load_policy(tmp_path / "no.csv")


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        ("target,granularity,units,ratio", f"{'a' * 200_000},channel,4,.5", "field larger than"),
        ("units,ratio,target,granularity", "4,.5,a", "line 2: there is no granularity"),
        ("units,ratio,granularity,target", "4,.5,channel", "line 2: there is no target"),
    ],
)
def test_rows_that_are_too_long_or_too_short_are_refused(tmp_path, header, row, message):
    path = tmp_path / "policy.csv"
    path.write_text(f"{header}\n{row}\n")
    with pytest.raises(InputError, match=message) as caught:
        load_csv(path)
    assert len(str(caught.value)) < 1000
