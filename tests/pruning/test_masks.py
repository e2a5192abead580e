"""Masks: zeros that survive every optimiser, copies, checkpoints and the disk."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from automl.pruning.masks import (
    PACKED,
    attach,
    detach,
    enforce,
    masks_of,
    pack,
    protect,
    sparsity,
    unpack,
    watch,
)
from automl.training.config import FinetuneConfig
from automl.training.finetune import finetune
from automl.types import InputError

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=1e-2, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
}


class Net(nn.Module):
    """A convolution, a norm and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.linear = nn.Linear(6, 4)

    def forward(self, x):
        return self.linear(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


def some_masks(network: nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(network.get_parameter(name).shape, generator=generator) > 0.5
        for name in ("conv.weight", "linear.weight")
    }


def made() -> tuple[Net, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    network = Net()
    masks = some_masks(network)
    attach(network, masks)
    return network, masks


def train(network: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 5) -> None:
    network.train()
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        loss = F.cross_entropy(
            network(torch.randn(8, 2, 5, 5, generator=generator)),
            torch.randint(4, (8,), generator=generator),
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def assert_zero(network: nn.Module, masks: dict[str, torch.Tensor]) -> None:
    for name, mask in masks.items():
        weight = network.get_parameter(name).detach()
        assert (weight[~mask] == 0).all(), name
        assert not torch.signbit(weight[~mask]).any(), name
        assert (weight[mask] != 0).any(), name


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pruned_weights_are_zero_after_any_step_of_an_optimizer_made_later(name):
    network, masks = made()
    optimizer = OPTIMIZERS[name](network.parameters())
    before = network.linear.weight.detach().clone()
    for _ in range(4):
        train(network, optimizer, 1)
        assert_zero(network, masks)
    assert not torch.equal(network.linear.weight, before)
    for weight, mask in ((network.get_parameter(n), m) for n, m in masks.items()):
        for value in optimizer.state[weight].values():
            if isinstance(value, torch.Tensor) and value.shape == weight.shape:
                assert (value[~mask] == 0).all()


def in_eval_mode(network: Net):
    return network.eval()


def compiled(network: Net):
    return torch.compile(network.train(), backend="eager")


def layers_alone(network: Net):
    network.train()
    return lambda x: network.linear(network.conv(x).mean((2, 3)))


def unfrozen(network: Net):
    network.requires_grad_(False).train()(torch.randn(2, 2, 5, 5))
    return network.requires_grad_(True)


def masked_anew(network: Net):
    attach(network, masks_of(network))
    return network.train()


@pytest.mark.parametrize("called", [in_eval_mode, compiled, layers_alone, unfrozen, masked_anew])
@pytest.mark.parametrize("copied", [False, True])
def test_pruned_weights_stay_zero_however_the_network_is_called(called, copied):
    network, masks = made()
    if copied:
        network = copy.deepcopy(network)
        watch(network)
    optimizer, call = OPTIMIZERS["sgd"](network.parameters()), called(network)
    for step in range(4):
        generator = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        call(torch.randn(8, 2, 5, 5, generator=generator)).square().sum().backward()
        optimizer.step()
        assert_zero(network, masks)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda n: pickle.loads(pickle.dumps(n))])
def test_copies_keep_zeros_in_eval_mode_from_their_first_forward_pass_on(copied):
    network, masks = made()
    other = copied(network).eval()
    optimizer = OPTIMIZERS["sgd"](other.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        other(torch.randn(8, 2, 5, 5)).square().sum().backward()
        optimizer.step()
        assert_zero(other, masks)


def test_two_forward_passes_may_come_before_a_backward_pass():
    network, masks = made()
    (network(torch.randn(4, 2, 5, 5)) + network(torch.randn(4, 2, 5, 5))).sum().backward()
    assert (network.conv.weight.grad[~masks["conv.weight"]] == 0).all()


def test_weights_in_place_of_the_networks_are_left_alone():
    network, masks = made()
    given = {name: torch.ones_like(p) for name, p in network.named_parameters()}
    torch.func.functional_call(network, given, (torch.randn(4, 2, 5, 5),))
    assert all((tensor == 1).all() for tensor in given.values())
    assert_zero(network, masks)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_momentum_gathered_before_pruning_moves_nothing_where_the_optimizer_is_protected(name):
    torch.manual_seed(0)
    network = Net()
    optimizer = OPTIMIZERS[name](network.parameters())
    protect(optimizer, network)
    train(network, optimizer, 3)
    masks = some_masks(network)
    attach(network, masks)
    for _ in range(4):
        train(network, optimizer, 1)
        assert_zero(network, masks)


def test_without_protection_old_momentum_is_undone_by_the_next_forward_pass():
    torch.manual_seed(0)
    network = Net()
    optimizer = OPTIMIZERS["sgd"](network.parameters())
    train(network, optimizer, 3)
    masks = some_masks(network)
    attach(network, masks)
    train(network, optimizer, 1)
    assert (network.conv.weight[~masks["conv.weight"]] != 0).any()  # what protect is for
    network(torch.randn(2, 2, 5, 5))
    assert_zero(network, masks)


def test_gradients_are_dense_for_autograd_and_masked_for_optimizers():
    network, masks = made()
    network.train()
    loss = network(torch.randn(4, 2, 5, 5)).square().sum()
    (dense,) = torch.autograd.grad(loss, [network.conv.weight], retain_graph=True)
    assert (dense[~masks["conv.weight"]] != 0).any()
    loss.backward()
    assert (network.conv.weight.grad[~masks["conv.weight"]] == 0).all()
    torch.testing.assert_close(
        network.conv.weight.grad[masks["conv.weight"]], dense[masks["conv.weight"]]
    )


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda n: pickle.loads(pickle.dumps(n))])
def test_copies_keep_their_own_masks(copied):
    network, masks = made()
    train(network, OPTIMIZERS["sgd"](network.parameters()), 1)
    other = copied(network)
    train(other, OPTIMIZERS["adam"](other.parameters()), 3)
    assert_zero(other, masks)
    attach(other, {"linear.weight": ~masks["linear.weight"]})
    assert masks_of(network)["linear.weight"].equal(masks["linear.weight"])


