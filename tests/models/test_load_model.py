"""``load_model``: names to networks, and one clear line for every name that is none."""

import builtins
import importlib

import pytest
import torch
from torch import nn

from automl.models import load_model
from automl.types import InputError

RESNET = "automl.models.cifar.resnet20"


def tiny(width=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(12, width))


def not_a_module():
    return 3


def failing(error="RuntimeError", text="no weights\nhere"):
    raise getattr(builtins, error)(text)


def lazy(unused=False):
    layers = [nn.LazyConv2d(4, 1), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(3)]
    network = nn.Sequential(*layers)
    if unused:
        network[2].other = nn.LazyLinear(2)
    return network


def test_a_loaded_model_is_ready_to_be_traced():
    loaded = load_model(RESNET, kwargs={"num_classes": 7}, input_shape=[3, 32, 32])
    assert not loaded.model.training
    assert loaded.name == "resnet20"
    assert loaded.factory == RESNET
    assert loaded.kwargs == {"num_classes": 7}
    assert loaded.checkpoint is None
    assert loaded.input_shape == (3, 32, 32)
    (x,) = loaded.example_inputs
    assert x.shape == (2, 3, 32, 32)
    assert loaded.model(x).shape == (2, 7)


def test_the_seed_decides_the_weights_and_the_callers_random_state_is_kept():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (
        load_model(f"{__name__}:tiny", input_shape=[3, 2, 2], seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    weights = [loaded.model[1].weight for loaded in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(first.example_inputs[0], again.example_inputs[0])


def test_checkpoints_load_through_it():
    loaded = load_model(
        "automl.models.digits.digits_cnn",
        checkpoint="package:weights/digits.safetensors",
        input_shape=[1, 8, 8],
    )
    assert loaded.checkpoint is not None
    assert loaded.checkpoint.endswith("digits.safetensors")


@pytest.mark.parametrize("factory", [f"{__name__}.tiny", f"{__name__}:tiny"])
def test_dotted_paths_come_in_two_forms(factory):
    assert load_model(factory, input_shape=[3, 2, 2]).name == "tiny"


def test_modules_in_the_current_folder_are_found(tmp_path, monkeypatch):
    source = "from torch import nn\ndef net(): return nn.Flatten()\n"
    (tmp_path / "my_own_nets.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [entry for entry in __import__("sys").path if entry])
    assert load_model("my_own_nets.net", input_shape=[1, 2, 2]).name == "net"


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (None, "model.factory must be .*torchvision:resnet18"),
        ("", "model.factory must be"),
        ("resnet20", "dotted path"),
        ("..cifar", "cannot be imported|dotted path"),
        ("automl.models.cifar.resnet21", "has no 'resnet21'; the nearest is 'resnet20'"),
        ("automl.models.cifra.resnet20", r"no module automl\.models\.cifra"),
        ("no_such_package.nets:small", "no module no_such_package"),
        ("torch.pi", "must be callable, got float"),
    ],
)
def test_names_that_are_none_are_refused(factory, message):
    with pytest.raises(InputError, match=message):
        load_model(factory, input_shape=[3, 32, 32])


def test_a_module_that_needs_another_says_which(tmp_path, monkeypatch):
    (tmp_path / "needy_nets.py").write_text("import package_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="needs package_that_is_not_there"):
        load_model("needy_nets.net", input_shape=[1])


def test_factories_that_fail_or_return_something_else_are_refused():
    with pytest.raises(InputError, match=r"does not take model\.kwargs .*'depth'"):
        load_model(RESNET, kwargs={"depth": 3}, input_shape=[3, 32, 32])
    with pytest.raises(InputError, match="must divide"):
        load_model("automl.models.vit.vit_tiny", kwargs={"num_heads": 5}, input_shape=[3, 32, 32])
    with pytest.raises(InputError, match=r"must return a torch\.nn\.Module, got int"):
        load_model(f"{__name__}:not_a_module", input_shape=[3, 2, 2])


def of_width(width=8):
    return torch.nn.Linear(width // 2, 3)


def test_the_signature_is_blamed_only_for_what_it_does_not_take():
    own = f"{__name__}:of_width"
    with pytest.raises(InputError, match=r"does not take model\.kwargs {'widt': 8}"):
        load_model(own, kwargs={"widt": 8}, input_shape=[4])
    inside = (
        r"of_width raised TypeError: .* \(.*\.py, line \d+\), given model\.kwargs {'width': 'a'}"
    )
    with pytest.raises(InputError, match=inside):
        load_model(own, kwargs={"width": "a"}, input_shape=[4])


@pytest.mark.parametrize(
    "error", ["RuntimeError", "AttributeError", "KeyError", "OSError", "SystemExit", "ValueError"]
)
def test_whatever_a_factory_raises_is_named_in_one_line(error):
    for kwargs in ({}, {"error": error}):
        with pytest.raises(InputError, match=r"model.factory .*test_load_model:failing ") as told:
            load_model(f"{__name__}:failing", kwargs=kwargs, input_shape=[3, 2, 2])
        assert "no weights" in str(told.value) and "\n" not in str(told.value)
    with pytest.raises(InputError, match=r"raised RuntimeError: no weights here \(.*\.py, line \d"):
        load_model(f"{__name__}:failing", input_shape=[3, 2, 2])


def test_a_module_that_fails_when_it_is_imported_says_where(tmp_path, monkeypatch):
    (tmp_path / "broken_nets.py").write_text("import json\nunknown\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"NameError: .*broken_nets\.py, line 2\)$"):
        load_model("broken_nets.net", input_shape=[1])


@pytest.mark.parametrize(
    ("factory", "better"),
    [
        ("mynet.py", "as model=mynet.make$"),
        ("./mynet.py", "as model=mynet.make$"),
        ("./mynet.py:net", "as model=mynet.net$"),
        ("nets/mynet.py:net", "as model=nets.mynet.net$"),
        ("/some/mynet.py:net", "as model=mynet.net, in the folder /some$"),
        ("../mynet.py:net", r"as model=mynet.net, in the folder \.\.$"),
    ],
)
def test_a_file_in_place_of_a_dotted_path_says_how_to_name_the_function(factory, better):
    with pytest.raises(InputError, match=f"is a file: name a function in it, {better}"):
        load_model(factory, input_shape=[3, 2, 2])


def test_lazy_modules_get_their_shapes_from_the_example_input():
    loaded = load_model(f"{__name__}:lazy", input_shape=[3, 2, 2])
    assert loaded.model[0].weight.shape == (4, 3, 1, 1) and loaded.model[3].in_features == 16
    assert loaded.model[1].num_batches_tracked == 0 and not loaded.model.training
    again = load_model(f"{__name__}:lazy", input_shape=[3, 2, 2])
    assert torch.equal(again.model[3].weight, loaded.model[3].weight)
    with pytest.raises(InputError, match=r"leaves 2.other.weight without a shape"):
        load_model(f"{__name__}:lazy", kwargs={"unused": True}, input_shape=[3, 2, 2])
    with pytest.raises(InputError, match=r"fails on an input of shape \(2, 3\): "):
        load_model(f"{__name__}:lazy", input_shape=[3])


@pytest.mark.parametrize("shape", [[], [3, 0, 32], [3, 32.0, 32], ["3"], [3, True, 1]])
def test_input_shapes_must_be_positive_whole_numbers(shape):
    with pytest.raises(InputError, match="positive whole numbers"):
        load_model(RESNET, input_shape=shape)


def test_dotted_paths_need_an_input_shape():
    with pytest.raises(InputError, match=r"model\.input_shape must be given"):
        load_model(RESNET)


# torchvision and timm


def test_torchvision_networks_know_their_input():
    pytest.importorskip("torchvision")
    loaded = load_model("torchvision:squeezenet1_1", kwargs={"num_classes": 5})
    assert loaded.input_shape == (3, 224, 224)
    assert loaded.name == "squeezenet1_1"
    assert load_model("torchvision:resnet18", input_shape=[3, 64, 64]).input_shape == (3, 64, 64)


def test_googlenet_builds_without_a_warning():
    pytest.importorskip("torchvision")
    assert load_model("torchvision:googlenet", kwargs={"aux_logits": False}).name == "googlenet"


def test_timm_networks_know_their_input_and_normalisation():
    pytest.importorskip("timm")
    loaded = load_model("timm:vit_tiny_patch16_224", kwargs={"depth": 1})
    assert loaded.input_shape == (3, 224, 224)
    assert loaded.mean == (0.5, 0.5, 0.5)
    assert loaded.std == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("torchvision:resnet19", "torchvision has no model 'resnet19'; the nearest is 'resnet1"),
        ("torchvision:", "torchvision has no model ''"),
        ("timm:mobilevit_m", "timm has no model 'mobilevit_m'; the nearest is 'mobilevit"),
    ],
)
def test_unknown_names_give_the_nearest(factory, message):
    pytest.importorskip(factory.partition(":")[0])
    with pytest.raises(InputError, match=message):
        load_model(factory)


@pytest.mark.parametrize(
    ("factory", "kwargs"),
    [
        ("torchvision:resnet18", {"weights": "NONE_SUCH"}),
        ("torchvision:resnet18", {"colour": 3}),
        ("timm:resnet18", {"colour": 3}),
        ("timm:resnet18.no_such_tag", {}),
    ],
)
def test_refused_arguments_are_named(factory, kwargs):
    pytest.importorskip(factory.partition(":")[0])
    with pytest.raises(InputError, match=factory):
        load_model(factory, kwargs=kwargs)


@pytest.mark.parametrize("factory", ["torchvision:resnet18", "timm:resnet18"])
def test_a_torchvision_that_does_not_match_torch_says_what_to_install(monkeypatch, factory):
    def broken(name, *rest):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(InputError, match="install a matching pair"):
        load_model(factory)


@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_a_package_that_is_not_installed_is_named(monkeypatch, package):
    def missing(name, *rest):
        raise builtins.ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(InputError, match=f"pip install {package}"):
        load_model(f"{package}:resnet18")
