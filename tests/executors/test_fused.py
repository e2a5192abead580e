import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from automl.executors.conv import pack_conv2d
from automl.executors.depthwise import Depthwise
from automl.executors.fused.fuse import fuse
from automl.executors.fused.steps import Convolve, MaxPool, MeanPool, Multiply, Operate, View
from automl.executors.kernels import conv, cpu, pool


def whole_numbers(rng, shape, density=1.0):
    numbers = rng.integers(-3, 4, shape) * (rng.random(shape) < density)
    return numbers.astype(np.float32)


@pytest.mark.parametrize("kind", ["vector", "plain"])
@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(1, 20), st.integers(1, 70)),
    stride=st.sampled_from([1, 2]),
    channels=st.tuples(st.integers(1, 6), st.integers(1, 9)),
    batch=st.integers(1, 2),
    adds=st.booleans(),
    seed=st.integers(0, 9),
)
def test_a_depthwise_convolution_a_pointwise_one_a_sum_and_limits(
    kind, size, stride, channels, batch, adds, seed
):
    rng = np.random.default_rng(seed)
    (inputs, outputs), T = channels, torch.from_numpy
    first, start = whole_numbers(rng, (inputs, 1, 3, 3)), whole_numbers(rng, inputs)
    weight, bias = whole_numbers(rng, (outputs, inputs, 1, 1), 0.4), whole_numbers(rng, outputs)
    x = whole_numbers(rng, (batch, inputs, *size))
    before = Depthwise.of(first, start, stride, np.array([0, 6], np.float32))
    with pytest.MonkeyPatch.context() as patch:
        if kind == "plain":
            patch.setattr(cpu, "supports", lambda needed: False)
        plan, arguments = pack_conv2d(weight, bias).bind(size, before)
    y = np.empty((batch, outputs, *plan.output), np.float32)
    other = whole_numbers(rng, y.shape if adds else 0)
    # Whatever was in the memory must not come out.
    memory, bounds = np.full(plan.floats, 1e30, np.float32), np.array([-4, 20], np.float32)
    assert conv.convolve(x, y, other.reshape(-1), bounds, memory, *arguments)
    hidden = torch.conv2d(T(x), T(first), T(start), stride, 1, 1, inputs).clamp(0, 6)
    expected = torch.conv2d(hidden, T(weight), T(bias)).numpy() + (other if adds else 0)
    # Whole numbers: every order of additions gives the same.
    assert np.array_equal(y, expected.clip(-4, 20))


def test_only_pointwise_convolutions_follow_depthwise_ones():
    before = Depthwise.of(np.ones((4, 1, 3, 3)), np.zeros(4), 1, np.zeros(2, np.float32))
    for shape in ((2, 4, 3, 3), (2, 3, 1, 1)):
        with pytest.raises(ValueError, match="cannot follow a depthwise"):
            pack_conv2d(np.ones(shape, np.float32)).bind((8, 8), before)


class Block(nn.Module):
    """A residual block with a depthwise convolution, and one that changes the shape."""

    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.a = nn.Conv2d(inputs, outputs, 1)
        self.b = nn.Conv2d(outputs, outputs, 3, stride, 1, groups=outputs)
        self.c = nn.Conv2d(outputs, outputs, 1)
        self.short = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x):
        y = torch.relu(self.a(x))
        y = nn.functional.relu6(self.b(y))
        return torch.relu_(self.c(y) + self.short(x))


def sparse(network, density=0.3):
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.groups == 1 and module.in_channels > 3:
            module.weight.data *= torch.rand(module.weight.shape) < density
    return network.eval()


