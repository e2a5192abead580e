import copy
import hashlib
import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from automl.training.state import digest, digest_module, evaluating, restored_modes


def make_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Sequential(nn.Dropout()))


def test_evaluating_restores_mixed_modes():
    network = make_network().train()
    network[1].eval()
    with evaluating(network):
        assert not any(module.training for module in network.modules())
    assert network.training and network[0].training and network[2][0].training
    assert not network[1].training


def test_modes_come_back_after_an_error():
    network = make_network().eval()
    with pytest.raises(KeyError), restored_modes(network):
        network.train()
        raise KeyError
    assert not any(module.training for module in network.modules())


def test_a_digest_depends_on_values_shape_and_type_alone():
    x = torch.arange(6.0)
    expected = digest(x.reshape(2, 3))
    assert digest(x.reshape(3, 2).T.contiguous().T.reshape(2, 3)) == expected
    strided = torch.stack([x, -x], dim=1)[:, 0].reshape(2, 3)
    assert digest(strided) == expected
    assert digest(nn.Parameter(x.reshape(2, 3))) == expected
    others = [x, x.reshape(3, 2), x.reshape(2, 3).double(), -x.reshape(2, 3), x.bfloat16()]
    assert len({expected, *map(digest, others)}) == 6


def test_a_digest_is_sha256_over_sized_json_and_little_endian_values():
    # Journals on disk are keyed by it, so that it must not change.
    chunks = [
        b'{"a": [null, "x"], "b": 1}',
        b'["torch.float32", [2]]',
        struct.pack("<2f", 1.5, -2.0),
    ]
    expected = hashlib.sha256(b"".join(struct.pack("<Q", len(c)) + c for c in chunks)).hexdigest()
    assert digest({"b": 1, "a": [None, "x"]}, torch.tensor([1.5, -2.0])) == expected


@given(st.lists(st.one_of(st.none(), st.integers(), st.text(max_size=3)), max_size=4), st.data())
def test_where_parts_begin_and_end_counts(parts, data):
    cut = data.draw(st.integers(0, len(parts)))
    assert digest(*parts) == digest(*parts)
    assert digest(parts[:cut], parts[cut:]) != digest(*parts)


def test_scalars_and_empty_tensors_have_digests():
    assert digest(torch.tensor(1)) != digest(torch.tensor([1]))
    assert digest(torch.zeros(0, 3)) != digest(torch.zeros(3, 0))


def test_what_is_no_json_is_refused():
    with pytest.raises(TypeError):
        digest(np.float32)


def test_module_digests_follow_weights_and_buffers_not_modes_or_devices():
    network = make_network()
    expected = digest_module(network)
    assert digest_module(copy.deepcopy(network).eval()) == expected
    layout = nn.Conv2d(3, 4, 3)
    assert digest_module(layout) == digest_module(
        copy.deepcopy(layout).to(memory_format=torch.channels_last)
    )
    network[1].running_mean += 1
    assert digest_module(network) != expected
