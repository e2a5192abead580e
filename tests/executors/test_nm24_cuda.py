import pytest
import torch
from torch import nn
from torch.nn import functional as F

from automl.executors import nm24_cuda
from automl.types import InputError

needs_cuda = pytest.mark.skipif(
    nm24_cuda.unsupported() is not None, reason=f"no 2:4 on CUDA: {nm24_cuda.unsupported()}"
)


def two_of_four(layer):
    """Sets the first two of every four neighbouring inputs to zero."""
    with torch.no_grad():
        weight = layer.weight
        rows = weight if weight.dim() == 2 else weight.permute(0, 2, 3, 1)
        rows = rows.clone().reshape(-1, 4)
        rows[:, :2] = 0
        if weight.dim() == 2:
            weight.copy_(rows.reshape(weight.shape))
        else:
            shape = (len(weight), *weight.shape[2:], weight.shape[1])
            weight.copy_(rows.reshape(shape).permute(0, 3, 1, 2))
    return layer


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [((1, 1), (1, 1), (0, 0), (1, 1)), ((1, 1), (2, 2), (0, 0), (1, 1)),
     ((3, 2), (2, 1), (1, 0), (1, 2)), ((1, 1), (1, 1), (1, 1), (1, 1))],
)  # fmt: skip
def test_a_convolution_is_a_product_with_the_unfolded_image(kernel, stride, padding, dilation):
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 6, kernel, stride, padding, dilation).double()
    x = torch.randn(2, 8, 9, 7).double()
    columns, height, width = nm24_cuda.unfolded(x, kernel, stride, padding, dilation)
    y = F.linear(columns, nm24_cuda._matrix(layer), layer.bias)
    y = y.reshape(2, height, width, -1).permute(0, 3, 1, 2)
    assert torch.allclose(y, layer(x))


def test_what_does_not_fit_says_why():
    linear = nn.Linear(128, 64).half()
    assert nm24_cuda.unfit(linear) == "it has 4 of 4 neighbours that are not zero"
    assert nm24_cuda.unfit(two_of_four(linear)) is None
    assert nm24_cuda.unfit(two_of_four(nn.Conv2d(64, 32, 3)).bfloat16()) is None
    assert "float32" in nm24_cuda.unfit(nn.Linear(128, 64))
    assert "no multiple of 32 x 64" in nm24_cuda.unfit(nn.Linear(100, 64).half())
    assert "groups" in nm24_cuda.unfit(nn.Conv2d(64, 64, 3, groups=2).half())
    assert nm24_cuda.unfit(nn.ReLU()) == "it is a ReLU"


def test_without_a_device_layers_are_refused_and_networks_stay_dense():
    layer = two_of_four(nn.Linear(128, 64).half())
    with pytest.raises(InputError, match="cannot run in 2:4 on CUDA"):
        nm24_cuda.SemiStructuredLinear(layer)
    network = nn.Sequential(layer, nn.ReLU())
    said = nm24_cuda.compress(network)
    assert set(said) == {"0"} and said["0"] != "2:4" and network[0] is layer


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 8, 37])
def test_linear_layers_equal_dense(dtype, rows):
    torch.manual_seed(0)
    layer = two_of_four(nn.Linear(256, 128)).to("cuda", dtype)
    x = torch.randn(rows, 256, device="cuda", dtype=dtype)
    expected = F.linear(x.double(), layer.weight.double(), layer.bias.double())
    with torch.inference_mode():
        y = nm24_cuda.SemiStructuredLinear(layer)(x)
    tolerance = 2e-2 * float(expected.abs().max())
    assert torch.allclose(y.double(), expected, atol=tolerance)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2)])
def test_convolutions_equal_dense(kernel, stride):
    torch.manual_seed(0)
    layer = two_of_four(nn.Conv2d(64, 96, kernel, stride, kernel // 2)).to("cuda", torch.float16)
    x = torch.randn(2, 64, 15, 13, device="cuda", dtype=torch.float16)
    expected = F.conv2d(x.double(), layer.weight.double(), layer.bias.double(), stride, kernel // 2)
    with torch.inference_mode():
        y = nm24_cuda.SemiStructuredConv2d(layer)(x)
    assert torch.allclose(y.double(), expected, atol=2e-2 * float(expected.abs().max()))


@pytest.mark.gpu
@needs_cuda
def test_networks_are_compressed_where_layers_fit():
    network = nn.Sequential(two_of_four(nn.Linear(128, 64)), nn.ReLU(), nn.Linear(64, 10))
    said = nm24_cuda.compress(network.to("cuda", torch.float16))
    assert said["0"] == "2:4" and said["2"] != "2:4"
    assert type(network[0]) is nm24_cuda.SemiStructuredLinear
