import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from automl.commands.compose import compose
from automl.commands.options import groups
from automl.paths import conf_dir
from automl.types import InputError


def test_defaults_compose_and_are_plain_and_resolved():
    config = compose(["seed=5"])
    assert type(config["model"]) is dict
    assert config["finetune"]["seed"] == 5


def test_foreign_models_are_named_like_groups():
    for name in ("torchvision:resnet18", "timm:deit_tiny_patch16_224", "my.pkg.factory", "m:f"):
        model = compose([f"model={name}"])["model"]
        assert (model["name"], model["factory"]) == ("custom", name)


def test_the_data_set_follows_the_model_unless_it_is_chosen():
    assert compose(["model=resnet20"])["data"]["name"] == "cifar10"
    assert compose(["model=resnet20", "data=digits"])["data"]["name"] == "digits"
    assert compose(["model=resnet20", "data.limit=9"])["data"]["limit"] == 9


def test_keys_of_kwargs_need_no_plus():
    config = compose(["model=torchvision:resnet18", "model.kwargs.num_classes=10"])
    assert config["model"]["kwargs"] == {"num_classes": 10}


def test_hydras_plus_and_tilde_work():
    config = compose(["strategy=random", "+strategy.extra=1", "~strategy.spread"])
    assert config["strategy"]["extra"] == 1
    assert "spread" not in config["strategy"]


def test_later_settings_win_and_order_does_not_matter_for_groups():
    assert compose(["seed=1", "seed=2"])["seed"] == 2
    config = compose(["budget.params=0.4", "budget=none"])
    assert config["budget"]["params"] == 0.4
    assert config["budget"]["macs"] is None


@pytest.mark.parametrize(
    "overrides",
    [
        ["seed=1", "seed=2", "++seed=3", "trials=7"],
        ["strategy=random", "+strategy.extra={a: 1, b: [2]}", "~strategy.spread"],
        ["budget.params=0.4", "budget=none", "baselines=[random,uniform]", "trust=[my.pkg]"],
        ["experiment=resnet56_40", "strategy=tpe", "repair.refine=null", "budget.macs=0.3"],
        ["experiment=resnet20_50", "finetune=short", "finetune.epochs=3", "seed=5"],
        [
            "model=digits",
            "data=digits",
            "model.name='a,b'",
            "run_dir='runs/x=y'",
            "repair.refine={steps: 5}",
        ],
    ],
)
def test_settings_are_what_hydra_makes_of_them(overrides):
    for _ in range(2):  # what is kept of the first call is not changed by it
        ours = compose(overrides)
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            data = f"data={ours['choices']['data']}"
            chosen = [o for o in overrides if o.startswith("data=")]
            theirs = hydra_compose("config", [*overrides, *([] if chosen else [data])])
        expected = OmegaConf.to_container(theirs, resolve=True)
        del expected["trust"]
        assert {name: ours[name] for name in expected} == expected
        assert set(ours) - set(expected) == {"choices", "overrides"}
    assert compose([])["seed"] == 0 and "spread" in compose(["strategy=random"])["strategy"]


def test_an_experiment_sets_what_it_wants_and_the_command_line_wins():
    config = compose(["experiment=resnet56_40", "trials=7"])
    assert (config["model"]["name"], config["data"]["name"]) == ("resnet56", "cifar10")
    assert (config["budget"]["macs"], config["scoring"]["images"]) == (0.4, 500)
    assert config["trials"] == 7 and compose(["experiment=resnet56_40"])["trials"] == 200
    latency = compose(["experiment=resnet20_latency_50"])["budget"]
    assert latency["latency_ms"] == 0.5 and latency["macs"] is None


def test_every_experiment_composes():
    for name in groups()["experiment"]:
        assert compose([f"experiment={name}"])["choices"]["experiment"] == name


@pytest.mark.parametrize("text", ["hydra.run.dir=x", "+hydra.x=1", "+hydra/launcher=joblib"])
def test_settings_of_hydra_itself_are_refused(text):
    with pytest.raises(InputError, match="what Hydra itself does cannot be set"):
        compose([text])


def test_a_missing_value_is_told_by_name():
    with pytest.raises(InputError, match="seed"):
        compose(["seed=???"])


def test_a_setting_that_is_near_none_is_told_the_sections_not_all_settings():
    with pytest.raises(InputError, match=r"no setting named 'a'; there are model, data,") as told:
        compose(["a=b"])
    assert "see --help" in str(told.value) and len(str(told.value)) < 500
    assert "budget.macs" not in str(told.value)
    with pytest.raises(InputError, match=r"there are finetune\.epochs, ") as told:
        compose(["finetune.qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq=1"])
    assert "budget" not in str(told.value)
