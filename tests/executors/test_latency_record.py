import json

import numpy as np
import pytest
import torch
from lut_networks import EXAMPLE, NETWORKS, Attention, ByHand, Fickle, Residual
from torch import nn

from automl.commands.build import Bench
from automl.commands.compose import compose
from automl.cost.lut.operators import Operators
from automl.cost.lut.signature import Signature, canonical
from automl.executors.latency_networks import Deployed
from automl.executors.latency_record import Unrecordable, record
from automl.executors.latency_replay import find_function, replay
from automl.fitting import Space
from automl.graph.trace import trace
from automl.types import InputError

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=NETWORKS)
def deployed(request):
    torch.manual_seed(0)
    return Deployed(trace(NETWORKS[request.param](), EXAMPLE), CPU)


@pytest.fixture(scope="module")
def residual():
    torch.manual_seed(0)
    return Deployed(trace(Residual(), EXAMPLE), CPU)


def random_counts(plan, seed):
    rng = np.random.default_rng(seed)
    return rng.integers(np.minimum(2, plan.dense), plan.dense + 1)


def test_operators_are_those_that_run_with_norms_folded_and_activations_fused(residual):
    found = [str(s) for s in residual.operators().at(residual.plan.dense)]
    assert found == [
        "conv2d 3x3 3->16 @8x8 relu",
        "conv2d 1x1 16->32 @8x8 silu",
        "conv2d 3x3 32->32 groups=32 @8x8 relu6_",
        "conv2d 1x1 32->16 @8x8",
        "add 16->16 @8x8",
        "relu 16->16 @8x8",
        "max_pool2d 16->16 @8x8",
        "adaptive_avg_pool2d 16->16 @4x4",
        "flatten 16->16 @1x1",
        "linear 16->5 @1x1",
    ]


@pytest.mark.parametrize("seed", range(4))
def test_operators_of_any_slim_network_are_foreseen(deployed, seed):
    kept = random_counts(deployed.plan, seed)
    recorded = record(deployed.network(kept), deployed.inputs())
    assert deployed.operators().at(kept) == recorded


def test_attention_is_an_operator(deployed):
    kinds = {s.kind for s in deployed.operators().at(deployed.plan.dense)}
    if deployed.plan.graph_targets and "einsum" not in kinds:
        assert "scaled_dot_product_attention" in kinds and "layer_norm" in kinds


def test_the_batch_is_part_of_the_signature(residual):
    for one, two in zip(
        residual.operators().at(residual.plan.dense),
        residual.operators(batch=2).at(residual.plan.dense),
        strict=True,
    ):
        assert (one.batch, two.batch) == (1, 2)


def test_names_of_layers_are_nowhere(residual):
    for signature in residual.operators().at(residual.plan.dense):
        for name, _ in Residual().named_modules():
            assert not name or f'"{name}"' not in repr(signature)


# ---- identities


def test_keys_are_equal_exactly_where_signatures_are(deployed):
    operators = deployed.operators()
    rng = np.random.default_rng(1)
    kept = rng.integers(1, deployed.plan.dense + 1, size=(2, 20, len(deployed.plan.dense)))
    keys = operators.keys(kept)
    assert keys.shape == (2, 20, len(operators.operators))
    by_key: dict[int, set[Signature]] = {}
    by_signature: dict[tuple[str, Signature], set[int]] = {}
    for row, row_keys in zip(kept.reshape(40, -1), keys.reshape(40, -1), strict=True):
        found = zip(operators.operators, operators.at(row), row_keys.tolist(), strict=True)
        for operator, signature, key in found:
            by_key.setdefault(key, set()).add(signature)
            by_signature.setdefault((operator.family, signature), set()).add(key)
    assert all(len(found) == 1 for found in by_key.values())
    assert all(len(found) == 1 for found in by_signature.values())


