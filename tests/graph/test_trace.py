"""``automl.trace`` on networks it cannot or may not take as they are, and what it says of them."""

from __future__ import annotations

import gc
import time
import warnings

import pytest
import torch
from networks import CASES, Concat, Plain, Residual, WrittenSize, conv_bn
from oracle import compare, counted_macs, random_units, randomise
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

import automl
from automl.graph.deadline import Deadline
from automl.graph.trace import trace
from automl.types import InputError

IMAGE = torch.randn(2, 3, 8, 8)


def frozen(found: automl.graph.trace.Trace) -> dict[str, str]:
    return {part.name: part.reason for part in found.frozen}


# ---- refusals


def test_a_forward_that_fails_is_refused_with_its_own_words():
    with pytest.raises(
        InputError, match=r"Plain fails on the example inputs \(\(2, 4, 8, 8\)\)"
    ) as e:
        trace(Plain().eval(), torch.randn(2, 4, 8, 8))
    assert "expected input[2, 4, 8, 8] to have 3 channels" in str(e.value)
    assert "\n" not in str(e.value)


def test_control_flow_that_depends_on_data_is_refused():
    class Branches(Plain):
        def body(self, x: Tensor) -> Tensor:
            return x * 2 if x.sum() > 0 else x

    with pytest.raises(InputError, match=r"torch.export cannot trace Branches: ") as error:
        trace(Branches().eval(), IMAGE)
    assert "\n" not in str(error.value)


def test_control_flow_operators_are_refused_by_name():
    class Conditional(Plain):
        def body(self, x: Tensor) -> Tensor:
            return torch.cond(x.sum() > 0, lambda x: x * 2, lambda x: x + 1, (x,))

    with pytest.raises(InputError, match="cond"):
        trace(Conditional().eval(), IMAGE)


@pytest.fixture
def no_callbacks():
    """Hypothesis has the garbage collector call it, and there nothing may be raised."""
    before, gc.callbacks[:] = gc.callbacks[:], []
    yield
    gc.callbacks[:] = before


@pytest.mark.usefixtures("no_callbacks")
@pytest.mark.parametrize("deadline_s", [1e-9, 0.02])
def test_an_analysis_that_takes_too_long_is_stopped(deadline_s):
    with pytest.raises(InputError, match=r"tracing took longer than .* s; give it more"):
        trace(CASES["UNet"].make().eval().double(), CASES["UNet"].inputs(), deadline_s=deadline_s)


def test_the_time_that_ends_while_an_object_is_freed_ends_the_analysis_behind_it():
    class Slow:
        def __del__(self):
            end = time.monotonic() + 0.1
            while time.monotonic() < end:
                pass
            freed.append(self)

    freed = []
    with pytest.raises(InputError, match="tracing took longer"):
        with Deadline(0.05).interrupting():
            Slow()
            assert len(freed) == 1  # and nothing was raised in it
            while True:
                pass


def test_what_else_the_machine_does_is_no_computing():
    part = Deadline(60).of_computing(0.1)
    with part.interrupting():
        time.sleep(0.3)
    with pytest.raises(InputError, match=r"longer than 0.1 s"), part.interrupting():
        while True:
            pass


def test_a_part_ends_with_the_whole():
    with pytest.raises(InputError, match="longer than"):
        with Deadline(0.1).of_computing(60).interrupting():
            time.sleep(5)


def test_modes_that_an_interrupted_export_leaves_on_are_taken_off():
    def cut():
        FakeTensorMode().__enter__()
        FakeTensorMode().__enter__()
        torch.set_grad_enabled(False)
        torch.compiler._is_exporting_flag = True
        raise InputError("in the midst of torch")

    with pytest.raises(InputError, match="in the midst"), Deadline(60).interrupting():
        cut()
    assert torch.ones(2).numpy().tolist() == [1.0, 1.0]
    assert torch.is_grad_enabled() and not torch.compiler.is_exporting()
    assert trace(Plain().eval(), IMAGE).macs > 0


class Endless(Plain):
    """Never returns, and goes on whatever is raised within."""

    def body(self, x: Tensor) -> Tensor:
        while True:
            try:
                x = x * 0
            except Exception:
                continue


@pytest.mark.usefixtures("no_callbacks")
def test_a_forward_that_never_returns_is_stopped():
    with pytest.raises(InputError, match=r"tracing took longer than 0.2 s; give it more"):
        trace(Endless().eval(), IMAGE, deadline_s=0.2)


