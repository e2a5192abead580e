"""``prunepilot trace`` with a grain inside layers: what it would prune, and what it leaves."""


def test_weights_are_listed_with_their_grain_and_those_that_do_not_fit(cli):
    result = cli("trace", "model=digits", "granularity=nm:4", "granularity.layers={linear: nm:8}")
    assert result.code == 0
    inside = result.out[result.out.index("13 weights that can be pruned inside") :].splitlines()
    row = next(line for line in inside if line.startswith("blocks.0.conv1.weight"))
    assert row.split()[:4] == ["blocks.0.conv1.weight", "nm:4", "4", "9216"]
    assert "2:4 sparse tensor cores" in row
    assert any(line.startswith("linear.weight ") and "nm:8" in line for line in inside)
    assert "its 1 input channels (per group) do not fill a group of 4" in inside[-1]


def test_channels_alone_need_no_such_list(cli):
    assert "pruned inside" not in cli("trace", "model=digits").out


def test_layers_with_a_grain_of_their_own_are_listed_beside_channels(cli):
    result = cli("trace", "model=digits", "granularity.layers={linear: nm:8}")
    assert "1 weights that can be pruned inside" in result.out
    typo = cli("trace", "model=digits", "granularity.layers={linearX: nm:8}")
    assert typo.code == 2 and "pattern 'linearX' matches no layer" in typo.err
