"""How commands train: which settings go together, and where lottery tickets come from."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from automl.commands.build import Bench
from automl.commands.compose import compose
from automl.commands.pruners import training
from automl.commands.training import BenchTraining, codebook_of, tuning_of
from automl.models import load_model
from automl.pruning.trained import TrainedPruner
from automl.training.config import FinetuneConfig
from automl.types import InputError

HALF = ("model=digits", "device=cpu", "dtype=float16")


@pytest.mark.parametrize(
    ("of", "settings", "name"),
    [
        (tuning_of, "finetune=short", "finetune"),
        (codebook_of, "codebook=kmeans", "codebook.finetune"),
    ],
)
def test_float16_is_trained_in_a_precision_of_its_own_or_not_at_all(of, settings, name):
    with pytest.raises(InputError, match=rf"dtype=float16 cannot fine-tune.* {name}\.precision"):
        of(compose([*HALF, settings]))
    for precision in ("float32", "bfloat16"):
        found = of(compose([*HALF, settings, f"{name}.precision={precision}"]))
        assert found.epochs and found.precision == precision


def test_trials_of_float16_are_trained_in_a_precision_of_its_own_or_not_at_all():
    def pruner(*settings):
        bench = Bench(compose([*HALF, "short_term=brief", "short_term.images=8", *settings]))
        vars(bench)["dtype"] = torch.float16  # for which a CPU will not do
        return training(bench, bench.pruner)

    with pytest.raises(InputError, match="dtype=float16 cannot train"):
        pruner()
    assert isinstance(pruner("short_term.finetune.precision=bfloat16"), TrainedPruner)


def test_the_teacher_is_the_dense_network_with_its_batch_norms_folded():
    bench = Bench(compose(["model=digits", "threads=1"]))
    images = torch.randn(4, *bench.complete.input_shape)
    dense, teacher = bench.complete.model, bench.teacher
    norms = [one for one in dense.modules() if isinstance(one, nn.BatchNorm2d)]
    assert norms and not any(isinstance(one, nn.BatchNorm2d) for one in teacher.modules())
    before = [norm.running_mean.clone() for norm in norms]
    torch.testing.assert_close(teacher(images), dense(images), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(a, b.running_mean) for a, b in zip(before, norms, strict=True))


@pytest.mark.parametrize("split", ["auto", "test_halves"])
def test_a_split_that_the_weights_ask_for_and_the_data_lack_says_who_chose_it(split):
    settings = ["model=digits", "model.trained_on=all_train", f"data.split={split}"]
    with pytest.raises(InputError, match="test_halves is not for digits") as caught:
        Bench(compose(settings)).data  # noqa: B018
    assert ("set model.trained_on=null" in str(caught.value)) == (split == "auto")


def headed(trained: bool = True) -> nn.Module:
    """A network that comes with trained weights, but for its head."""
    body, head = nn.Linear(8, 16), nn.Linear(16, 3)
    if trained:
        with torch.no_grad():
            body.weight.copy_(torch.arange(128).view(16, 8))
    return nn.Sequential(body, nn.ReLU(), head)


def training_of(factory, **kwargs):
    bench = Bench(compose(["model=digits", "seed=3"]))
    vars(bench)["loaded"] = load_model(factory, kwargs=kwargs, input_shape=(8,))
    return BenchTraining(bench, FinetuneConfig(), "tickets")


def test_tickets_are_drawn_from_the_weights_of_the_runs_seed():
    factory = f"{__name__}:headed"
    found = training_of(factory, trained=False).untrained().state_dict()
    first = load_model(factory, kwargs={"trained": False}, input_shape=(8,), seed=3)
    assert all(torch.equal(found[name], t) for name, t in first.model.state_dict().items())


def test_no_tickets_are_drawn_from_trained_weights():
    with pytest.raises(InputError, match="makes the same for every seed") as caught:
        training_of(f"{__name__}:headed").untrained()
    assert "\n" not in str(caught.value)
