"""Energy: a layer worked out by hand, slim networks, memories, and the figures in conf/."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from automl.commands.settings import instantiate
from automl.cost import standard_costs
from automl.cost.energy import PARTS, EnergyCost, EnergyModel
from automl.graph.trace import Trace, trace
from automl.models.cifar import resnet20
from automl.models.mobilenet import mobilenet_v2
from automl.models.vit import vit_tiny
from automl.paths import conf_dir
from automl.pruning.pruner import Pruner
from automl.types import InputError

MAKERS = {"resnet20": resnet20, "mobilenet_v2": mobilenet_v2, "vit_tiny": vit_tiny}


@cache
def traced(name: str) -> Trace:
    torch.manual_seed(0)
    return trace(MAKERS[name]().eval(), torch.zeros(1, 3, 32, 32))


@cache
def two_convolutions() -> Trace:
    layers = [nn.Conv2d(4, 8, 3, padding=1, bias=False), nn.Conv2d(8, 2, 1)]
    return trace(nn.Sequential(*layers), torch.zeros(1, 4, 6, 6))


@cache
def tokens() -> Trace:
    layers = [nn.Embedding(1000, 16), nn.Linear(16, 8), nn.Linear(8, 4)]
    return trace(nn.Sequential(*layers), torch.zeros(1, 5, dtype=torch.long))


class Tied(nn.Module):
    """Tokens in, scores of tokens out, by one and the same table."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(1000, 16), nn.Linear(16, 1000, bias=False)
        self.hidden = nn.Linear(16, 8)
        self.back = nn.Linear(8, 16)
        if tied:
            self.out.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.back(self.hidden(self.table(tokens)).relu()))


def part(cost: EnergyCost, kept, name: str) -> np.ndarray:
    """pJ per layer."""
    return cost.parts(kept)[..., PARTS.index(name)] * 1e9


def test_two_layers_cost_what_they_do_by_hand():
    # 4 of 8 channels of the first convolution stay. All of it fits the smallest SRAM, where a
    # 32-bit word takes 10 / 2 = 5 pJ.
    plan = two_convolutions().plan
    by_hand = [
        [
            4 * 4 * 9 * 36 * (3.7 + 0.9),  # 5,184 MACs
            5184 * 4 * 1.0,  # two operands and a sum read, a sum written
            # A loaded input serves the 4 output channels there are, a weight 8 positions of 36.
            (5184 / 4 + 5184 / 8) * 5,
            4 * 4 * 9 * 5,
            (4 * 36 + 4 * 36) * 5,
        ],
        [
            4 * 2 * 36 * (3.7 + 0.9),  # 288 MACs
            288 * 4 * 1.0,
            (288 / 2 + 288 / 8) * 5,
            (4 * 2 + 2) * 5,  # with two biases
            (4 * 36 + 2 * 36) * 5,
        ],
    ]
    cost, kept = EnergyCost(plan), np.array([4])
    np.testing.assert_allclose(cost.parts(kept) * 1e9, by_hand, rtol=1e-12)
    assert cost(kept) == pytest.approx(60_969.2e-9, rel=1e-12)
    table = cost.table(kept)
    assert table["total"].sum() == pytest.approx(60_969.2e-9)
    assert list(table["activations_in"]) == ["SRAM 8 KiB"] * 2


