import json

import numpy as np
import pytest
import toy
from hypothesis import given
from hypothesis import strategies as st

from automl.policy import Decision, Policy
from automl.types import InputError


@st.composite
def decisions(draw, name: str = "a") -> Decision:
    units = draw(st.integers(1, 40))
    kept = draw(st.integers(1, units))
    chosen = draw(st.none() | st.permutations(range(units)).map(lambda p: tuple(sorted(p[:kept]))))
    ratio = draw(st.floats(0, 1, exclude_max=True))
    return Decision(name, draw(st.sampled_from(["channel", "head"])), ratio, kept, units, chosen)


@st.composite
def policies(draw) -> Policy:
    names = draw(st.lists(st.text(max_size=8), max_size=5, unique=True))
    return Policy(tuple(draw(decisions(name)) for name in names), draw(st.text(max_size=4)))


SMALL = Policy(
    (Decision("conv1", "channel", 0.5, 2, 4, (0, 3)), Decision("conv2", "channel", 0.0, 8, 8)),
    "abc",
)


@given(policies())
def test_json_round_trip_keeps_everything_and_is_byte_stable(policy):
    text = policy.to_json()
    again = Policy.from_json(text)
    assert again == policy and again.key == policy.key and again.model_hash == policy.model_hash
    assert again.to_json() == text
    assert [d.ratio for d in again.decisions] == [d.ratio for d in policy.decisions]
    assert [d.indices for d in again.decisions] == [d.indices for d in policy.decisions]


@given(decisions(), st.floats(0, 1, exclude_max=True))
def test_the_requested_ratio_does_not_matter_for_equality(decision, ratio):
    fields = (decision.kept, decision.units, decision.indices)
    other = Decision(decision.target, decision.granularity, ratio, *fields)
    assert other == decision and hash(other) == hash(decision)
    assert Policy((other,)).key == Policy((decision,)).key


@given(decisions(), decisions())
def test_equal_means_equal_key_and_equal_hash(a, b):
    assert (Policy((a,)) == Policy((b,))) == (a == b) == (Policy((a,)).key == Policy((b,)).key)
    if a == b:
        assert hash(Policy((a,))) == hash(Policy((b,)))


def test_keeping_all_units_is_the_same_with_and_without_indices():
    assert Decision("a", "channel", 0, 3, 3) == Decision("a", "channel", 0, 3, 3, (0, 1, 2))
    assert Decision("a", "channel", 0, 2, 3) != Decision("a", "channel", 0, 2, 3, (0, 1))


def test_the_order_of_decisions_does_not_matter_for_equality():
    assert Policy(SMALL.decisions[::-1]) == SMALL
    assert SMALL != "policy" and SMALL.decisions[0] != "decision"


def test_numpy_numbers_become_plain_ones():
    kept, indices = np.array([2, 8]), [np.array([1, 2]), None]
    policy = Policy.from_kept(toy.targets(4, 8), kept, indices=indices)
    json.loads(policy.to_json())
    assert policy.decisions[0].indices == (1, 2)
    assert policy.decisions[0].ratio == policy.decisions[0].removed == 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratio": 1.0}, r"Decision.ratio must be in \[0, 1\), got 1.0"),
        ({"ratio": -0.1}, "Decision.ratio"),
        ({"ratio": float("nan")}, "Decision.ratio"),
        ({"ratio": "0.5"}, "Decision.ratio must be a number"),
        ({"kept": 0}, r"Decision.kept must be in \[1, 4\], got 0"),
        ({"kept": 5}, "Decision.kept"),
        ({"kept": True}, "Decision.kept must be an integer"),
        ({"kept": 2.0}, "Decision.kept must be an integer"),
        ({"units": 0}, "Decision.units"),
        ({"units": 2**63}, "Decision.units"),
        ({"indices": (0,)}, "Decision.indices must hold kept=2"),
        ({"indices": (1, 1)}, "rise strictly"),
        ({"indices": (2, 1)}, "rise strictly"),
        ({"indices": (-1, 1)}, "rise strictly"),
        ({"indices": (0, 4)}, "rise strictly"),
        ({"indices": (0.0, 1.0)}, "Decision.indices must be integers"),
        ({"indices": (0, 2**70)}, "Decision.indices"),
    ],
)
def test_a_decision_that_breaks_a_rule_is_refused(changes, message):
    fields = {"ratio": 0.5, "kept": 2, "units": 4, "indices": (0, 1), **changes}
    with pytest.raises((ValueError, TypeError), match=message):
        Decision("a", "channel", **fields)


def test_a_target_decided_twice_is_refused():
    with pytest.raises(ValueError, match="'conv1' twice"):
        Policy((SMALL.decisions[0], SMALL.decisions[0]))


def test_kept_follows_the_order_of_the_targets():
    pair = toy.targets(4, 8)
    policy = Policy(Policy.from_kept(pair, [2, 6]).decisions[::-1])
    assert policy.kept(pair).tolist() == [2, 6]


