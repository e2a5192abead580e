"""Pruning inside layers: exact costs, mixed grains, policies, repair, refusals."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import data, made, traced
from torch import nn
from torch.fx import GraphModule
from torch.nn import functional as F

import automl
from automl.cost.masked import masked_costs
from automl.graph.trace import trace
from automl.model_folder import load_pruned, save_pruned
from automl.models import load_model
from automl.policy import Policy
from automl.problem import Problem
from automl.pruning.criteria import load
from automl.pruning.grains import Grains
from automl.pruning.masked_plan import MaskedPlan
from automl.pruning.masks import masks_of
from automl.pruning.reconstruct import Reconstruction
from automl.pruning.regression import solve
from automl.pruning.sparse_pruner import SparsePruner, counts_from_ratios, global_counts
from automl.strategies import load as load_strategy
from automl.types import InputError

GRAINS = ["unstructured", "kernel", "vector:row", "nm:4", "block:4x4", "block:1x8"]
EXACT = [name for name in GRAINS if not name.startswith("block")]


@pytest.fixture(scope="module", params=["cnn", "vit"])
def traces(request):
    return traced(request.param)


def pruner(trace, *grains, layers=None, repaired=False, **more) -> SparsePruner:
    plan = MaskedPlan.of(trace.model, trace.plan, Grains.parse(grains, layers))
    images = data()[0] if repaired else None
    return SparsePruner(trace, plan, calibration=images, **more)


def nonzeros(network: nn.Module) -> int:
    """Parameters that no mask prunes."""
    masks = {id(network.get_parameter(name)): mask for name, mask in masks_of(network).items()}
    return sum(int(masks.get(id(p), torch.ones_like(p)).sum()) for p in network.parameters())


def sparse_macs(network: nn.Module, example: torch.Tensor) -> int:
    """Multiplications by weights that are left, found by running the network with hooks."""
    masks, total = masks_of(network), 0

    def hook(name):
        def count(module, inputs, output):
            nonlocal total
            left = int(masks.get(f"{name}.weight", torch.ones_like(module.weight)).sum())
            maps = output.numel() // len(output)
            features = output.shape[1] if isinstance(module, nn.Conv2d) else output.shape[-1]
            total += left * (maps // features)

        return count

    layers = [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    handles = [module.register_forward_hook(hook(name)) for name, module in layers]
    with torch.no_grad():
        network(example)
    for handle in handles:
        handle.remove()
    return total


@pytest.mark.parametrize("grain", [name for name in GRAINS if "kernel" not in name])
def test_the_counted_parameters_are_those_left(traces, grain):
    if grain.startswith("vector") and "proj" in str(traces.plan.layers[0].name):
        grain = "vector:column"
    one = pruner(traces, grain)
    for share in (0.3, 0.5, 0.9):
        kept = np.maximum((one.plan.dense * share).astype(int), 1)
        network = one.prune(one.policy(kept))
        counted = int(one.plan.params(kept))
        if grain in EXACT or "vector" in grain:
            assert counted == nonzeros(network)
        else:  # blocks at an edge count whole
            assert nonzeros(network) <= counted <= 1.1 * nonzeros(network)
        for name, mask in masks_of(network).items():
            assert (network.get_parameter(name)[~mask] == 0).all()


@pytest.mark.parametrize("grains", [("unstructured",), ("nm:4",), ("channel", "unstructured")])
def test_the_counted_macs_are_multiplications_by_what_is_left(grains):
    one = pruner(traced("cnn"), *grains)
    kept = np.maximum(one.plan.dense // 2, 1)
    network = one.prune(one.policy(kept))
    assert int(one.plan.macs(kept)) == sparse_macs(network, torch.zeros(1, 1, 8, 8))


def test_weights_that_are_not_trained_now_are_counted_all_the_same():
    network = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8)).eval()
    costs = []
    for trained in (True, False):
        one = pruner(trace(network.requires_grad_(trained), torch.zeros(2, 32)), "unstructured")
        kept = one.plan.dense // 4
        costs.append({name: float(cost(kept)) for name, cost in masked_costs(one.plan).items()})
    assert costs[0] == costs[1]
    assert costs[1]["params"] == nonzeros(one.prune(one.policy(kept)))


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_mixed_grains_are_counted_exactly(mixed, drawn):
    kept = np.array([drawn.draw(st.integers(1, t.units)) for t in mixed.plan.targets])
    network = mixed.prune(mixed.policy(kept))
    assert nonzeros(network) == int(mixed.plan.params(kept))
    assert network(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


@pytest.fixture(scope="module")
def mixed():
    return pruner(traced("cnn"), "channel", "unstructured", layers={"linear": "nm:4"})


def test_costs_are_batched_and_fall(mixed):
    dense = mixed.plan.dense
    batch = np.stack([dense, np.maximum(dense // 2, 1), np.ones_like(dense)])
    for model in masked_costs(mixed.plan).values():
        costs = model(batch)
        assert costs.tolist() == [float(model(kept)) for kept in batch]
        assert costs[0] > costs[1] > costs[2] > 0
    assert float(masked_costs(mixed.plan)["size_bytes"](dense)) == 4 * mixed.plan.params(dense)


def test_ratios_inside_layers_are_of_what_channels_leave(mixed):
    plan = mixed.plan
    kept = plan.dense.copy()
    kept[: len(plan.base.targets)] //= 2
    kept[-1] = 2  # 2:4 in the linear layer
    index = plan.target_index("blocks.0.conv2.weight")
    kept[index] //= 4
    masks = masks_of(mixed.prune(mixed.policy(kept)))
    assert int(masks["blocks.0.conv2.weight"].sum()) == masks["blocks.0.conv2.weight"].numel() // 4
    assert masks["linear.weight"].reshape(10, -1, 4).sum(-1).eq(2).all()


def test_a_mixed_policy_is_saved_loaded_and_applied(mixed, tmp_path):
    torch.manual_seed(0)
    dense = load_model("small.cnn", input_shape=(1, 8, 8))
    one = pruner(
        trace(dense.model, dense.example_inputs),
        "channel",
        "unstructured",
        layers={"linear": "nm:4"},
    )
    policy = one.policy(counts_from_ratios(one.plan, 0.5, 1))
    policy.save(tmp_path / "mine.json")
    again = Policy.load(tmp_path / "mine.json")
    assert again == policy and {d.granularity for d in again.decisions} == {
        "channel", "unstructured", "nm:4"
    }  # fmt: skip
    plan = MaskedPlan.for_policy(dense.model, one.trace.plan, again)
    assert [t.name for t in plan.targets] == [t.name for t in one.plan.targets]
    network = one.prune(policy)
    applied = SparsePruner(one.trace, plan).prune(again)
    save_pruned(tmp_path, network, dense=dense, plan=one.plan, policy=policy)
    loaded = load_pruned(tmp_path, trust=("small",))
    images = data()[0]
    with torch.no_grad():
        assert torch.equal(applied(images), network(images))
        assert torch.equal(loaded(images), network(images))
    found, wanted = masks_of(loaded), masks_of(network)
    assert found.keys() == wanted.keys() and all(found[n].equal(wanted[n]) for n in wanted)


def test_policies_stay_small_however_many_weights(tmp_path):
    one = pruner(traced("cnn"), "unstructured")
    policy = one.policy(one.plan.dense // 2)
    assert all(decision.indices is None for decision in policy.decisions)
    assert len(policy.to_json()) < 200 * len(policy.decisions) + 200


def test_a_folder_without_a_mask_is_refused(tmp_path):
    import safetensors.torch

    torch.manual_seed(0)
    dense = load_model("small.cnn", input_shape=(1, 8, 8))
    one = pruner(trace(dense.model, dense.example_inputs), "unstructured")
    policy = one.policy(one.plan.dense // 2)
    save_pruned(tmp_path, one.prune(policy), dense=dense, plan=one.plan, policy=policy)
    file = tmp_path / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    del tensors["linear.weight_mask.packed"]
    safetensors.torch.save_file(tensors, file)
    with pytest.raises(InputError, match=r"lacks the mask of linear\.weight"):
        load_pruned(tmp_path, trust=("small",))


def test_a_search_sees_no_difference():
    one = pruner(traced("cnn"), "unstructured")

    class Sum:
        fingerprint = "sum"

        def __call__(self, network):
            return float(sum(p.abs().sum() for p in network.parameters())), {}

    problem = Problem(
        one.plan, one, Sum(), {"macs": 0.3}, masked_costs(one.plan), rounding=one.plan.steps(8)
    )
    result = load_strategy("random").search(problem, 4, 0)
    kept = result.policy.kept(problem.targets)
    assert problem.within(kept) and len(result.trials) == 4
    assert all(len(grid) <= 2 * 64 for grid in problem.grids)


# ---- which weights


def test_the_least_important_weights_go():
    one = pruner(traced("cnn"), "unstructured", criterion="l1")
    masks = masks_of(one.prune(one.policy(one.plan.dense // 2)))
    for name, mask in masks.items():
        weight = one.trace.model.get_parameter(name).detach().abs()
        assert weight[mask].min() >= weight[~mask].max()


def test_one_ranking_over_all_layers_keeps_the_most_important_weights():
    one = pruner(traced("cnn"), "unstructured", criterion="l1")
    kept = global_counts(one, 0.6)
    total = sum(weight.units for weight in one.plan.weights)
    assert kept.sum() == round(0.4 * total)
    assert len({round(float(k / u), 2) for k, u in zip(kept, one.plan.dense, strict=True)}) > 3
    masks = masks_of(one.prune(one.policy(kept)))
    model = one.trace.model
    assert int(masks["linear.weight"].sum()) == 1  # its weights are small, but one has to stay
    others = {n: m for n, m in masks.items() if n != "linear.weight"}
    stay = [model.get_parameter(n).detach().abs()[m].min() for n, m in others.items()]
    gone = [model.get_parameter(n).detach().abs()[~m].max() for n, m in masks.items()]
    assert min(stay) >= max(gone)


@pytest.mark.parametrize("grain", ["nm:4", "kernel", "block:4x4"])
def test_one_ranking_compares_units_by_weight(grain):
    one = pruner(traced("cnn"), grain)
    kept = global_counts(one, 0.5)
    dense = one.plan.params(one.plan.dense)
    inside = sum(weight.sizes.weights for weight in one.plan.weights)
    assert inside - (dense - one.plan.params(kept)) <= 0.5 * inside + 64
    assert (kept >= 1).all() and (kept < one.plan.dense).any()


def test_tied_weights_are_one_target():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(20, 8)
            self.hidden = nn.Linear(8, 8)
            self.head = nn.Linear(8, 20, bias=False)
            self.head.weight = self.table.weight

        def forward(self, tokens):
            return self.head(torch.relu(self.hidden(self.table(tokens))))

    torch.manual_seed(0)
    example = torch.randint(20, (2, 5))
    one = pruner(trace(Tied().eval(), example), "unstructured")
    assert [t.name for t in one.plan.targets] == ["head.weight", "hidden.weight"]
    kept = one.plan.dense // 2
    network = one.prune(one.policy(kept))
    assert int(one.plan.params(kept)) == nonzeros(network)
    assert network.head.weight is network.table.weight  # masked under either name
    assert int((network.head.weight == 0).sum()) == 80
    dense, slim = int(one.plan.macs(one.plan.dense)), int(one.plan.macs(kept))
    assert (dense, slim) == (5 * (64 + 160), 5 * (32 + 80))


def test_transposed_convolutions_are_grouped_along_their_inputs():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(8, 6, 2, stride=2)
    )
    one = pruner(trace(network.eval(), torch.zeros(1, 1, 4, 4)), "nm:4")
    assert [t.name for t in one.plan.targets] == ["2.weight"]
    (mask,) = masks_of(one.prune(one.policy(np.array([2])))).values()
    assert mask.reshape(2, 4, 6, 2, 2).sum(1).eq(2).all()


# ---- repair


def test_repair_leaves_zeros_and_lowers_the_error():
    found = traced("cnn")
    images = data(64)[0]
    with torch.no_grad():
        wanted = found.model(images)
        errors = []
        for repaired in (False, True):
            one = pruner(found, "unstructured", repaired=repaired)
            network = one.prune(one.policy(one.plan.dense // 3))
            for name, mask in masks_of(network).items():
                assert (network.get_parameter(name)[~mask] == 0).all()
            errors.append(float(F.mse_loss(network(images), wanted)))
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("centred", [False, True])
def test_the_masked_fit_is_that_of_each_output_alone(centred):
    torch.manual_seed(0)
    inputs = torch.randn(2, 300, 12) @ torch.randn(12, 12)
    weight, mask = torch.randn(2, 12, 5), torch.rand(2, 12, 5) > 0.4
    wanted = inputs @ weight + 0.3
    fit = solve(inputs, wanted, weight * mask, 0.01, centred, mask)
    assert (fit.weight[~mask] == 0).all()
    for g in range(2):
        x, y = inputs[g].double(), wanted[g].double()
        if centred:
            x, y = x - x.mean(0), y - y.mean(0)
        pull = 0.01 * (x.T @ x).diagonal().mean()
        for j in range(5):
            stays = mask[g, :, j]
            old = weight[g, stays, j].double()
            a = x[:, stays].T @ x[:, stays] + pull * torch.eye(int(stays.sum()))
            expected = torch.linalg.solve(a, x[:, stays].T @ y[:, j] + pull * old)
            torch.testing.assert_close(
                fit.weight[g, stays, j].double(), expected, rtol=1e-4, atol=1e-4
            )


# ---- refusals


@pytest.mark.parametrize(
    ("grains", "layers", "says"),
    [
        (["unstructured", "nm:4"], None, "two grains for the same layers"),
        ([], None, "granularity has no grain"),
        (["unstructured"], {"linear": "channel"}, "gives finer grains to layers"),
        (["unstructured"], {"nothing*": "nm:4"}, "matches no layer"),
        (["unstructured"], {"conv1": "nm:4"}, "layer 'conv1' cannot be pruned by nm:4"),
        (["nm:256"], None, "granularity nm:256 fits no layer"),
    ],
)
def test_grains_that_make_no_sense_are_refused(grains, layers, says):
    with pytest.raises(InputError, match=says):
        pruner(traced("cnn"), *grains, layers=layers)


def test_criteria_of_whole_units_are_refused_by_name():
    with pytest.raises(InputError, match=r"apoz.*scores whole channels"):
        pruner(traced("cnn"), "unstructured", criterion=load("apoz"), repaired=True)


@pytest.mark.parametrize(
    ("ratio", "says"),
    [
        (0.9, "ratio 0.9 would empty conv"),
        (1.0, r"must be in \[0, 1\), got 1.0"),
        ({"linear": -1}, "'linear' must be in"),
        ({"lineer": 0.5}, "did you mean"),
        ({"conv1": 0.5}, "layer 'conv1' cannot be pruned: its 1 input channels"),
    ],
)
def test_ratios_that_make_no_sense_are_refused(ratio, says):
    one = pruner(traced("cnn"), "nm:4")
    says = says.replace("conv", "blocks.0.conv1.weight") if "empty" in says else says
    with pytest.raises(InputError, match=says):
        counts_from_ratios(one.plan, ratio, 1)


def test_one_ranking_that_would_empty_layers_is_refused():
    one = pruner(traced("cnn"), "nm:4")
    with pytest.raises(InputError, match=r"ratio 0\.9 would empty a layer"):
        global_counts(one, 0.9)
    with pytest.raises(InputError, match="not channels"):
        global_counts(pruner(traced("cnn"), "channel", "unstructured"), 0.5)


def test_a_policy_of_another_network_is_refused():
    one = pruner(traced("cnn"), "unstructured")
    policy = one.policy(one.plan.dense // 2)
    other = traced("vit")
    with pytest.raises(InputError, match="which this model does not have"):
        MaskedPlan.for_policy(other.model, other.plan, policy)


def test_excluded_layers_stay_dense():
    found = traced("cnn")
    grains = Grains.parse(["unstructured"])
    plan = MaskedPlan.of(found.model, found.plan, grains, exclude=["linear", "conv1"])
    assert {frozen.name for frozen in plan.excluded} == {"linear", "conv1"}
    with pytest.raises(InputError, match="cannot be pruned: excluded"):
        plan.target_index("linear")


def test_the_dense_network_is_left_alone():
    network = made("cnn").eval()
    before = copy.deepcopy(network.state_dict())
    one = pruner(trace(network, torch.zeros(2, 1, 8, 8)), "unstructured", repaired=True)
    one.prune(one.policy(one.plan.dense // 2))
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


# ---- the public face


def test_one_call_prunes_inside_layers():
    network, example = made("cnn"), torch.zeros(2, 1, 8, 8)
    sparse = automl.prune(network, example, 0.5, granularity="nm:4", exclude=["linear"])
    assert {"linear.weight", "conv1.weight"}.isdisjoint(masks_of(sparse))
    assert all(mask.double().mean() == 0.5 for mask in masks_of(sparse).values())
    both = automl.prune(network, example, {"conv1": 0.5, "linear.weight": 0.9},
                        granularity=["channel", "unstructured"])  # fmt: skip
    assert both.conv1.out_channels == 4 and list(masks_of(both)) == ["linear.weight"]


def test_a_searcher_searches_inside_layers_and_its_policy_applies_by_itself():
    network, example = made("cnn"), torch.zeros(2, 1, 8, 8)
    searcher = automl.Searcher(
        network,
        example,
        lambda model: -sum(float(p.detach().abs().sum()) for p in model.parameters()),
        budget={"params": 0.4},
        granularity="kernel",
    )
    run = searcher.search(trials=3, seed=0)
    again = automl.prune(network, example, run.policy)
    assert nonzeros(again) <= 0.4 * sum(p.numel() for p in network.parameters())
    assert nonzeros(again) == nonzeros(run.apply())


class Viewing(nn.Module):
    """Writes a size into forward, so that its slim form is a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 16, 3, padding=1)
        self.head = nn.Linear(16 * 4 * 4, 4)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).view(x.shape[0], 16 * 4 * 4))