@pytest.mark.parametrize("name", MAKERS)
def test_kept_counts_cost_what_the_slim_network_does(name):
    found = traced(name)
    kept = np.maximum(found.plan.dense // 2, 1)
    slim = Pruner(found).prune(Pruner(found).policy(kept))
    again = trace(slim, torch.zeros(1, 3, 32, 32)).plan
    for model in (EnergyModel(), EnergyModel(dtype="int8", batch=16, tile=4)):
        expected = EnergyCost(again, model)(again.dense)
        assert EnergyCost(found.plan, model)(kept) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("name", MAKERS)
def test_a_batch_of_counts_costs_what_each_does(name):
    plan = traced(name).plan
    rng = np.random.default_rng(0)
    kept = rng.integers(1, plan.dense + 1, (2, 3, len(plan.targets)))
    cost = EnergyCost(plan)
    alone = [[float(cost(row)) for row in block] for block in kept]
    np.testing.assert_allclose(cost(kept), alone, rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_energy_never_falls_with_more_units(data):
    plan = traced(data.draw(st.sampled_from(sorted(MAKERS)))).plan
    kept = np.array([data.draw(st.integers(1, t.units)) for t in plan.targets])
    which = data.draw(st.integers(0, len(kept) - 1))
    more = kept.copy()
    more[which] = data.draw(st.integers(kept[which], plan.dense[which]))
    model = EnergyModel(
        dtype=data.draw(st.sampled_from(["float32", "int8"])),
        sram_bytes=(1 << 12, 1 << 15),
        sram_pj=(1.0, 50.0),
    )
    assert EnergyCost(plan, model)(kept) <= EnergyCost(plan, model)(more)


def test_weights_that_fit_on_the_chip_are_not_fetched_from_dram():
    plan = traced("resnet20").plan
    cost, half = EnergyCost(plan), plan.dense // 2
    assert cost.weights_in(plan.dense) == "DRAM"  # 1.08 MB
    assert cost.weights_in(half) == "SRAM 1024 KiB"
    at_most = int(plan.params(half)) * 50  # pJ a word; batch norms are folded, hence "at most"
    assert part(cost, half, "weights").sum() <= at_most < part(cost, plan.dense, "weights").sum()


def test_weights_are_fetched_once_per_batch():
    plan = traced("resnet20").plan
    one, many = EnergyCost(plan), EnergyCost(plan, EnergyModel(batch=10))
    for name, ratio in (("weights", 10), ("activations", 1), ("arithmetic", 1)):
        np.testing.assert_allclose(
            part(one, plan.dense, name), ratio * part(many, plan.dense, name), rtol=1e-12
        )
    # A linear layer has one position per example, so only a batch lets its weights stay put.
    assert part(many, plan.dense, "operands")[-1] < part(one, plan.dense, "operands")[-1]


def test_depthwise_inputs_serve_one_channel():
    plan = traced("mobilenet_v2").plan
    deep = [i for i, layer in enumerate(plan.layers_plan) if layer.depthwise]
    cost = EnergyCost(plan)
    macs = plan.layer_macs(plan.dense)
    positions = [layer.out_height * layer.out_width for layer in plan.layers]
    loads = [macs[i] + macs[i] / min(8, positions[i]) for i in deep]
    np.testing.assert_allclose(part(cost, plan.dense, "operands")[deep], np.array(loads) * 5)


def test_inputs_of_a_depthwise_convolution_serve_as_many_channels_as_its_multiplier():
    layers = [nn.Conv2d(4, 32, 3, padding=1, groups=4, bias=False), nn.Conv2d(32, 2, 1)]
    cost = EnergyCost(trace(nn.Sequential(*layers), torch.zeros(1, 4, 16, 16)).plan)
    macs = 32 * 9 * 16 * 16
    operands = part(cost, cost.plan.dense, "operands")
    assert operands[0] == pytest.approx((macs / 8 + macs / 8) * 5)  # and 8 positions


class Folded(nn.Module):
    """A linear layer on tokens and a convolution on frames, folded into the batch or not."""

    def __init__(self, folds: bool) -> None:
        super().__init__()
        self.folds = folds
        self.frames, self.tokens = nn.Conv2d(3, 8, 2, stride=2), nn.Linear(8, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        size = len(x)
        x = self.frames(x.flatten(0, 1)).flatten(2).mean(2)  # (batch x frames, channels)
        x = self.tokens(x if self.folds else x.unflatten(0, (size, -1)))
        return self.head((x.unflatten(0, (size, -1)) if self.folds else x).mean(1))


@pytest.mark.parametrize("batch", [1, 2])
def test_tokens_and_frames_that_are_folded_into_the_batch_are_positions(batch):
    plans = [trace(Folded(folds), torch.zeros(batch, 5, 3, 8, 8)).plan for folds in (True, False)]
    assert [layer.positions for layer in plans[0].layers] == [5 * 16, 5, 1]
    assert plans[0].macs(plans[0].dense) == plans[1].macs(plans[1].dense)
    folded, plain = (EnergyCost(plan).parts(plan.dense) for plan in plans)
    np.testing.assert_allclose(folded, plain, rtol=1e-12)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


@pytest.mark.parametrize("batch", [1, 2])
def test_attention_has_the_tokens_of_one_example_for_positions(batch):
    layers = trace(Attention(), torch.zeros(batch, 7, 16)).plan.layers
    positions = {layer.name: layer.positions for layer in layers if layer.kind == "linear"}
    assert positions == {"attention": 7, "attention.out_proj": 7, "head": 1}


@pytest.mark.parametrize("name", MAKERS)
def test_positions_are_those_of_the_map_where_nothing_is_folded(name):
    for layer in traced(name).plan.layers:
        assert layer.positions == layer.out_height * layer.out_width


def test_an_embedding_fetches_the_rows_it_looks_up():
    plan = tokens().plan
    model = EnergyModel(sram_bytes=(1000,), sram_pj=(10.0,))
    cost = EnergyCost(plan, model)
    assert cost.weights_in(plan.dense) == "DRAM"
    width = int(plan.layers_at(plan.dense)[0].out_channels)
    assert part(cost, plan.dense, "weights")[0] == pytest.approx(5 * width * 650)


def test_narrower_numbers_cost_less_in_every_part():
    plan = traced("resnet20").plan
    costs = [
        EnergyCost(plan, EnergyModel(dtype=dtype)).parts(plan.dense).sum(0)
        for dtype in ("float32", "float16", "int8")
    ]
    assert np.all(costs[0] > costs[1]) and np.all(costs[1] > costs[2])


def test_the_figures_in_conf_are_the_published_ones():
    settings = yaml.safe_load((conf_dir() / "energy" / "horowitz_45nm.yaml").read_text())
    made = instantiate(settings, "energy")
    given_as_lists = {"sram_bytes": tuple(made.sram_bytes), "sram_pj": tuple(made.sram_pj)}
    assert EnergyModel(**{**vars(made), **given_as_lists}) == EnergyModel()


def added(by_name: Mapping[str, float], least: float | None, most: int) -> float:
    return sum(by_name.values()) + least + most


def test_a_figure_of_another_type_is_not_blamed_on_one_that_maps_names_to_numbers():
    settings = yaml.safe_load((conf_dir() / "energy" / "horowitz_45nm.yaml").read_text())
    with pytest.raises(InputError, match=r"^energy.sram_bytes must be a list of numbers, got 8192"):
        instantiate({**settings, "sram_bytes": 8192}, "energy")


def test_a_type_error_names_the_argument_and_no_mapping_before_it():
    section = {"_target_": f"{__name__}.added", "by_name": {"a": 1.0}, "least": "x", "most": 2}
    with pytest.raises(InputError, match=r"^energy.least must be a number or null, got 'x'$"):
        instantiate(section, "energy")


def test_every_problem_knows_energy():
    plan = traced("resnet20").plan
    assert standard_costs(plan)["energy_mj"](plan.dense) == EnergyCost(plan)(plan.dense)


def test_numbers_of_numpy_are_numbers():
    counts = {"batch": 2, "tile": 4, "register_accesses": 3, "sram_bytes": (8, 16)}
    numpys = {name: np.int64(value) for name, value in counts.items() if name != "sram_bytes"}
    numpys["sram_bytes"] = tuple(np.array(counts["sram_bytes"]))
    more = {"sram_pj": (1.0, 2.0), "dram_pj": np.float32(64)}
    assert EnergyModel(**numpys, **more) == EnergyModel(**counts, **more)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"dtype": "float8"}, "energy.dtype 'float8' is not known"),
        ({"batch": 0}, "energy.batch must be a whole number >= 1, got 0"),
        ({"tile": 2.5}, "energy.tile must be a whole number >= 1, got 2.5"),
        ({"dram_pj": -1}, "energy.dram_pj must be a number >= 0, got -1"),
        ({"dram_pj": 50.0}, "energy.sram_pj must be numbers >= 0 that rise up to dram_pj"),
        ({"sram_pj": (10.0,)}, "energy.sram_pj must be one number per sram_bytes"),
        ({"sram_bytes": (4, 2, 8)}, "energy.sram_bytes must be ascending whole numbers"),
        ({"multiply_pj": {}}, "energy.multiply_pj.float32 must be a number >= 0, got None"),
    ],
)
def test_bad_figures_are_refused(settings, says):
    with pytest.raises(InputError) as refused:
        EnergyModel(**settings)
    assert says in str(refused.value)


@pytest.mark.parametrize("exclude", [(), ("table", "out", "back")])
def test_a_table_that_two_layers_share_is_held_once_and_fetched_by_both(exclude):
    # 16,000 words are 64,000 bytes: they fit 100,000 bytes once and not twice.
    model = EnergyModel(sram_bytes=(100_000,), sram_pj=(10.0,))
    example = torch.zeros(1, 5, dtype=torch.long)
    costs = {t: EnergyCost(trace(Tied(t), example, exclude=exclude).plan, model) for t in (0, 1)}
    dense = {tied: cost.plan.dense for tied, cost in costs.items()}
    assert costs[0].weights_in(dense[0]) == "DRAM"
    assert costs[1].weights_in(dense[1]) == model.memories[0]
    fetched = part(costs[1], dense[1], "weights")
    assert fetched[-1] == pytest.approx(16_000 * model.word_pj[0])
