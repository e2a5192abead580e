import json
import pickle
import pickletools
import resource
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from automl.cost.lut import importing
from automl.cost.lut.fingerprint import LAYERS_ONLY
from automl.cost.lut.importing import bare, import_table
from automl.cost.lut.safe_pickle import load_plain
from automl.cost.lut.signature import Signature
from automl.executors.latency_record import record
from automl.types import InputError


def netadapt_layer(**changes):
    """What the official NetAdapt writes of one layer."""
    return {
        "is_depthwise": False,
        "num_in_channels": 16,
        "num_out_channels": 32,
        "kernel_size": (3, 3),
        "stride": (2, 2),
        "padding": (1, 1),
        "groups": 1,
        "layer_type_str": "Conv2d",
        "input_feature_map_size": [1, 16, 28, 28],
        "latency": {(16, 32): 1.5e-4, (8, 32): 9e-5},
        **changes,
    }


def pickled(tmp_path, document):
    path = tmp_path / "lut.pkl"
    path.write_bytes(pickle.dumps(document))
    return path


def test_the_table_of_the_official_netadapt_is_read(tmp_path):
    layers = OrderedDict(
        first=netadapt_layer(),
        twin=netadapt_layer(),
        deep=netadapt_layer(
            is_depthwise=True, groups=32, stride=(1, 1), latency={(16, 16): 1e-5, (32, 32): 2e-5}
        ),
        fc=netadapt_layer(layer_type_str="Linear", kernel_size=(1, 1), latency={(64.0, 10): 4e-6}),
    )
    source = pickled(tmp_path, layers)
    table = import_table(source, tmp_path / "out.json", device="Pixel 1", batch=4)
    assert table.fingerprint.covers == LAYERS_ONLY
    assert table.fingerprint.processor == "Pixel 1"
    times = {signature: entry.median_us for signature, entry in table.entries.items()}
    assert times == {
        Signature("conv2d", 4, 16, 32, 28, 28, (3, 3), (2, 2)): 150.0,
        Signature("conv2d", 4, 8, 32, 28, 28, (3, 3), (2, 2)): 90.0,
        Signature("conv2d", 4, 16, 16, 28, 28, (3, 3), (1, 1), 16): 10.0,
        Signature("conv2d", 4, 32, 32, 28, 28, (3, 3), (1, 1), 32): 20.0,
        Signature("linear", 4, 64, 10, 1, 1): 4.0,
    }


def test_imported_transposed_convolutions_are_found(tmp_path):
    layer = nn.ConvTranspose2d(16, 32, 4, 2, 1, groups=2, bias=False)
    row = netadapt_layer(
        layer_type_str="ConvTranspose2d", kernel_size=(4, 4), groups=2, latency={(16, 32): 7e-6}
    )
    source = pickled(tmp_path, {"up": row})
    table = import_table(source, tmp_path / "out.json", device="Pixel 1")
    (executed,) = record(layer, [torch.zeros(1, 16, 28, 28)])
    assert table.entries[bare(executed)].median_us == 7.0


@pytest.mark.parametrize(
    "layer",
    [
        {"latency": {}},
        netadapt_layer(layer_type_str="LSTM"),
        netadapt_layer(latency={(16, 32): -1.0}),
        netadapt_layer(latency={(16, 32): 1e-12}),
        netadapt_layer(kernel_size=(3, 3, 3)),
        netadapt_layer(latency={(16, 32): float("nan")}),
        netadapt_layer(latency={(16,): 1.0}),
        netadapt_layer(latency={(0, 32): 1.0}),
        netadapt_layer(latency={(1.5, 32): 1.0}),
        netadapt_layer(input_feature_map_size=[1]),
        7,
    ],
)
def test_other_pickles_are_no_table_of_netadapt(tmp_path, layer):
    source = pickled(tmp_path, {"conv": layer})
    with pytest.raises(InputError, match="no table of NetAdapt: layer 'conv'") as refused:
        import_table(source, tmp_path / "out.json", device="x")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out.json").exists()


