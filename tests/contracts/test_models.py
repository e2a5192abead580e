"""What every network keeps: pruned at random it equals the masked dense one, and counts are exact.

The zoo as conf/model has it, and networks of torchvision and timm in sizes that are quick to trace;
scripts/model_coverage.py does the same with the published sizes.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from oracle import compare, counted_macs, random_units, randomise
from torch import nn

from automl.graph.trace import Trace, trace
from automl.models.factory import build
from automl.paths import conf_dir
from automl.plan import IndexPlan

#: What tracing says of graph forms, of some as the time that it is given has it.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:.*{text}")
    for text in ("inputs of the traced sizes only", "in training alone")
]

#: Smaller images, or None for what is only deeper than another, so that all takes a minute.
_SMALLER = {
    "automl.models.cifar.resnet32": None,
    "automl.models.cifar.resnet44": None,
    "automl.models.cifar.resnet56": None,
    "automl.models.cifar.resnet110": None,
    "automl.models.mobilenet.mobilenet_v1": (3, 64, 64),
    "automl.models.mobilenet.mobilenet_v2": (3, 64, 64),
}


def zoo() -> dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]]:
    """Networks of conf/model: a factory and the shape of an example."""
    found = {}
    for path in sorted((conf_dir() / "model").glob("*.yaml")):
        config = yaml.safe_load(path.read_text())
        if config["factory"] is None or _SMALLER.get(config["factory"], ()) is None:
            continue
        shape = _SMALLER.get(config["factory"]) or tuple(config["input_shape"])
        make = partial(lambda factory, kwargs: build(factory, kwargs).model,
                       config["factory"], config["kwargs"])  # fmt: skip
        found[path.stem] = (make, shape)
    return found


# ---- torchvision


def torchvision(name: str, **kwargs: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return build(f"torchvision:{name}", {"num_classes": 7, **kwargs}).model


def tv_resnet(block: str, **kwargs: Any) -> nn.Module:
    from torchvision.models import resnet

    return resnet.ResNet(getattr(resnet, block), [1, 1, 1, 1], 7, **kwargs)


def tv_vgg() -> nn.Module:
    from torchvision.models import vgg

    network = vgg.VGG(vgg.make_layers([8, "M", 12, 12, "M", 16, "M"], True), 7)
    network.classifier[0] = nn.Linear(16 * 49, 24)
    network.classifier[3] = nn.Linear(24, 20)
    network.classifier[6] = nn.Linear(20, 7)
    return network


def tv_efficientnet() -> nn.Module:
    from torchvision.models.efficientnet import EfficientNet, FusedMBConvConfig, MBConvConfig

    blocks = [FusedMBConvConfig(2, 3, 2, 8, 16, 1), MBConvConfig(3, 3, 1, 16, 16, 2)]
    return EfficientNet(blocks, 0.1, num_classes=7, last_channel=24)


def tv_mobilenet_v3() -> nn.Module:
    from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3

    def block(inputs: int, wide: int, out: int, excite: bool, act: str, stride: int) -> Any:
        return InvertedResidualConfig(inputs, 3, wide, out, excite, act, stride, 1, 1.0)

    blocks = [block(16, 16, 16, True, "RE", 2), block(16, 40, 24, False, "HS", 1),
              block(24, 48, 24, True, "HS", 1)]  # fmt: skip
    return MobileNetV3(blocks, 32, num_classes=7)


def tv_densenet() -> nn.Module:
    from torchvision.models.densenet import DenseNet

    return DenseNet(6, (3, 2), 12, num_classes=7)


def tv_shufflenet() -> nn.Module:
    from torchvision.models.shufflenetv2 import ShuffleNetV2

    return ShuffleNetV2([2, 2, 1], [8, 16, 24, 32, 40], 7)


def tv_regnet() -> nn.Module:
    from torchvision.models.regnet import BlockParams, RegNet

    parameters = BlockParams.from_init_params(3, 8, 8.0, 2.0, 8, se_ratio=0.25)
    return RegNet(parameters, 7)


def tv_convnext() -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    return ConvNeXt([CNBlockConfig(12, 16, 1), CNBlockConfig(16, None, 2)], num_classes=7)


def tv_vit() -> nn.Module:
    from torchvision.models.vision_transformer import VisionTransformer

    return VisionTransformer(16, 8, 2, 3, 24, 32, num_classes=7)


def tv_swin(version: int) -> nn.Module:
    from torchvision.models import swin_transformer as swin

    kwargs = {} if version == 1 else {
        "block": swin.SwinTransformerBlockV2, "downsample_layer": swin.PatchMergingV2,
    }  # fmt: skip
    return swin.SwinTransformer([2, 2], 12, [2, 1], [2, 3], [4, 4], num_classes=7, **kwargs)


def tv_maxvit() -> nn.Module:
    from torchvision.models.maxvit import MaxVit

    return MaxVit((32, 32), 8, 4, [8, 12], [1, 1], 4, 0.0, num_classes=7)


IMAGE, LARGER = (3, 32, 32), (3, 64, 64)
TORCHVISION = {
    "resnet18": (partial(tv_resnet, "BasicBlock"), IMAGE),
    "resnet50": (partial(tv_resnet, "Bottleneck"), IMAGE),
    "resnext50": (partial(tv_resnet, "Bottleneck", groups=32, width_per_group=4), IMAGE),
    "wide_resnet50": (partial(tv_resnet, "Bottleneck", width_per_group=128), IMAGE),
    "vgg11_bn": (tv_vgg, IMAGE),
    "mobilenet_v2": (partial(torchvision, "mobilenet_v2", width_mult=0.25), IMAGE),
    "mobilenet_v3": (tv_mobilenet_v3, IMAGE),
    "efficientnet": (tv_efficientnet, IMAGE),
    "densenet": (tv_densenet, IMAGE),
    "squeezenet": (partial(torchvision, "squeezenet1_1"), LARGER),
    "googlenet": (partial(torchvision, "googlenet", aux_logits=False, init_weights=False), LARGER),
    "shufflenet": (tv_shufflenet, IMAGE),
    "regnet": (tv_regnet, IMAGE),
    "convnext": (tv_convnext, IMAGE),
    "vit": (tv_vit, (3, 16, 16)),
    "swin": (partial(tv_swin, 1), (3, 16, 16)),
    "swin_v2": (partial(tv_swin, 2), (3, 16, 16)),
    "maxvit": (tv_maxvit, IMAGE),
}


# ---- timm


def timm(name: str, **kwargs: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return build(f"timm:{name}", {"num_classes": 7, **kwargs}).model


def timm_mixer() -> nn.Module:
    from timm.models.mlp_mixer import MlpMixer

    return MlpMixer(7, 32, 3, 8, 2, 16)


def timm_resmlp() -> nn.Module:
    from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock

    return MlpMixer(7, 32, 3, 8, 2, 16, 4, ResBlock, norm_layer=Affine)


def timm_standardised() -> nn.Module:
    from timm.layers import GroupNormAct, StdConv2d
    from timm.models.resnetv2 import ResNetV2

    conv, norm = partial(StdConv2d, eps=1e-8), partial(GroupNormAct, num_groups=4)
    return ResNetV2(
        [1, 1], [32, 64], 7, stem_chs=8, stem_type="fixed", conv_layer=conv, norm_layer=norm
    )


def timm_levit() -> nn.Module:
    from timm.models.levit import Levit

    return Levit(64, num_classes=7, embed_dim=(16, 24), key_dim=4, depth=(1, 1),
                 num_heads=(2, 3), attn_ratio=(2.0, 2.0), mlp_ratio=(2.0, 2.0))  # fmt: skip


def timm_poolformer() -> nn.Module:
    from timm.layers import GroupNorm1
    from timm.models.metaformer import MetaFormer, Pooling

    return MetaFormer(3, 7, depths=(1, 1), dims=(8, 12), token_mixers=Pooling, mlp_act=nn.GELU,
                      mlp_bias=True, norm_layers=GroupNorm1, use_mlp_head=False)  # fmt: skip


def timm_mobilevit() -> nn.Module:
    """Its first stages, the last of which has a block of attention."""
    from timm.models.byobnet import ByobNet
    from timm.models.mobilevit import model_cfgs

    whole = model_cfgs["mobilevit_xxs"]
    return ByobNet(dataclasses.replace(whole, blocks=whole.blocks[:3]), num_classes=7)


_SMALL_VIT = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
_FOUR = {"depths": (1, 1, 1, 1), "dims": (8, 12, 16, 20)}
TIMM = {
    "deit": (partial(timm, "deit_tiny_patch16_224", **_SMALL_VIT), (3, 16, 16)),
    "deit_distilled": (
        partial(timm, "deit_tiny_distilled_patch16_224", **_SMALL_VIT), (3, 16, 16)
    ),
    "beit": (partial(timm, "beit_base_patch16_224", **_SMALL_VIT), (3, 16, 16)),
    "mixer": (timm_mixer, IMAGE),
    "resmlp": (timm_resmlp, IMAGE),
    "mobilevit": (timm_mobilevit, IMAGE),
    "res2net": (
        partial(timm, "res2net50_26w_4s", layers=(1, 1, 1, 1), base_width=8), IMAGE
    ),
    "resnetv2": (
        partial(timm, "resnetv2_50", layers=(1, 1), channels=(32, 48), stem_chs=8), IMAGE
    ),
    "resnetv2_standardised": (timm_standardised, IMAGE),
    "convnext_v2": (partial(timm, "convnextv2_atto", **_FOUR), LARGER),
    "swinv2": (
        partial(timm, "swinv2_tiny_window8_256", img_size=32, window_size=4, embed_dim=12,
                depths=(2, 2), num_heads=(2, 3)), IMAGE,
    ),
    "levit": (timm_levit, LARGER),
    "xcit": (
        partial(timm, "xcit_nano_12_p16_224", img_size=32, embed_dim=16, depth=1, num_heads=2),
        IMAGE,
    ),
    "ghostnet": (partial(timm, "ghostnet_050"), IMAGE),
    "poolformer": (timm_poolformer, LARGER),
}  # fmt: skip

NETWORKS = {
    **{f"zoo:{name}": entry for name, entry in zoo().items()},
    **{f"torchvision:{name}": entry for name, entry in TORCHVISION.items()},
    **{f"timm:{name}": entry for name, entry in TIMM.items()},
}
#: Nothing of these can be pruned; they must still be counted and run.
WHOLE = {"timm:resnetv2_standardised"}
#: Its einsums turn products over a single head into element-wise ones, which are not counted.
UNCOUNTED = {"torchvision:maxvit"}
#: PyTorch's counter does not know convolutions on points; tests/graph/test_points.py counts them.
UNKNOWN = {"zoo:shapes_tiny"}
#: torch finds no graph for all sizes of their inputs in the time that it is given, seconds each;
#: tests/graph/test_caveats.py has what becomes of such networks.
SIZED = {"torchvision:swin", "torchvision:swin_v2", "timm:mobilevit", "timm:xcit"}


@cache
def traced(name: str) -> Trace:
    make, shape = NETWORKS[name]
    package = name.partition(":")[0]
    if package != "zoo":
        pytest.importorskip(package)
    generator = torch.Generator().manual_seed(1)
    network = make()
    size = getattr(network, "vocab_size", None)
    if package == "zoo" and size is not None:
        ids = torch.randint(size, (2, *shape), generator=generator)
        return trace(randomise(network), ids)
    images = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        if name in SIZED:
            patch.setattr("automl.graph.trace._with_every_size", lambda *given: None)
        return trace(randomise(network), images)


@pytest.mark.parametrize("name", NETWORKS)
def test_pruned_at_random_it_equals_the_masked_dense_network(name):
    found = traced(name)
    plan = IndexPlan.from_json(found.plan.to_json())
    units = random_units(plan, seed=0)
    slim = found.materialise(units)
    result = compare(slim, found.model, plan, units, found.example_inputs)
    assert result.error < 1e-5
    assert result.effect > 1e-3 or name in WHOLE
    kept = np.array([len(u) for u in units], dtype=np.int64)
    assert sum(p.numel() for p in slim.parameters()) == plan.params(kept)
    one = (found.example_inputs[0][:1],)
    if name not in UNKNOWN:
        assert name in UNCOUNTED or counted_macs(slim, one) == plan.macs(kept)
        assert counted_macs(found.model, one) == found.macs


@pytest.mark.parametrize("name", NETWORKS)
def test_most_of_it_can_be_pruned(name):
    found = traced(name)
    least = np.ones(len(found.groups), dtype=np.int64)
    if name not in WHOLE:
        assert found.plan.macs(least) < 0.35 * found.macs
    assert all(target.units > 1 for target in found.groups)
