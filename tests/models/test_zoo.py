"""The zoo: every yaml loads, sizes are the papers', forward passes and exports hold."""

from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from automl.data import load_data
from automl.data.parts import IMAGENET_MEAN, IMAGENET_STD
from automl.models import load_model, resolve_checkpoint
from automl.models.cifar import BasicBlock, CifarNet, PadShortcut, resnet20
from automl.models.digits import digits_cnn
from automl.models.mobilenet import mobilenet_v1, mobilenet_v2
from automl.models.vit import vit_tiny
from automl.paths import conf_dir

CONFIGS = {
    path.stem: yaml.safe_load(path.read_text("utf-8"))
    for path in sorted((conf_dir() / "model").glob("*.yaml"))
}
ZOO = sorted(name for name, config in CONFIGS.items() if config["factory"])
SCHEMA = ["name", "factory", "kwargs", "checkpoint", "input_shape", "data", "trained_on"]

# Parameters and MACs of one image. ResNets: He et al. 2016, table 6 (0.27 M, 0.46 M, ...);
# MobileNets: 569 M and 300 M MACs in their papers; VGG-16: 313 M in Li et al. 2017.
SIZES = {
    # Without sparse convolutions, whose MACs depend on the cloud.
    "shapes_tiny": (114_213, 240),
    # Without attention's own products, which the counter does not see in fused kernels.
    "bert_tiny": (42_778, 887_520),
    "gpt_tiny": (77_856, 1_770_240),
    "digits": (184_138, 3_889_792),
    "mobilenet_v1": (4_231_976, 568_740_352),
    "mobilenet_v1_32": (3_217_226, 46_354_432),
    "mobilenet_v2": (3_504_872, 300_774_272),
    "mobilenet_v2_32": (2_236_682, 87_976_448),
    "plain20": (269_722, 40_551_040),
    "recommender_tiny": (8_354, 6_208),
    "resnet20": (269_722, 40_551_040),
    "resnet32": (464_154, 68_862_592),
    "resnet44": (658_586, 97_174_144),
    "resnet56": (853_018, 125_485_696),
    "resnet110": (1_727_962, 252_887_680),
    "vgg16_bn": (14_987_210, 313_463_808),
    "vit_tiny": (2_693_578, 173_115_264),
}


def untrained(name):
    config = CONFIGS[name]
    return load_model(config["factory"], kwargs=config["kwargs"], input_shape=config["input_shape"])


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_every_yaml_has_the_schema(name):
    config = CONFIGS[name]
    assert [key for key in config if key != "licence"] == SCHEMA
    assert "licence" in config or not str(config["checkpoint"]).startswith("package:")
    assert config["name"] == name
    assert config["trained_on"] in ("train", "all_train", None)
    assert (config["trained_on"] is None) == (config["checkpoint"] is None)
    if config["data"] is not None:
        assert (conf_dir() / "data" / f"{config['data']}.yaml").is_file()


@pytest.mark.parametrize("name", ZOO)
def test_sizes_are_those_of_the_papers(name):
    loaded = untrained(name)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        logits = loaded.model(loaded.example_inputs[0][:1])
    params = sum(parameter.numel() for parameter in loaded.model.parameters())
    assert (params, counter.get_total_flops() // 2) == SIZES[name]
    classes = {"gpt_tiny": 16, "recommender_tiny": 2, "shapes_tiny": 5}.get(
        name, CONFIGS[name]["kwargs"].get("num_classes", 10)
    )
    assert logits.shape == (1, classes)
    assert logits.isfinite().all()


def test_every_zoo_model_has_a_size_here():
    assert sorted(SIZES) == ZOO


@pytest.mark.parametrize("name", ["digits", "resnet20", "vgg16_bn", "mobilenet_v2_32", "vit_tiny"])
def test_outputs_do_not_depend_on_the_rest_of_the_batch(name):
    loaded = untrained(name)
    (x,) = loaded.example_inputs
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model(x)[:1], loaded.model(x[:1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["digits", "resnet20", "plain20", "vgg16_bn", "mobilenet_v1_32", "mobilenet_v2_32"]
)
def test_graphs_export_with_any_batch_size_and_few_operators(name):
    operators = exported_operators(name)
    assert operators <= {
        "conv2d",
        "batch_norm",
        "relu",
        "relu6",
        "hardtanh",
        "add",
        "slice",
        "pad",
        "adaptive_avg_pool2d",
        "max_pool2d",
        "flatten",
        "linear",
        "dropout",
    }


def test_vit_exports_with_any_batch_size_and_one_attention_operator():
    operators = exported_operators("vit_tiny")
    assert "scaled_dot_product_attention" in operators
    assert "softmax" not in operators


def exported_operators(name):
    loaded = untrained(name)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(loaded.model, loaded.example_inputs, dynamic_shapes=({0: batch},))
    x = torch.randn(5, *loaded.input_shape)
    with torch.inference_mode():
        torch.testing.assert_close(program.module()(x), loaded.model(x), rtol=1e-4, atol=1e-5)
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    return {node.target.__name__.split(".")[0].rstrip("_") for node in calls}


def test_option_a_shortcut_subsamples_and_pads_with_zeros():
    x = torch.arange(2 * 2 * 4 * 4.0).view(2, 2, 4, 4)
    y = PadShortcut(stride=2, before=1, after=3)(x)
    assert y.shape == (2, 6, 2, 2)
    assert torch.equal(y[:, 1:3], x[:, :, ::2, ::2])
    assert not y[:, [0, 3, 4, 5]].any()


def test_resnet_keys_are_those_of_the_published_checkpoints():
    keys = set(resnet20().state_dict())
    assert {"conv1.weight", "bn1.running_var", "layer1.0.conv1.weight"} <= keys
    assert {"layer3.2.bn2.bias", "linear.weight", "linear.bias"} <= keys
    assert not any("shortcut" in key for key in keys)


def test_mobilenet_v2_equals_torchvisions_with_its_weights():
    torchvision = pytest.importorskip("torchvision")
    ours = mobilenet_v2(num_classes=7, width=0.35).eval()
    theirs = torchvision.models.mobilenet_v2(num_classes=7, width_mult=0.35).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x))


