import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from automl.cost.lut.signature import Signature, canonical, fill, flatten

sizes = st.integers(1, 4096)
signatures = st.builds(
    Signature,
    kind=st.sampled_from(["conv2d", "linear", "add", "#"]),
    batch=sizes,
    in_channels=sizes,
    out_channels=sizes,
    height=sizes,
    width=sizes,
    kernel=st.lists(sizes, max_size=3).map(tuple),
    stride=st.lists(sizes, max_size=3).map(tuple),
    groups=sizes,
    fused=st.sampled_from([(), ("relu",), ("relu6_",)]),
    density=st.sampled_from([1.0, 0.5]),
    detail=st.dictionaries(
        st.text(max_size=3), st.one_of(st.booleans(), sizes, st.lists(sizes, max_size=3))
    ).map(canonical),
)


@given(signatures.filter(lambda s: s.kind != "#"))
def test_a_skeleton_filled_with_its_numbers_is_the_signature(signature):
    assert fill(*flatten(signature)) == signature


def test_pruned_operators_share_a_skeleton_and_others_do_not():
    base = Signature("conv2d", 1, 16, 32, 8, 8, (3, 3), (1, 1))
    slim = Signature("conv2d", 1, 12, 24, 8, 8, (3, 3), (1, 1))
    fused = Signature("conv2d", 1, 16, 32, 8, 8, (3, 3), (1, 1), fused=("relu",))
    assert flatten(base)[0] == flatten(slim)[0] != flatten(fused)[0]


def test_truth_values_are_no_numbers():
    with_bias = Signature("linear", 1, 4, 4, 1, 1, detail='{"bias":true}')
    skeleton, numbers = flatten(with_bias)
    assert json.loads(fill(skeleton, numbers).detail) == {"bias": True}


@pytest.mark.parametrize(
    ("signature", "text"),
    [
        (
            Signature("conv2d", 1, 16, 32, 32, 32, (3, 3), (2, 2), fused=("relu",)),
            "conv2d 3x3/2 16->32 @32x32 relu",
        ),
        (
            Signature("conv2d", 1, 96, 96, 8, 8, (3, 3), (1, 1), groups=96),
            "conv2d 3x3 96->96 groups=96 @8x8",
        ),
        (
            Signature("linear", 1, 64, 10, 1, 1, format="2:4", density=0.5),
            "linear 64->10 @1x1 2:4 0.5",
        ),
    ],
)
def test_signatures_read_like_what_they_are(signature, text):
    assert str(signature) == text