def test_layers_of_one_shape_must_agree(tmp_path):
    other = netadapt_layer(latency={(16, 32): 1.0})
    source = pickled(tmp_path, {"a": netadapt_layer(), "b": other})
    with pytest.raises(InputError, match="says two things of conv2d"):
        import_table(source, tmp_path / "out.json", device="x")


# ---- pickles that want more than data


class Payload:
    """Writes a file when it is unpickled as usual."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


class Evaluated:
    def __reduce__(self):
        return eval, ("__import__('os').getpid()",)


class Stateful:
    def __reduce__(self):
        return OrderedDict, (), {"__class__": 1}, None, iter([("a", Evaluated())])


def test_a_payload_is_refused_in_one_line_and_never_run(tmp_path):
    mark = tmp_path / "pwned"
    source = pickled(tmp_path, {"conv": netadapt_layer(latency=Payload(mark))})
    with pytest.raises(InputError, match=r"refused: it asks to call .*open") as refused:
        import_table(source, tmp_path / "out.json", device="x")
    assert "\n" not in str(refused.value)
    assert not mark.exists()


@pytest.mark.parametrize("document", [Evaluated(), [Evaluated()], Stateful(), len, Payload])
def test_nothing_but_plain_data_is_made(tmp_path, document):
    with pytest.raises(InputError, match="refused"):
        load_plain(pickled(tmp_path, document))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_of_every_protocol_is_read(tmp_path, protocol):
    document = OrderedDict(a=[1, 2.5, ("x", None)], b={(1, 2): True})
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(document, protocol))
    assert load_plain(path) == document


_VALID = pickle.dumps({"conv": netadapt_layer()})
_PROGRAM = b"cos\nsystem\n(S'true'\ntR."


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.integers(0, len(_VALID)).map(lambda n: _VALID[:n]),
        st.tuples(st.integers(0, len(_VALID) - 1), st.binary(min_size=1, max_size=8)).map(
            lambda cut: _VALID[: cut[0]] + cut[1] + _VALID[cut[0] :]
        ),
        st.integers(0, len(_VALID) - 1).map(lambda n: _VALID[:n] + _PROGRAM),
    )
)
def test_broken_pickles_are_read_or_refused_but_never_more(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("fuzz") / "a.pkl"
    path.write_bytes(content)
    try:
        load_plain(path)
    except InputError as refused:
        assert "\n" not in str(refused)
    else:
        names = [
            argument
            for opcode, argument, _ in pickletools.genops(content)
            if opcode.name == "GLOBAL"
        ]
        assert set(names) <= {"collections OrderedDict"}


def test_a_layer_whose_latency_is_a_list_is_refused_in_a_line(tmp_path):
    layer = {"layer_type_str": "Conv2d", "input_feature_map_size": [1, 16, 8, 8], "latency": [1]}
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"conv": layer}))
    with pytest.raises(InputError, match="layer 'conv' cannot be read"):
        list(importing._read_netadapt(path, 1))


@pytest.mark.parametrize("place", [b"r" + (2**30).to_bytes(4, "little"), b"p1073741824\n"])
def test_a_pickle_that_asks_for_all_memory_is_refused(tmp_path, place):
    path = tmp_path / "a.pkl"
    path.write_bytes(b"\x80\x04}" + place + b".")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="a value at place 1073741824 of"):
        load_plain(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 2**20  # in KiB


def test_a_file_too_large_for_a_table_is_not_read(tmp_path):
    path = tmp_path / "a.pkl"
    with open(path, "wb") as file:
        file.truncate(2**30)
    with pytest.raises(InputError, match="larger than any table"):
        load_plain(path)


# ---- CSV and JSON

CSV = """kind,in_channels,out_channels,kernel,stride,groups,height,width,median_us
conv2d,16,32,3x3,2x2,1,28,28,150
linear,64,10,,,1,1,1,4.5
"""
#: As a table of layers may hold beside them, but not alone.
OTHERS = "\n".join([CSV.splitlines()[0], "relu,16,16,,,1,28,28,3"])


def test_a_csv_of_layers_is_read(tmp_path):
    source = tmp_path / "a.csv"
    source.write_text(CSV)
    table = import_table(source, tmp_path / "out.json", device="phone")
    assert {str(s): e.median_us for s, e in table.entries.items()} == {
        "conv2d 3x3/2 16->32 @28x28": 150.0,
        "linear 64->10 @1x1": 4.5,
    }


def test_json_says_the_same_as_csv(tmp_path):
    rows = [
        {"kind": "conv2d", "in_channels": 16, "out_channels": 32, "kernel": [3, 3],
         "stride": [2, 2], "groups": 1, "height": 28, "width": 28, "median_us": 150},
        {"kind": "linear", "in_channels": 64, "out_channels": 10, "kernel": [], "stride": [],
         "groups": 1, "height": 1, "width": 1, "median_us": 4.5},
    ]  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.csv").write_text(CSV)
    tables = [
        import_table(tmp_path / f"a.{form}", tmp_path / f"out-{form}.json", device="phone")
        for form in ("csv", "json")
    ]
    assert tables[0].entries == tables[1].entries


def test_one_size_of_a_kernel_stands_for_all_dimensions(tmp_path):
    (tmp_path / "a.csv").write_text(CSV.replace("3x3,2x2", "3,2"))
    table = import_table(tmp_path / "a.csv", tmp_path / "out.json", device="phone")
    (executed,) = record(nn.Conv2d(16, 32, 3, 2, 1), [torch.zeros(1, 16, 28, 28)])
    assert table.entries[bare(executed)].median_us == 150.0


def test_fused_activations_may_be_a_list(tmp_path):
    row = dict(zip(CSV.split()[0].split(","), CSV.split()[1].split(","), strict=True))
    rows = [{**row, "fused": ["hardswish", "sigmoid"], "detail": {"bias": True}}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    table = import_table(tmp_path / "a.json", tmp_path / "out.json", device="phone")
    assert [signature.fused for signature in table.entries] == [("hardswish", "sigmoid")]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", CSV.replace("median_us", "ms"), "lacks the columns median_us"),
        ("a.csv", CSV.replace("150", "fast"), "line 2 cannot be read"),
        ("a.csv", CSV.replace("150", "0"), "line 2 cannot be read: median_us must be > 0, got 0"),
        ("a.csv", CSV.replace("3x3", "3x3x3"), "kernel of a conv2d must be 2 sizes >= 1, got 3x3"),
        ("a.csv", CSV.replace("2x2", ""), "stride of a conv2d must be 2 sizes >= 1, got none"),
        ("a.csv", CSV.replace("2x2", "0"), "stride of a conv2d must be 2 sizes >= 1, got 0"),
        ("a.csv", CSV.replace("conv2d", "Conv2d"), "has the kind 'Conv2d'; write 'conv2d'"),
        ("a.csv", OTHERS, "holds no layers: kinds are conv1d, .*, got 'relu'"),
        ("a.csv", CSV.splitlines()[0], "holds no operators"),
        ("a.csv", "", "holds no operators"),
        ("a.json", "{}", "must be a list"),
        ("a.json", "[1]", "must be a list"),
        ("a.json", "nonsense", "is no JSON"),
        ("a.json", "[" * 100_000, "is no JSON"),
        ("a.txt", "", "cannot tell the format"),
    ],
)
def test_files_that_are_no_table_are_told_apart(tmp_path, name, content, says):
    source = tmp_path / name
    source.write_text(content)
    with pytest.raises(InputError, match=says) as refused:
        import_table(source, tmp_path / "out.json", device="x")
    assert "\n" not in str(refused.value)


def test_bytes_that_are_no_text_are_said(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is no text"):
        import_table(tmp_path / "a.csv", tmp_path / "out.json", device="x")


def test_a_missing_file_is_said(tmp_path):
    for name in ("a.csv", "a.pkl"):
        with pytest.raises(InputError, match="cannot be read"):
            import_table(tmp_path / name, tmp_path / "out.json", device="x")


def test_no_table_is_overwritten(tmp_path):
    (tmp_path / "a.csv").write_text(CSV)
    import_table(tmp_path / "a.csv", tmp_path / "out.json", device="x")
    with pytest.raises(InputError, match="is there already"):
        import_table(tmp_path / "a.csv", tmp_path / "out.json", device="x")