def test_mobilenet_v1_has_the_channels_of_amcs_three_quarter_profile():
    # mit-han-lab/amc-models, profile '0.75'
    model = mobilenet_v1(width=0.75)
    widths = [block[3].out_channels for block in model.features]
    assert widths == [48, 96, 96, 192, 192, *[384] * 6, 768, 768]
    assert model.conv1[0].out_channels == 24


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CifarNet(BasicBlock, 21, 10), "depth must be 6n"),
        (lambda: digits_cnn(widths=(8, 16), blocks=(1,)), "blocks must name one count"),
        (lambda: vit_tiny(patch_size=5), "patch_size must divide"),
        (lambda: vit_tiny(num_heads=5), "num_heads must divide"),
        (lambda: mobilenet_v2(stage_strides=(1, 2)), "stage_strides must name 7"),
    ],
)
def test_impossible_shapes_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


# The shipped and the published weights


def top1(model, part, mean, std):
    right = total = 0
    with torch.inference_mode():
        for x, y in part.batches(250, mean=mean, std=std):
            right += int((model(x).argmax(1) == y).sum())
            total += len(y)
    return right / total


def test_shipped_digits_network_is_small_and_accurate():
    config, data = CONFIGS["digits"], load_data("digits")
    loaded = load_model(
        config["factory"], checkpoint=config["checkpoint"], input_shape=config["input_shape"]
    )
    assert Path(loaded.checkpoint).stat().st_size < 2**20
    assert top1(loaded.model, data.test, data.mean, data.std) >= 0.98
    assert top1(loaded.model, data.validation, data.mean, data.std) >= 0.98


def test_pruning_half_of_the_digits_networks_channels_hurts():
    config, data = CONFIGS["digits"], load_data("digits")
    loaded = load_model(
        config["factory"], checkpoint=config["checkpoint"], input_shape=config["input_shape"]
    )
    for block in loaded.model.blocks:
        silence_smallest_half(block.conv1, block.bn1)
    assert top1(loaded.model, data.validation, data.mean, data.std) < 0.9


@torch.no_grad()
def silence_smallest_half(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> None:
    norms = conv.weight.abs().sum((1, 2, 3))
    least = norms.argsort()[: len(norms) // 2]
    bn.weight[least] = 0
    bn.bias[least] = 0


@pytest.mark.data
@pytest.mark.parametrize(("name", "least"), [("resnet20", 0.89), ("resnet56", 0.91)])
def test_published_checkpoints_give_their_accuracy(name, least, cifar10_test, data_root):
    config = CONFIGS[name]
    loaded = load_model(
        config["factory"],
        kwargs=config["kwargs"],
        checkpoint=resolve_checkpoint(config["checkpoint"], data_root),
        input_shape=config["input_shape"],
    )
    # 91.7 and 94 % on all test images; two standard errors of 500 below.
    assert top1(loaded.model, cifar10_test, IMAGENET_MEAN, IMAGENET_STD) >= least