@pytest.mark.parametrize("deadline_s", [1e99, float("inf")])
def test_a_deadline_may_be_further_off_than_timers_reach(deadline_s):
    assert trace(Plain().eval(), IMAGE, deadline_s=deadline_s).targets


@pytest.mark.parametrize("deadline_s", [0, -1])
def test_a_deadline_must_lie_ahead(deadline_s):
    with pytest.raises(InputError, match="deadline_s must be > 0"):
        trace(Plain().eval(), IMAGE, deadline_s=deadline_s)


# ---- what people exclude


@pytest.mark.parametrize(
    ("pattern", "left"), [("a.*", {"stem.0", "c.0"}), ("?.0", {"d"}), ("*", set())]
)
def test_excluded_layers_keep_their_channels(pattern, left):
    found = trace(Residual().eval(), IMAGE, exclude=[pattern])
    producers = {name for target in found.groups for name in target.producers}
    assert not any(
        frozen(found).get(name) is None for name in ("a.0", "head") if name not in producers
    )
    if pattern == "a.*":
        assert {t.name for t in found.groups} == left
        assert frozen(found)["a.0"] == "excluded by pattern"
    if pattern == "*":
        assert not found.groups


def test_excluding_one_layer_of_a_group_keeps_the_group():
    found = trace(Residual().eval(), IMAGE, exclude=["d"])
    assert {t.name for t in found.groups} == {"a.0", "c.0"}
    assert frozen(found)["stem.0"] == "excluded by pattern (d)"


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(InputError, match=r"exclude pattern 'layer9\.\*' matches no layer"):
        trace(Residual().eval(), IMAGE, exclude=["a.*", "layer9.*"])


def test_a_pattern_alone_is_one_pattern_and_not_its_letters():
    one, several = (trace(Residual().eval(), IMAGE, exclude=given) for given in ("a.*", ["a.*"]))
    assert frozen(one) == frozen(several)


# ---- unknown operators


