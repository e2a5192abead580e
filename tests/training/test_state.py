import pytest
import torch
from torch import nn

from automl.training.state import evaluating, restored_modes


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