def test_the_first_mismatch_with_another_network_is_named():
    policy = Policy.from_kept(toy.targets(16, 16), [8, 8])
    for other, message in [
        (toy.targets(16, 32), "target 'layer1' has 16 units, this model has 32"),
        (toy.targets(32, 32), "target 'layer0' has 16 units, this model has 32"),
        (toy.targets(16), "prunes target 'layer1', which this model does not have"),
        (toy.targets(16, 16, 4), "says nothing of target 'layer2', which this model has"),
        (toy.targets(16, 16, kind="head"), "'layer0' is pruned by channel, here by head"),
    ]:
        with pytest.raises(InputError, match=f"policy was learned on another network: .*{message}"):
            policy.check(other)
        with pytest.raises(InputError, match="another network"):
            policy.kept(other)


def test_other_weights_are_refused_unless_asked_for():
    pair = toy.targets(4, 8)
    policy = Policy.from_kept(pair, [2, 8], model_hash="a" * 64)
    policy.check(pair)
    policy.check(pair, "a" * 64)
    policy.counts_alone().check(pair, "b" * 64)
    with pytest.raises(
        InputError, match=r"other weights .*aaaaaaaaaaaa, this model has bbbb.*apply"
    ):
        policy.check(pair, "b" * 64)


def test_csv_files_name_their_reader(tmp_path):
    with pytest.raises(InputError, match=r"is CSV: read it with automl\.policy_csv\.load_csv\("):
        Policy.load(tmp_path / "policy.csv")


def test_save_and_load(tmp_path):
    SMALL.save(tmp_path / "policy.json")
    assert Policy.load(tmp_path / "policy.json") == SMALL
    assert [path.name for path in tmp_path.iterdir()] == ["policy.json"]
    document = json.loads((tmp_path / "policy.json").read_text())
    assert (document["schema"], document["version"]) == ("prunepilot/policy", 1)
    assert document["decisions"][0] == {
        "target": "conv1", "granularity": "channel", "ratio": 0.5, "kept": 2, "units": 4,
        "indices": [0, 3],
    }  # fmt: skip


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"cannot read policy .*none.json': No such file"):
        Policy.load(tmp_path / "none.json")


def test_the_table_shows_what_was_asked_and_what_is_removed():
    table = SMALL.to_frame()
    assert table.columns.tolist() == ["target", "granularity", "units", "kept", "ratio", "removed"]
    assert table.removed.tolist() == [0.5, 0.0]
    assert len(Policy(()).to_frame()) == 0


DOCUMENT = json.loads(SMALL.to_json())


def refused(text) -> str:
    with pytest.raises(InputError, match="is not a policy") as caught:
        Policy.from_json(text, "p.json")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        ("[]", '"schema": "prunepilot/policy"'),
        (b"\xff\xfe\x00", "p.json"),
        ("[" * 100_000, "recursion"),
        ('{"schema": "a", "schema": "b"}', "given twice"),
        (json.dumps({**DOCUMENT, "version": 2}), "version is 2, this release reads version 1"),
        (json.dumps({**DOCUMENT, "version": True}), "version is True"),
        (json.dumps({**DOCUMENT, "extra": 1}), "unknown field 'extra'"),
        (json.dumps({**DOCUMENT, "decisions": {}}), "must be a list"),
        (json.dumps({**DOCUMENT, "model_hash": 1}), "model_hash must be a string"),
        (SMALL.to_json().replace("0.5", "NaN"), "NaN is not a JSON number"),
        (SMALL.to_json().replace("0.5", "1e999"), r"decisions[0].ratio must be in [0, 1), got inf"),
        (SMALL.to_json().replace('"kept": 2', '"kept": ' + "9" * 5000), "p.json"),
        (SMALL.to_json().replace('"kept": 2', '"kept": true'), "decisions[0].kept has the wrong"),
        (SMALL.to_json().replace('"kept": 2', '"kept": 9'), r"decisions[0].kept must be in [1, 4]"),
        (SMALL.to_json().replace("[0, 3]", "[false, 3]"), "decisions[0].indices must be integers"),
        (SMALL.to_json().replace("[0, 3]", "[3, 0]"), "decisions[0].indices must rise strictly"),
        (SMALL.to_json().replace("conv2", "conv1"), "'conv1' twice"),
        (SMALL.to_json().replace('"units": 4, ', ""), "decisions[0] has no field 'units'"),
    ],
)
def test_what_is_no_policy_is_refused_in_one_line(text, message):
    assert message in refused(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.binary(max_size=60) | JSON.map(json.dumps))
def test_arbitrary_content_is_refused_and_never_anything_else(text):
    refused(text)


@given(
    st.sampled_from([*DOCUMENT, "more"]), st.sampled_from([*DOCUMENT["decisions"][0], "x"]), JSON
)
def test_any_field_may_hold_anything_and_only_input_errors_result(field, inner, value):
    decision = {**DOCUMENT["decisions"][0], inner: value}
    for document in ({**DOCUMENT, field: value}, {**DOCUMENT, "decisions": [decision]}):
        try:
            Policy.from_json(json.dumps(document))
        except InputError as error:
            assert len(str(error).splitlines()) == 1


@given(st.integers(0, len(SMALL.to_json()) - 1), st.binary(min_size=1, max_size=3))
def test_damaged_bytes_give_a_policy_or_an_input_error(at, noise):
    data = SMALL.to_json().encode()
    try:
        Policy.from_json(data[:at] + noise + data[at + len(noise) :])
    except InputError:
        pass