def test_a_state_dict_carries_masks():
    network, masks = made()
    train(network, OPTIMIZERS["sgd"](network.parameters()), 2)
    other = Net()
    attach(other, {name: torch.ones_like(mask) for name, mask in masks.items()})
    other.load_state_dict(network.state_dict())
    assert all(masks_of(other)[name].equal(mask) for name, mask in masks.items())
    train(other, OPTIMIZERS["adamw"](other.parameters()), 2)
    assert_zero(other, masks)


def test_moving_to_another_type_keeps_masks():
    network, masks = made()
    train(network, OPTIMIZERS["sgd"](network.parameters()), 1)
    network.double()
    assert network.conv.weight.dtype == torch.float64
    network.train()
    network(torch.randn(4, 2, 5, 5, dtype=torch.float64)).sum().backward()
    assert (network.conv.weight.grad[~masks["conv.weight"]] == 0).all()


def test_masks_changed_in_place_count_at_once():
    network, masks = made()
    train(network, OPTIMIZERS["sgd"](network.parameters()), 1)
    masks_of(network)["conv.weight"].copy_(~masks["conv.weight"])
    train(network, OPTIMIZERS["sgd"](network.parameters()), 1)
    assert_zero(network, {"conv.weight": ~masks["conv.weight"]})


def test_what_is_pruned_is_zero_even_where_it_was_not_a_number():
    network = Net()
    with torch.no_grad():
        network.conv.weight.fill_(torch.nan)
    masks = some_masks(network)
    attach(network, masks)
    enforce(network)
    assert (network.conv.weight[~masks["conv.weight"]] == 0).all()


def test_detached_networks_are_plain_and_keep_their_zeros():
    network, masks = made()
    train(network, OPTIMIZERS["sgd"](network.parameters()), 1)
    detach(network)
    assert_zero(network, masks)
    assert masks_of(network) == {} and set(network.state_dict()) == set(Net().state_dict())
    train(network, OPTIMIZERS["sgd"](network.parameters()), 1)
    assert (network.conv.weight[~masks["conv.weight"]] != 0).any()


def test_networks_are_freed_at_once():
    network, _ = made()
    train(network, OPTIMIZERS["sgd"](network.parameters()), 1)
    gone = weakref.ref(network)
    gc.disable()
    try:
        del network
        assert gone() is None
    finally:
        gc.enable()


def test_masks_are_packed_into_bits_and_come_back():
    network, masks = made()
    packed = pack(network.state_dict(), network)
    bits = packed[f"linear.weight{PACKED}"]
    assert bits.dtype == torch.uint8 and bits.numel() == -(-network.linear.weight.numel() // 8)
    assert not any(name.endswith("_mask") for name in packed)
    found = unpack(packed, Net())
    assert found.keys() == masks.keys()
    assert all(found[name].equal(mask) for name, mask in masks.items())


@pytest.mark.parametrize("name", [f"conv.weight{PACKED}", f"absent.weight{PACKED}"])
def test_packed_masks_of_another_network_are_refused(name):
    with pytest.raises(InputError, match="does not fit the network"):
        unpack({name: torch.zeros(3, dtype=torch.uint8)}, Net())


@pytest.mark.parametrize(
    ("name", "mask", "says"),
    [
        ("conv.weight", torch.ones(6, 2, 3, 3), "must be bool"),
        ("conv.weight", torch.ones(6, 2, dtype=torch.bool), "must be bool"),
        ("conv.absent", torch.ones(6, dtype=torch.bool), "must be a parameter"),
    ],
)
def test_masks_that_fit_no_parameter_are_refused(name, mask, says):
    with pytest.raises(ValueError, match=says):
        attach(Net(), {name: mask})


def test_a_name_that_is_taken_is_refused():
    network = Net()
    network.conv.weight_mask = "mine"
    with pytest.raises(ValueError, match="must be free"):
        attach(network, some_masks(network))


def test_sparsity_counts_masked_weights():
    network, masks = made()
    total = sum(mask.numel() for mask in masks.values())
    assert sparsity(network) == pytest.approx(1 - sum(int(m.sum()) for m in masks.values()) / total)
    assert sparsity(Net()) == 0


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_fine_tuning_keeps_masks_and_resumes_with_them(tmp_path, optimizer):
    def tuned(epochs: int, checkpoint=None) -> nn.Module:
        network, _ = made()
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(24, 2, 5, 5, generator=generator)
        y = torch.randint(4, (24,), generator=generator)
        batches = [(x[i : i + 8], y[i : i + 8]) for i in range(0, 24, 8)]
        config = FinetuneConfig(epochs=4, optimizer=optimizer, lr=0.05, max_grad_norm=1.0)

        def stop(row) -> None:
            if row.epoch == epochs:
                raise KeyboardInterrupt

        try:
            finetune(network, batches, config, checkpoint=checkpoint, progress=stop)
        except KeyboardInterrupt:
            pass
        return network

    whole = tuned(5)
    tuned(2, tmp_path / "cut.pt")
    resumed = tuned(5, tmp_path / "cut.pt")
    masks = some_masks(whole)
    for network in (whole, resumed):
        assert_zero(network, masks)
    ours, theirs = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