class Fourier(Concat):
    def body(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.c(torch.cat([torch.fft.fft2(y).real, x, self.b(x)], 1))


def test_what_an_unknown_operator_reads_is_frozen_and_the_operator_named():
    with pytest.warns(UserWarning, match=r"operator aten.fft_fft2.default is not known") as said:
        found = trace(randomise(Fourier()), IMAGE.double())
    assert len(said) == 1
    assert {t.name for t in found.groups} == {"stem.0", "b.0", "c.0"}
    assert "read by the unknown operator aten.fft_fft2.default" in frozen(found)["a.0"]
    assert any("unknown operator aten.fft_fft2.default" in r for r in frozen(found).values())
    units = random_units(found.plan, 0)
    slim = found.materialise(units)
    result = compare(slim, found.model, found.plan, units, found.example_inputs)
    assert result.error < 1e-10 < result.effect


def test_an_unknown_operator_on_nothing_prunable_is_no_concern():
    class OnInput(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(torch.fft.fft2(x).real)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = trace(OnInput().eval(), IMAGE)
    assert [t.name for t in found.groups] == ["stem.0"]


# ---- inputs and outputs


class Several(nn.Module):
    """Two inputs, a flag and a number; outputs in a dict of a tuple and a list."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(4, 8)
        self.c, self.head = nn.Linear(8, 7), nn.Linear(7, 5)

    def forward(self, x: Tensor, y: Tensor, flag: bool, times: int) -> dict[str, object]:
        z = F.relu(self.c(F.relu(self.a(x) + self.b(y)))) * times
        return {"logits": self.head(z), "rest": (x if flag else y, [z.sum(-1), None])}


def test_several_inputs_and_nested_outputs_pass():
    inputs = (torch.randn(3, 6).double(), torch.randn(3, 4).double(), True, 2)
    found = trace(randomise(Several()), inputs)
    assert {t.name: t.units for t in found.groups} == {"a": 8, "c": 7}
    units = random_units(found.plan, 0)
    for slim in (found.materialise(units), found.materialise.graph_form(units)):
        out = slim(*inputs)
        assert set(out) == {"logits", "rest"}
        assert isinstance(out["rest"], tuple)
        assert out["rest"][1][1] is None
        result = compare(slim, found.model, found.plan, units, inputs)
        assert result.error < 1e-12 < result.effect


def test_inputs_of_different_first_sizes_are_traced_as_they_are():
    class Prompted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(6, 8), nn.Linear(4, 8), nn.Linear(8, 5)

        def forward(self, x: Tensor, prompt: Tensor) -> Tensor:
            return self.head(F.relu(self.a(x) + self.b(prompt).mean(0)))

    model = Prompted().eval()
    found = trace(model, (torch.randn(4, 6), torch.randn(7, 4)))
    assert [t.name for t in found.groups] == ["a"]
    assert not found.plan.dynamic_batch
    assert found.layers[0].macs == 6 * 8
    found.materialise([[1, 5]])(torch.randn(4, 6), torch.randn(7, 4))


def test_a_first_dimension_that_is_no_batch_is_taken_as_it_is():
    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = nn.Linear(6, 8), nn.Linear(8, 5)
            self.positions = nn.Parameter(torch.randn(9, 8))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.gelu(self.a(x) + self.positions))

    found = trace(Sequence().eval(), torch.randn(9, 6))
    assert [t.name for t in found.groups] == ["a"]
    found.materialise([[0, 1]])(torch.randn(9, 6))


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_example_may_have_any_batch_size(batch):
    found = trace(Residual().eval(), torch.randn(batch, 3, 8, 8))
    reference = trace(Residual().eval(), IMAGE)
    assert found.plan.to_json() == reference.plan.to_json()
    found.materialise(random_units(found.plan, 0))(torch.randn(3, 3, 8, 8))


def test_half_precision_networks_are_traced():
    found = trace(Residual().eval().bfloat16(), IMAGE.bfloat16())
    assert len(found.groups) == 3
    assert found.plan.module_form
    slim = found.materialise(random_units(found.plan, 0))
    assert slim(IMAGE.bfloat16()).dtype == torch.bfloat16


# ---- what it leaves alone, and what it says


def test_the_networks_weights_and_hooks_are_as_before():
    model = Residual().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = trace(model, IMAGE)
    assert found.model is model
    assert not model.training
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_a_network_without_layers_has_nothing_to_prune():
    found = trace(nn.ReLU(), IMAGE)
    assert (found.groups, found.layers, found.macs, found.params) == ((), (), 0, 0)
    assert torch.equal(found.materialise([])(IMAGE), IMAGE.relu())


def test_one_layer_that_writes_the_output_stays():
    found = trace(nn.Linear(4, 3), torch.randn(2, 4))
    assert not found.groups
    assert [part.reason for part in found.frozen] == ["written to the network's output"]


def test_auxiliary_heads_that_evaluation_does_not_use_are_said():
    class Auxiliary(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.auxiliary = nn.Linear(8, 5)

        def body(self, x: Tensor) -> Tensor:
            if self.training:
                self.auxiliary(x.mean((2, 3)))
            return x

    found = trace(Auxiliary().eval(), IMAGE)
    assert frozen(found)["auxiliary"] == "not used by the forward in eval mode"
    assert found.params == sum(p.numel() for p in found.model.parameters())


def test_regions_without_gradients_are_traced_like_the_rest():
    class Regions(Residual):
        def body(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                y = self.a(x)
            with torch.autocast("cpu", enabled=False):
                return x + self.b(y)

    found = trace(randomise(Regions()), IMAGE.double())
    assert {t.name: t.units for t in found.groups} == {"stem.0": 8, "a.0": 6}
    units = random_units(found.plan, 0)
    slim = found.materialise.graph_form(units)
    assert compare(slim, found.model, found.plan, units, found.example_inputs).error < 1e-12


def test_work_that_does_not_depend_on_the_input_is_counted_once():
    class Continuous(Plain):
        """A bias that a small network computes from constant positions."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 16), nn.Linear(16, 8)
            self.register_buffer("grid", torch.rand(9, 2))

        def body(self, x: Tensor) -> Tensor:
            return x + self.b(F.relu(self.a(self.grid))).mean(0)[:, None, None]

    found = trace(Continuous().eval(), torch.randn(4, 3, 8, 8))
    by_name = {layer.name: layer.macs for layer in found.layers}
    assert by_name["a"] == 9 * 2 * 16
    assert found.macs == counted_macs(found.model, (torch.randn(1, 3, 8, 8),))
    assert {t.name: t.units for t in found.groups} == {"stem.0": 8, "a": 16}


def test_the_summary_shows_layers_groups_frozen_parts_and_totals():
    found = trace(Residual().eval(), IMAGE)
    text = found.summary()
    for expected in (
        "3 prunable groups",
        "1 frozen part\n",
        "written to the network's output",
        f"{found.macs:,} MACs",
        "keep the module's own classes",
        "stem.0",
    ):
        assert expected in text


def test_layers_are_described_as_they_are():
    found = trace(CASES["Grouped"].make().eval().double(), CASES["Grouped"].inputs())
    grouped = next(layer for layer in found.layers if layer.name == "grouped.0")
    assert (grouped.kind, grouped.in_channels, grouped.out_channels) == ("conv", 16, 12)
    assert (grouped.kernel_size, grouped.stride, grouped.groups) == ((3, 3), (1, 1), 4)
    assert (grouped.in_height, grouped.in_width, grouped.out_height, grouped.out_width) == (8,) * 4
    assert grouped.macs == 64 * 12 * 4 * 9
    assert grouped.params == 12 * 4 * 9
    assert [layer.index for layer in found.layers] == list(range(len(found.layers)))


def test_groups_name_who_writes_and_who_reads_them():
    found = trace(Residual().eval(), IMAGE)
    stem = found.groups[0]
    assert stem.producers == ("stem.0", "b.0", "d")
    assert stem.readers == ("a.0", "c.0", "head")


def test_two_traces_of_one_network_are_the_same(monkeypatch):
    for name in ("FusedQkvSdpa", "Concat"):
        case = CASES[name]
        one, other = (trace(randomise(case.make()), case.inputs()).plan for _ in range(2))
        assert one.to_json() == other.to_json()


def test_it_is_reachable_from_the_package():
    assert automl.trace is trace


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ModuleDict({"first": conv_bn(3, 6), "second": conv_bn(6, 4)})
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.features.values():
            x = block(x)
        return self.head(x.mean((2, 3)))


def test_names_are_the_paths_of_modules():
    found = trace(Nested().eval(), IMAGE)
    assert [layer.name for layer in found.layers] == [
        "features.first.0",
        "features.second.0",
        "head",
    ]


@torch.library.custom_op("prunepilot_tests::double", mutates_args=())
def double(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@double.register_fake
def _(x):
    return torch.empty_like(x)


class WithOwnOperator(nn.Module):
    """A network that calls an operator of its author's."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)
        self.before = nn.Linear(8, 8)

    def forward(self, x):
        hidden = torch.ops.prunepilot_tests.double(self.before(x))
        return self.second(torch.relu(self.first(hidden)))


def test_operators_of_the_users_own_are_frozen_and_the_rest_is_pruned():
    model, x = WithOwnOperator().eval(), torch.randn(2, 8)
    with pytest.warns(UserWarning, match=r"prunepilot_tests\.double\.default is not known"):
        found = trace(model, (x,))
    assert [target.name for target in found.targets] == ["first"]
    assert any("prunepilot_tests" in str(one.reason) for one in found.frozen)
    assert found.materialise([tuple(range(4))])(x).shape == (2, 4)


class AnyNumber(WrittenSize):
    """Takes its inputs as ``*inputs``."""

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(inputs[0])


def test_inputs_without_names_of_their_own_have_any_batch_size_too():
    found = trace(AnyNumber().eval(), torch.randn(2, 3, 8, 8))
    assert found.plan.dynamic_batch
    slim = found.materialise.graph_form([[0]] * len(found.groups))
    assert slim(torch.randn(5, 3, 8, 8)).shape[0] == 5


def small():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch's own
def test_what_torch_compile_wraps_is_traced_as_without():
    model = small()
    found = trace(torch.compile(model), torch.zeros(2, 6))
    assert found.model is model
    assert found.groups == trace(model, torch.zeros(2, 6)).groups


def compiled_in_place():
    model = small()
    model.compile()
    return model


def compiled_inside():
    return nn.Sequential(torch.compile(nn.Linear(6, 6)), nn.Linear(6, 3))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch's own
@pytest.mark.parametrize(
    "make, because",
    [
        (compiled_in_place, r"parts of the network are compiled \(it\); prune it first"),
        (compiled_inside, r"parts of the network are compiled \(0\); prune it first"),
        (lambda: small, "model must be a torch.nn.Module, got function"),
        (
            lambda: torch.export.export(small(), (torch.zeros(2, 6),)).module(),
            "give the network that it was exported from",
        ),
    ],
)
def test_what_is_no_network_to_prune_is_refused(make, because):
    with pytest.raises(InputError, match=because):
        trace(make(), torch.zeros(2, 6))


def test_example_inputs_are_tensors_or_arguments():
    with pytest.raises(InputError, match="arguments of forward, got NoneType"):
        trace(small(), None)
