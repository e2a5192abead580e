"""Networks of transformers from configurations: no download, pruned equals zero-masked."""

import sys

import pytest
import torch
from oracle import compare, random_units, randomise

import automl
from automl.models import load_model
from automl.models.huggingface import NextTokenLogits
from automl.types import InputError

pytest.importorskip("transformers", reason="hf:NAME needs transformers")

SIZES = {
    "bert": {
        "hidden_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 3,
        "intermediate_size": 40,
        "num_labels": 5,
    },
    "gpt2": {"n_embd": 24, "n_layer": 1, "n_head": 3, "head": "CausalLM"},
    "llama": {
        "hidden_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 3,
        "intermediate_size": 40,
        "head": "CausalLM",
    },
}
#: Norms and rotations that compute in float32 whatever the weights are.
TOLERANCE = {"llama": 1e-5}


def load(name, **settings):
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    settings = {"vocab_size": 30, **special, **SIZES[name], **settings}
    return load_model(f"hf:{name}", kwargs=settings, input_shape=[8])


@pytest.mark.parametrize("name", SIZES)
def test_pruned_at_random_it_equals_the_masked_dense_network(name):
    loaded = load(name)
    (ids,) = loaded.example_inputs
    assert loaded.name == name
    assert ids.dtype == torch.int64
    assert loaded.model(ids).shape == (2, 5 if name == "bert" else 30)
    traced = automl.trace(randomise(loaded.model), ids)
    units = random_units(traced.plan, seed=0)
    slim = traced.materialise(units)
    result = compare(slim, traced.model, traced.plan, units, traced.example_inputs)
    assert result.error < TOLERANCE.get(name, 1e-9)
    assert result.effect > 1e-2
    found = {group.kind for group in traced.groups}
    assert found == (
        {"channel", "head_dim"} if name == "llama" else {"channel", "head", "head_dim"}
    )


def test_decoders_give_the_token_after_the_last():
    model = load("gpt2").model
    assert isinstance(model, NextTokenLogits)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids), model.model(ids).logits[:, -1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hiden_size": 24}, "hf:bert has no setting 'hiden_size'; did you mean 'hidden_size'"),
        ({"head": "SequenceClasification"}, "did you mean 'SequenceClassification'"),
        ({"num_attention_heads": 5}, "hf:bert cannot be built: .*multiple"),
    ],
)
def test_settings_that_are_none_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        load("bert", **settings)


def test_names_that_are_none_are_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=r"hf:.* cannot be built"):
        load_model(f"hf:{tmp_path / 'nowhere'}", input_shape=[8])


def test_transformers_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"pip install prunepilot\[transformers\]"):
        load_model("hf:bert", input_shape=[8])


def test_what_stopped_an_import_is_told_in_one_line(monkeypatch):
    import transformers

    def broken(*_):
        try:
            raise RuntimeError("operator torchvision::nms does not exist\nmore")
        except RuntimeError as cause:
            raise ModuleNotFoundError("Could not import module 'Bert'") from cause

    monkeypatch.setattr(transformers.AutoModelForSequenceClassification, "from_config", broken)
    with pytest.raises(InputError, match=r"nms does not exist\): install a matching pair$"):
        load("bert")