@pytest.fixture
def network():
    torch.manual_seed(1)
    stem = [nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    blocks = [Block(8, 8), Block(8, 20, 2), Block(20, 20)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(20, 6)]
    return sparse(nn.Sequential(*stem, *blocks, *head))


def close(run, network, x):
    with torch.inference_mode():
        return torch.allclose(run(x), network(x), atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_network_becomes_fused_steps_with_the_same_output(network, batch):
    x = torch.randn(batch, 3, 40, 56)
    run = fuse(network, (x,), {})
    kinds = [type(step) for step in run.steps]
    # The stem, one step for a, one for b and c with sum and ReLU, one for the shape's change.
    assert kinds.count(Convolve) == 1 + 2 + 3 + 2
    assert {MaxPool, MeanPool, View} <= set(kinds)
    assert (Multiply if batch == 1 else Operate) in kinds
    assert set(run.layers) == {
        name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)
    }
    assert close(run, network, x)
    assert close(run, network, torch.randn(batch, 3, 40, 56))
    assert close(run, network, x.to(memory_format=torch.channels_last))


class PreActivation(nn.Module):
    """A sum of two convolutions without a limit behind it."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(8, 16, 1)
        self.last = nn.Conv2d(16, 8, 1)

    def forward(self, x):
        return self.last(nn.functional.silu(self.a(x) + self.b(x)))


def test_a_sum_of_two_sparse_convolutions_is_computed_once():
    network = sparse(PreActivation())
    x = torch.randn(1, 8, 12, 12)
    fused = fuse(network, (x,), {})
    assert fused is not None and close(fused, network, x)


def test_pooling_of_an_image_without_a_batch():
    class Squeezed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(8, 16, 3)

        def forward(self, x):
            return nn.functional.max_pool2d(self.conv(x).squeeze(0), 2)

    network, x = sparse(Squeezed()), torch.randn(1, 8, 12, 12)
    fused = fuse(network, (x,), {})
    assert fused is not None and close(fused, network, x)


def test_results_are_not_overwritten_by_the_next_call(network):
    x = torch.randn(1, 3, 40, 56)
    run = fuse(network, (x,), {})
    first = run(x)
    before = first.clone()
    run(torch.randn(1, 3, 40, 56))
    assert torch.equal(first, before)


def test_what_is_not_finite_or_of_another_shape_comes_out_as_dense_has_it(network):
    x = torch.randn(1, 3, 40, 56)
    run = fuse(network, (x,), {})
    for value in (float("nan"), float("inf"), 3e38, 1e-42):
        odd = x.clone()
        odd[0, 1, 7, 9] = value
        assert close(run, network, odd)
    assert close(run, network, torch.full((1, 3, 40, 56), -3e38))
    assert close(run, network, torch.randn(3, 3, 32, 48))


def test_calls_from_several_threads_do_not_disturb_each_other(network):
    x = torch.randn(1, 3, 40, 56)
    run = fuse(network, (x,), {})
    inputs = [torch.randn(1, 3, 40, 56) for _ in range(4)]
    wrong = []

    def work(own):
        wrong.extend(own for _ in range(20) if not close(run, network, own))

    threads = [threading.Thread(target=work, args=(own,)) for own in inputs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


class Odd(nn.Module):
    """What cannot be fused, between what can."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.dense = nn.Conv2d(8, 8, 3, padding=1)
        self.strange = nn.Conv2d(8, 8, 3, padding="same", padding_mode="reflect")
        self.last = nn.Conv2d(24, 5, 1)

    def forward(self, x):
        a = self.a(x)
        b = self.b(torch.sigmoid(a)) + 2.0
        c = nn.functional.hardtanh(self.dense(a) + a[:, :, :1], -0.3, 0.4)
        d = torch.cat([a, b.transpose(2, 3), self.strange(c)], 1)
        e = torch.add(self.last(d), a[:, :5], alpha=2)
        return e.clamp(min=-1).view(len(x), -1)


def test_operators_that_are_not_known_run_as_they_are():
    torch.manual_seed(0)
    network = sparse(Odd())
    network.dense.weight.data[:] = torch.randn(8, 8, 3, 3)
    x = torch.randn(2, 8, 9, 9)
    run = fuse(network, (x,), {})
    assert set(run.layers) == {"a", "b", "strange", "last"} or set(run.layers) == {"a", "b", "last"}
    assert close(run, network, x) and close(run, network, torch.randn(2, 8, 9, 9))


class Both(nn.Module):
    """A convolution added to itself, and one that is read twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        a, b = self.a(x), self.b(x)
        return torch.relu(a + a) + torch.relu(b) * b


def test_convolutions_that_are_read_twice():
    network, x = sparse(Both()), torch.randn(1, 8, 5, 7)
    assert close(fuse(network, (x,), {}), network, x)


def test_what_is_not_fused():
    x = torch.randn(1, 4, 6, 6)
    dense = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU()).eval()
    assert fuse(dense, (x,), {}) is None
    # A layer that gains is, however many of its weights are left.
    gaining = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1)).eval()
    wide = torch.randn(1, 8, 6, 6)
    run = fuse(gaining, (wide,), {}, ["0"])
    assert run is not None and set(run.layers) == {"0"} and close(run, gaining, wide)
    zeros = sparse(nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU()))
    assert fuse(zeros, (x,), {}) is not None
    assert fuse(zeros, (x.double(),), {}) is None
    zeros[0].weight.data[0, 0, 0, 0] = float("nan")
    assert fuse(zeros, (x,), {}) is None


@settings(max_examples=25, deadline=None)
@given(
    size=st.tuples(st.integers(3, 12), st.integers(3, 40)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
def test_pooling(size, kernel, stride):
    x = torch.randn(2, 3, *size)
    padding = tuple(k // 2 for k in kernel)
    expected = nn.functional.max_pool2d(x, kernel, stride, padding)
    y = np.empty(expected.shape, np.float32)
    pool.max_pool(x.numpy(), y, *kernel, *stride, *padding)
    assert np.array_equal(y, expected.numpy())
    means = np.empty(6, np.float32)
    pool.mean_pool(x.numpy().reshape(6, -1), means)
    assert np.allclose(means, x.double().mean((2, 3)).reshape(-1), atol=1e-6)


@pytest.mark.parametrize("kind", ["vector", "plain"])
@pytest.mark.parametrize("shape", [(1, 1), (7, 33), (100, 64)])
def test_dense_layers_of_one_example(kind, shape, monkeypatch):
    from automl.executors.fused.dense import AlignedLinear

    if kind == "plain":
        monkeypatch.setattr(cpu, "supports", lambda needed: False)
    rng = np.random.default_rng(0)
    weight, bias = whole_numbers(rng, shape), whole_numbers(rng, shape[0])
    layer, x = AlignedLinear.of(weight, bias), whole_numbers(rng, shape[1])
    y = np.empty(shape[0], np.float32)
    assert layer.multiply_into(x, y) and np.array_equal(layer.to_dense(), weight)
    assert np.array_equal(y, weight @ x + bias)