def test_what_a_search_can_reach_is_what_the_grids_give(deployed):
    operators, plan = deployed.operators(), deployed.plan
    grids = Space.of(plan.targets, 8).grids()
    reachable = operators.reachable(grids)
    assert len(reachable) == len(set(reachable))
    rng = np.random.default_rng(0)
    met = set()
    for _ in range(300):
        kept = np.array([rng.choice(grid) for grid in grids])
        met |= set(operators.at(kept))
    assert met <= set(reachable)
    # Nothing is measured that no network has; three hundred random ones meet nearly all.
    assert len(met) > 0.9 * len(reachable)


def test_layers_of_equal_shape_share_their_entries():
    class Twins(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 1)
            self.a, self.b = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
            self.head = nn.Linear(8, 5)

        def forward(self, x):
            x = self.stem(x)
            return self.head((x + self.b(x + self.a(x))).mean((2, 3)))

    operators = Deployed(trace(Twins(), EXAMPLE), CPU).operators()
    found = operators.at(operators.plan.dense)
    convolutions = [s for s in found if s.kernel == (3, 3)]
    assert len(convolutions) == 2 and len(set(convolutions)) == 1
    keys = operators.keys(operators.plan.dense)[[found.index(s) for s in convolutions]]
    assert len(set(keys.tolist())) == 1


def test_a_network_that_changes_its_operators_is_refused():
    deployed = Deployed(trace(Fickle(), EXAMPLE), CPU)
    with pytest.raises(InputError, match="no table fits it"):
        deployed.operators()


def test_arguments_that_are_no_data_are_refused():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.Tensor.sum(x, dtype=torch.float32) + torch.as_tensor(np.ones(3))

    with pytest.raises(Unrecordable, match="ndarray"):
        record(Odd(), (EXAMPLE,))


# ---- replaying


def test_every_operator_can_be_run_again(deployed):
    for signature in deployed.operators().at(random_counts(deployed.plan, 9)):
        one = replay(signature, CPU)
        with torch.inference_mode():
            out = one.call()
        assert isinstance(out, torch.Tensor | tuple | list)


def test_a_replayed_operator_is_recorded_as_itself(deployed):
    class Again(nn.Module):
        def __init__(self, call):
            super().__init__()
            self.call = call

        def forward(self, x):
            return self.call()

    for signature in deployed.operators().at(deployed.plan.dense):
        if signature.kind in ("conv2d", "linear"):
            assert record(Again(replay(signature, CPU).call), (EXAMPLE,)) == (signature,)


@pytest.mark.parametrize(
    "name", ["os.system", "torch.hub.load", "torch.load.x", "builtins.eval", "aten.no_such.op", ""]
)
def test_nothing_but_torch_functions_is_called(name):
    with pytest.raises(InputError, match="which is no torch"):
        find_function(name)


def test_formats_without_an_executor_are_refused():
    with pytest.raises(InputError, match="has no executor"):
        replay(Signature("linear", 1, 4, 4, 1, 1, format="cscc", density=0.1), CPU)


@pytest.mark.parametrize("form", ["csc", "pell", "nm24", "spmm"])
def test_linear_layers_are_replayed_in_their_format(form):
    detail = '{"bias":true,"lead":[]}'
    batch = 5 if form == "spmm" else 1
    one = replay(
        Signature(
            "linear",
            batch,
            250,
            40,
            1,
            1,
            fused=("relu",),
            format=form,
            density=0.25,
            detail=detail,
        ),
        CPU,
    )
    y = one.call()
    assert y.shape == (batch, 40) and float(y.min()) >= 0 and one.size_bytes < 4 * 250 * 40


def test_convolutions_are_replayed_in_their_format():
    detail = '{"bias":false,"dilation":[1,1],"padding":[1,1]}'
    signature = Signature(
        "conv2d", 2, 8, 6, 9, 7, (3, 3), (2, 2), 2, format="conv", density=0.2, detail=detail
    )
    assert replay(signature, CPU).call().shape == (2, 6, 5, 4)