def test_graph_forms_keep_masks_while_training():
    torch.manual_seed(0)
    images = torch.randn(16, 4, 4, 4)
    network = automl.prune(
        Viewing(), images[:2], 0.5, granularity=["channel", "nm:4"], calibration=images
    )
    assert isinstance(network, torch.fx.GraphModule)
    masks = masks_of(network)
    assert masks.keys() == {"conv.weight", "head.weight"}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network.train()
    for _ in range(3):
        optimizer.zero_grad()
        network(images).square().sum().backward()
        optimizer.step()
    for name, mask in masks.items():
        assert (network.get_parameter(name)[~mask] == 0).all()


@pytest.mark.parametrize("grain", ["unstructured", "nm:4", "block:4x4"])
def test_fused_attention_weights_are_pruned_inside(grain):
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    network = automl.prune(encoder, torch.randn(2, 5, 16), 0.5, granularity=grain)
    for name in ("self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight"):
        assert masks_of(network)[name].double().mean() == 0.5
        assert int((network.get_parameter(name) == 0).sum()) == masks_of(network)[name].numel() // 2


def test_masks_chosen_within_the_repair_are_exact_and_lower_the_error():
    found, images = traced("cnn"), data(128)[0]
    with torch.no_grad():
        wanted = found.model(images)
    errors = []
    for masks in ("criterion", "obs"):
        plan = MaskedPlan.of(found.model, found.plan, Grains.parse(["nm:4"]))
        settings = Reconstruction(masks=masks, points=20)
        one = SparsePruner(found, plan, calibration=images, reconstruct=settings)
        network = one.prune(one.policy(plan.dense // 2))
        for name, mask in masks_of(network).items():
            rows = mask.flatten(2).transpose(1, 2) if mask.dim() > 2 else mask
            assert rows.reshape(-1, 4).sum(1).eq(2).all()
            assert (network.get_parameter(name)[~mask] == 0).all()
        assert masks_of(network).keys() == {weight.name for weight in plan.weights}
        with torch.no_grad():
            errors.append(float(F.mse_loss(network(images), wanted)))
    assert errors[1] < errors[0]


class Product(nn.Module):
    """Multiplies by a parameter of its own, inputs first."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first, self.w = nn.Linear(10, 16), nn.Parameter(torch.randn(16, width))
        self.last = nn.Linear(width, 4)

    def forward(self, x):
        return self.last(torch.relu(torch.relu(self.first(x)) @ self.w))


@pytest.mark.parametrize("width", [16, 12])
def test_n_of_m_weights_lie_along_inputs_whichever_way_a_parameter_is_multiplied(width):
    model = Product(width).eval()
    both = pruner(trace(model, torch.randn(2, 10)), "nm:4")
    network = both.prune(both.policy(counts_from_ratios(both.plan, 0.5, 1)))
    assert (masks_of(network)["w"].unflatten(0, (4, 4)).sum(1) == 2).all()


def test_channels_and_weights_of_a_parameter_of_no_module_are_two_targets():
    model = Product(12).eval()
    traced = trace(model, torch.randn(2, 10))
    both = pruner(traced, "channel", "unstructured")
    names = [target.name for target in both.plan.targets]
    assert names == ["first", "w", "first.weight", "w.weight", "last.weight"]
    policy = both.policy(counts_from_ratios(both.plan, 0.5, 1))
    assert masks_of(both.prune(policy))["w"].shape == (8, 6)
    again = MaskedPlan.for_policy(model, traced.plan, policy)
    assert [target.name for target in again.targets] == names
    assert [t.name for t in pruner(traced, "unstructured").plan.targets][1] == "w"


class MayView(nn.Module):
    """Writes a size into forward where asked, so that its slim form must be a graph."""

    def __init__(self, writes: bool) -> None:
        super().__init__()
        self.writes = writes
        self.first, self.second, self.last = nn.Linear(8, 16), nn.Linear(16, 12), nn.Linear(12, 4)

    def forward(self, x):
        x = torch.relu(self.first(x))
        x = x.reshape(-1, 16) if self.writes else x
        return self.last(torch.relu(self.second(x)))


@pytest.mark.parametrize("calibration", [None, torch.randn(32, 8)])
@pytest.mark.parametrize("writes", [False, True])
def test_channels_of_a_masked_network_go_with_their_part_of_the_masks(writes, calibration):
    torch.manual_seed(0)
    x = torch.randn(8, 8)
    sparse = automl.prune(MayView(writes), x, 0.5, granularity="unstructured")
    slim = automl.prune(sparse, x, {"first": 0.5}, calibration=calibration)
    assert isinstance(slim, GraphModule) == writes
    masks, before = masks_of(slim), masks_of(sparse)
    assert masks.keys() == before.keys() and masks["first.weight"].shape == (8, 8)
    rows = {tuple(row) for row in before["first.weight"].tolist()}
    assert {tuple(row) for row in masks["first.weight"].tolist()} <= rows
    optimizer = torch.optim.SGD(slim.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        slim(x).square().mean().backward()
        optimizer.step()
    for name, mask in masks.items():
        assert (slim.get_parameter(name)[~mask] == 0).all() and not mask.all()
