import subprocess
import sys

import pytest
import torch
from torch import nn

from automl.hashing import digest, weights_hash


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(4, 2))


def test_digest_depends_on_values_not_on_order_of_keys_or_kind_of_sequence():
    assert digest({"a": 1, "b": (1, 2)}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    assert digest("ab", "c") != digest("a", "bc") != digest("abc")


def test_digest_of_tensors_sees_type_shape_and_values_but_not_strides():
    x = torch.arange(6.0).reshape(2, 3)
    assert digest(x) == digest(x.t().contiguous().t())
    assert len({digest(x), digest(x.double()), digest(x.reshape(3, 2)), digest(x + 1)}) == 4
    assert digest(torch.tensor(1.0, dtype=torch.bfloat16)) != digest(torch.tensor(1.0))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_digest_refuses_numbers_that_json_does_not_have(value):
    with pytest.raises(ValueError, match="Out of range"):
        digest(value)


def test_digest_refuses_objects():
    with pytest.raises(TypeError):
        digest(object())


def test_digest_is_the_same_in_another_process_without_torch():
    program = "import sys; from automl.hashing import digest; print(digest({'b': [1.5], 'a': 'é'}))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == digest({"a": "é", "b": [1.5]})


def test_equal_weights_hash_alike_whatever_carries_them():
    model = network()
    same = network().to(memory_format=torch.channels_last)
    assert weights_hash(model) == weights_hash(same) == weights_hash(model.state_dict())
    assert weights_hash(dict(reversed(model.state_dict().items()))) == weights_hash(model)


def test_any_weight_or_buffer_changes_the_hash():
    before = weights_hash(network())
    for name, tensor in network().state_dict().items():
        model = network()
        with torch.no_grad():
            model.state_dict()[name].view(-1)[-1] += 1
        changed = weights_hash(model) != before
        assert changed == (not name.endswith("num_batches_tracked")), (name, tensor.dtype)


def test_names_count():
    state = network().state_dict()
    renamed = {f"module.{name}": tensor for name, tensor in state.items()}
    assert weights_hash(renamed) != weights_hash(state)