@pytest.mark.parametrize("network", [Attention, ByHand])
@pytest.mark.parametrize("heads", [1, 2])
def test_one_head_of_two_is_foreseen_but_for_how_views_lie(heads, network):
    deployed = Deployed(trace(network(heads=2), EXAMPLE), CPU)
    plan = deployed.plan
    kept = plan.dense.copy()
    kept[[target.units == 2 for target in plan.targets]] = heads
    pairs = zip(
        deployed.operators().at(kept),
        record(deployed.network(kept), deployed.inputs()),
        strict=True,
    )
    for foreseen, found in pairs:
        assert str(foreseen) == str(found)
        if foreseen.kind == "scaled_dot_product_attention":
            same = [_no_layout(json.loads(one.detail)) for one in (foreseen, found)]
            assert same[0] == same[1]
        if foreseen.kind in ("linear", "conv2d", "layer_norm"):
            assert foreseen == found
        replay(foreseen, CPU).call()


class GroupedQueries(nn.Module):
    """Attention in which two heads of queries share each of two heads of keys and values."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Linear(6, 32)
        self.query, self.key, self.value = (nn.Linear(32, 4 * heads) for heads in (4, 2, 2))
        self.out, self.head = nn.Linear(16, 32), nn.Linear(32, 5)

    def forward(self, x):
        x = self.enter(x)
        q, k, v = (
            layer(x).view(*x.shape[:2], heads, 4).transpose(1, 2)
            for layer, heads in ((self.query, 4), (self.key, 2), (self.value, 2))
        )
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.head((x + self.out(y.transpose(1, 2).flatten(2))).mean(1))


class OtherTokens(nn.Module):
    """Attention over keys and values of their own width."""

    def __init__(self):
        super().__init__()
        self.enter, self.head = nn.Linear(6, 16), nn.Linear(16, 5)
        self.attention = nn.MultiheadAttention(16, 4, kdim=6, vdim=6, batch_first=True)

    def forward(self, x):
        q = self.enter(x)
        return self.head((q + self.attention(q, x, x, need_weights=False)[0]).mean(1))


@pytest.mark.parametrize("network", [GroupedQueries(), OtherTokens()])
def test_small_attention_whose_first_recordings_leave_sizes_open_is_recorded_again(network):
    deployed = Deployed(trace(network, torch.zeros(2, 7, 6)), CPU)
    operators, plan = deployed.operators(), deployed.plan
    for seed in range(3):
        kept = random_counts(plan, seed)  # two heads at least
        recorded = record(deployed.network(kept), deployed.inputs())
        assert [s for s in operators.at(kept) if s.kind == "linear"] == [
            s for s in recorded if s.kind == "linear"
        ]
        for signature in operators.at(kept):
            replay(signature, CPU).call()


def _no_layout(value):
    if isinstance(value, dict):
        return {k: _no_layout(v) for k, v in value.items() if k not in ("layout", "strides")}
    return [_no_layout(item) for item in value] if isinstance(value, list) else value


def test_a_transformer_whose_heads_are_cut_unevenly_has_a_table():
    bench = Bench(compose(["model=bert_tiny", "threads=1"]))
    trace_ = trace(bench.loaded.model, bench.loaded.example_inputs)
    deployed = Deployed(trace_, CPU)
    for signature in deployed.operators().at(random_counts(deployed.plan, 0)):
        replay(signature, CPU).call()


def test_a_stride_that_is_left_out_in_some_networks_follows_nothing(residual):
    plan = residual.plan
    kepts = [plan.dense, plan.dense - 1, plan.dense - 2]

    def record_of(stride):
        tensor = {"tensor": [1, 2, 5], "dtype": "float32", "strides": [0, stride, 1]}
        return [Signature("transpose", 1, 2, 5, 5, 1, detail=canonical({"args": [tensor]}))]

    # 7919 is no axis's length: of a dimension that has one element in the first network.
    records = [record_of(stride) for stride in (0, 7919, 7919)]
    (operator,) = Operators.align(plan, kepts, records).operators
    assert not operator.slots and 7919 in operator.numbers
