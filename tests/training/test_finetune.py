import copy
import dataclasses
import math
import random

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import fx, nn
from torch.utils.data import DataLoader, TensorDataset

from automl.data.augment import PadCropFlip
from automl.data.tensors import TensorSet
from automl.scoring import ClassifierScorer, UserScorer
from automl.training.batchnorm import recalibrate_batchnorm
from automl.training.config import FinetuneConfig
from automl.training.finetune import finetune
from automl.training.history import FinetuneError
from automl.training.loss import distillation_loss
from automl.types import InputError

MEAN, STD = (0.3,), (0.4,)


@pytest.fixture(scope="module")
def digits():
    """(training, validation) images of scikit-learn's digits, in [0, 1]."""
    data = load_digits()
    images = torch.tensor(data.images / 16, dtype=torch.float32)[:, None]
    labels = torch.tensor(data.target, dtype=torch.int64)
    return TensorSet(images[:400], labels[:400]), TensorSet(images[1200:], labels[1200:])


def make_network(seed=0, width=8, dropout=0.2):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Flatten(),
        nn.Linear(width * 16, 10),
    )


def make_scorer(digits, **options):
    validation = digits[1]
    return ClassifierScorer(validation.images, validation.labels, mean=MEAN, std=STD, **options)


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def without_seconds(result):
    return [(r.epoch, r.lr, r.train_loss, r.score, r.metrics) for r in result.history]


# What training does


def narrowed(network, keep):
    """The network with the first ``keep`` channels inside, as a pruner would leave it."""
    small = make_network(width=keep)
    state = network.state_dict()
    with torch.no_grad():
        for name, value in small.state_dict().items():
            source = state[name]
            if name == "9.weight":
                source = source.view(10, -1, 16)[:, :keep].reshape(10, -1)
            for dim, size in enumerate(value.shape):
                source = source.narrow(dim, 0, size)
            value.copy_(source)
    return small


def test_a_pruned_network_recovers_on_digits(digits):
    train = digits[0]
    dense = make_network(width=16)
    config = FinetuneConfig(epochs=12, lr=0.05, batch_size=32)
    scorer = make_scorer(digits, score="loss")
    finetune(dense, train, config, mean=MEAN, std=STD, validation_scorer=scorer)
    pruned = narrowed(dense, keep=8)
    recalibrate_batchnorm(pruned, (x for x, _ in train.batches(100, mean=MEAN, std=STD)))
    before = scorer(pruned)[1]

    config = FinetuneConfig(epochs=8, lr=0.02, batch_size=32, distill_weight=0.5)
    result = finetune(
        pruned, train, config, mean=MEAN, std=STD, distill_from=dense, validation_scorer=scorer
    )
    after = scorer(pruned)[1]
    assert after["loss"] < 0.5 * before["loss"]
    assert after["top1"] > max(0.85, before["top1"])
    assert result.best_score == -after["loss"]
    assert [row.epoch for row in result.history] == list(range(9))
    assert result.history[-1].train_loss < result.history[1].train_loss


def test_one_step_of_sgd_is_the_textbooks():
    torch.manual_seed(0)
    network = nn.Linear(4, 3).double()
    x, y = torch.randn(6, 4).double(), torch.tensor([0, 1, 2, 0, 1, 2])
    weight, bias = (p.detach().clone() for p in network.parameters())
    gradient = ((x @ weight.T + bias).softmax(1) - nn.functional.one_hot(y, 3)) / 6
    config = FinetuneConfig(epochs=1, lr=0.1, weight_decay=0.01, batch_size=6)
    result = finetune(network, [(x, y)], config)
    # The matrix decays, the bias does not.
    assert torch.allclose(network.weight, weight - 0.1 * (gradient.T @ x + 0.01 * weight))
    assert torch.allclose(network.bias, bias - 0.1 * gradient.sum(0))
    entropy = nn.functional.cross_entropy(x @ weight.T + bias, y)
    assert result.history[0].train_loss == pytest.approx(entropy.item(), rel=1e-12)
    assert result.history[0].lr == 0.1


def test_decay_reaches_norms_and_biases_only_when_asked():
    x, y = torch.zeros(4, 3), torch.tensor([0, 1, 0, 1])

    def scale_after(decay_norm_and_bias):
        network = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
        config = FinetuneConfig(
            epochs=1, lr=0.1, weight_decay=0.5, decay_norm_and_bias=decay_norm_and_bias
        )
        finetune(network, [(x, y)], config)
        return network[0].weight

    assert torch.equal(scale_after(False), torch.ones(3))  # inputs 0: no gradient
    assert torch.allclose(scale_after(True), torch.full((3,), 0.95))


def test_gradients_are_clipped_to_the_norm():
    x, y = 100 * torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    network = nn.Linear(3, 2)
    before = copy.deepcopy(network)
    config = FinetuneConfig(epochs=1, lr=1.0, weight_decay=0, max_grad_norm=1e-3)
    finetune(network, [(x, y)], config)
    moved = sum(
        (p - q).square().sum()
        for p, q in zip(network.parameters(), before.parameters(), strict=True)
    )
    assert moved.sqrt().item() == pytest.approx(1e-3, rel=1e-3)


def test_distillation_alone_needs_no_labels_and_approaches_the_dense_outputs(digits):
    images = digits[0].images
    dense, student = make_network(0, dropout=0.0), make_network(1, dropout=0.0)
    before = {name: t.clone() for name, t in dense.state_dict().items()}
    scorer = ClassifierScorer(images, score="kl", dense=dense)
    kl = scorer(student)[1]["kl"]
    config = FinetuneConfig(epochs=6, optimizer="adamw", lr=0.01, distill_weight=1.0)
    batches = [(x, None) for x in images.split(40)]
    finetune(student, batches, config, distill_from=dense)
    assert scorer(student)[1]["kl"] < 0.3 * kl
    assert dense.training  # its modes come back, its weights and statistics never change
    assert all(torch.equal(t, before[name]) for name, t in dense.state_dict().items())
    assert all(p.grad is None for p in dense.parameters())


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_missing_labels_are_refused_in_one_line_that_says_what_goes_without(digits, weight):
    network, x = make_network(0), digits[0].images[:8]
    config = FinetuneConfig(epochs=1, distill_weight=weight)
    dense = make_network(1)
    with pytest.raises(InputError, match=r"no labels to fine-tune on.*distill_weight=1") as told:
        finetune(network, [(x, None)], config, distill_from=dense)
    assert "\n" not in str(told.value)


def test_graph_modules_train_like_the_modules_they_came_from(digits):
    network = make_network()
    graph = fx.symbolic_trace(copy.deepcopy(network))
    config = FinetuneConfig(epochs=2, batch_size=64)
    finetune(network, digits[0], config)
    finetune(graph, digits[0], config)
    assert same_weights(network, graph)


def test_bfloat16_trains_float32_weights(digits):
    network = make_network()
    config = FinetuneConfig(epochs=2, lr=0.05, batch_size=64)
    result = finetune(network, digits[0], config, dtype=torch.bfloat16, channels_last=True)
    assert all(p.dtype == torch.float32 for p in network.parameters())
    assert result.history[1].train_loss < result.history[0].train_loss


def test_precision_comes_before_the_type_of_the_run(digits):
    networks = [make_network() for _ in range(3)]
    config = FinetuneConfig(epochs=1, lr=0.05, batch_size=64)
    low = dataclasses.replace(config, precision="bfloat16")
    finetune(networks[0], digits[0], low)
    finetune(networks[1], digits[0], config, dtype=torch.bfloat16)
    finetune(networks[2], digits[0], dataclasses.replace(low, precision="float32"))
    assert same_weights(networks[0], networks[1])
    assert not same_weights(networks[0], networks[2])


def test_images_channels_last_leave_the_layout_of_weights_alone_on_a_cpu(digits):
    network = make_network()
    finetune(network, digits[0], FinetuneConfig(epochs=1, batch_size=64), channels_last=True)
    assert all(p.is_contiguous() for p in network.parameters())


def test_frozen_parameters_stay(digits):
    network = make_network()
    network[0].weight.requires_grad_(False)
    before = network[0].weight.clone()
    finetune(network, digits[0], FinetuneConfig(epochs=1, lr=0.1))
    assert torch.equal(network[0].weight, before)


def test_a_single_left_over_example_does_not_break_batchnorm(digits):
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.BatchNorm1d(5), nn.Linear(5, 10))
    finetune(network, digits[0].subset(slice(33)), FinetuneConfig(epochs=1, batch_size=32))


def test_steps_are_counted_without_the_left_over_example(digits):
    config, counted = FinetuneConfig(epochs=3, lr=0.1, batch_size=32), []
    alone = digits[0].subset(slice(65))
    result = finetune(make_network(), alone, config, after_step=counted.append)
    assert counted == [1, 2, 3, 4, 5, 6]
    # Half a cosine over the steps that are taken: 2 of 6, 4 of 6.
    assert [row.lr for row in result.history] == pytest.approx([0.1, 0.075, 0.025])


@pytest.mark.parametrize("ready", [True, False])
def test_batches_of_one_example_are_trained_on(ready):
    torch.manual_seed(0)
    x, y = torch.rand(4, 1, 2, 2), torch.tensor([0, 1, 2, 0])
    network = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(4, 3))
    batches = [(x[i : i + 1], y[i : i + 1]) for i in range(4)]
    train = batches if ready else TensorSet(x[:1], y[:1])
    counted = []
    finetune(network, train, FinetuneConfig(epochs=1), after_step=counted.append)
    assert counted == ([1, 2, 3, 4] if ready else [1])


def test_a_batch_of_one_example_that_batchnorm_cannot_take_is_refused_in_one_line():
    network = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))
    batches = [(torch.rand(2, 4), torch.tensor([0, 1])), (torch.rand(1, 4), torch.tensor([0]))]
    with pytest.raises(InputError, match=r"batch of one example \(Expected more than 1 value"):
        finetune(network, batches, FinetuneConfig(epochs=1))


class Subtracting(nn.Module):
    """Writes into its input, or (``saves``) needs it as it was for its gradient."""

    def __init__(self, saves=False):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.saves = nn.Linear(4, 3), saves

    def forward(self, x):
        return self.linear(x) if self.saves else self.linear(x.sub_(1.0))


@pytest.mark.parametrize("student", [False, True])
def test_networks_that_write_into_their_input_are_distilled(student):
    x = torch.randn(8, 4)
    before, networks = x.clone(), [Subtracting(saves=student), Subtracting()]
    wanted = networks[1](x.clone()).softmax(1)
    told = networks[0](x.clone()).softmax(1)
    config = FinetuneConfig(epochs=1, distill_weight=1.0, distill_temperature=1.0)
    result = finetune(networks[0], [(x, None)], config, distill_from=networks[1])
    divergence = (wanted * (wanted / told).log()).sum(1).mean().item()
    assert result.history[0].train_loss == pytest.approx(divergence, abs=1e-6)
    assert torch.equal(x, before)


def test_weights_shared_with_the_teacher_learn_under_autocast():
    network = nn.Linear(4, 3)
    teacher = nn.Sequential(network, nn.ReLU())
    before = network.weight.detach().clone()
    config = FinetuneConfig(epochs=1, lr=0.1, distill_weight=1.0, precision="bfloat16")
    finetune(network, [(torch.randn(8, 4), None)], config, distill_from=teacher)
    assert not torch.equal(network.weight, before)


# Repeatability


def test_the_same_seed_gives_the_same_weights_and_another_does_not(digits):
    networks = [make_network() for _ in range(3)]
    for network, seed in zip(networks, (0, 0, 1), strict=True):
        torch.manual_seed(torch.seed())  # what happened before does not matter
        finetune(network, digits[0], FinetuneConfig(epochs=1, seed=seed))
    assert same_weights(networks[0], networks[1])
    assert not same_weights(networks[0], networks[2])


def test_the_callers_generator_and_modes_are_untouched(digits):
    network = make_network().eval()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    finetune(network, digits[0], FinetuneConfig(epochs=1))
    assert torch.equal(torch.rand(3), expected)
    assert not any(module.training for module in network.modules())


def test_examples_are_mixed_in_pairs_for_both_networks_and_labels_too():
    x, y = torch.randn(6, 3), torch.tensor([0, 1, 2, 3, 0, 1])
    seen = []

    class Seeing(nn.Linear):
        def forward(self, inputs):
            seen.append(inputs.clone())
            return super().forward(inputs)

    network, teacher = Seeing(3, 4), Seeing(3, 4)
    logits = nn.Linear(3, 4)
    logits.load_state_dict(network.state_dict())
    config = FinetuneConfig(epochs=1, lr=1e-9, mixup=1.0, distill_weight=0.25)
    result = finetune(network, [(x, y)], config, distill_from=teacher)
    mixture, same = seen
    assert torch.equal(mixture, same)
    before = x.roll(1, 0)
    shares = (mixture - before) / (x - before)
    share = float(shares.mean())
    assert 0.01 < share < 0.99
    torch.testing.assert_close(shares, torch.full_like(x, share), rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        found, wanted = logits(mixture), teacher(mixture)
    entropies = [nn.functional.cross_entropy(found, labels) for labels in (y, y.roll(1))]
    labelled = share * entropies[0] + (1 - share) * entropies[1]
    expected = 0.75 * labelled + 0.25 * distillation_loss(found, wanted, 4.0)
    assert result.history[0].train_loss == pytest.approx(float(expected), rel=1e-5)


def test_tokens_are_not_mixed():
    network = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 2))
    data = [(torch.zeros(4, 2, dtype=torch.int64), torch.zeros(4, dtype=torch.int64))]
    with pytest.raises(InputError, match="mixup mixes images"):
        finetune(network, data, FinetuneConfig(epochs=1, mixup=0.2))


VARIANTS = {
    "sgd": {},
    "adamw": {"optimizer": "adamw", "lr": 0.003, "warmup_epochs": 1.5},
    "distilled": {"distill_weight": 0.5, "max_grad_norm": 1.0, "label_smoothing": 0.1},
    "mixed": {"distill_weight": 0.5, "mixup": 0.5},
}


class Cut(Exception):
    pass


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("scored", [False, True])
def test_an_interrupted_run_resumes_to_the_same_bits(digits, tmp_path, variant, scored):
    config = FinetuneConfig(**{"epochs": 4, "lr": 0.1, "batch_size": 64, **VARIANTS[variant]})
    path = tmp_path / "finetune.pt"

    def run(network, **options):
        return finetune(
            network,
            digits[0],
            config,
            mean=MEAN,
            std=STD,
            augment=PadCropFlip(pad=1, flip=False),
            distill_from=make_network(7) if config.distill_weight else None,
            validation_scorer=make_scorer(digits, score="loss") if scored else None,
            **options,
        )

    whole = make_network()
    expected = run(whole)

    def cut_in_epoch(number):
        steps = iter(range(10**6))

        def hook(module, inputs):
            # Counts training passes alone; 7 batches make an epoch.
            if module.training and next(steps) == 7 * (number - 1) + 3:
                raise KeyboardInterrupt

        return hook

    broken = make_network()
    broken.register_forward_pre_hook(cut_in_epoch(3))
    with pytest.raises(KeyboardInterrupt):
        run(broken, checkpoint=path)

    resumed = make_network()
    rows = []
    result = run(resumed, checkpoint=path, progress=rows.append)
    assert [row.epoch for row in rows] == [3, 4]
    assert same_weights(resumed, whole)
    assert without_seconds(result) == without_seconds(expected)
    assert (result.best_epoch, result.best_score) == (expected.best_epoch, expected.best_score)


def test_a_shuffling_loader_with_dropout_resumes_to_the_same_bits(digits, tmp_path):
    data = TensorDataset(digits[0].images, digits[0].labels)
    config = FinetuneConfig(epochs=3, lr=0.05)
    path = tmp_path / "finetune.pt"

    def run(network, **options):
        loader = DataLoader(data, batch_size=50, shuffle=True)
        return finetune(network, loader, config, **options)

    def cut(row):
        if row.epoch == 2:
            raise Cut

    whole, resumed = make_network(dropout=0.5), make_network(dropout=0.5)
    run(whole)
    with pytest.raises(Cut):
        run(make_network(dropout=0.5), checkpoint=path, progress=cut)
    run(resumed, checkpoint=path)
    assert same_weights(whole, resumed)


def test_a_finished_run_is_read_not_trained(digits, tmp_path):
    path = tmp_path / "finetune.pt"
    config = FinetuneConfig(epochs=2)
    scorer = make_scorer(digits)
    first, second = make_network(), make_network()
    expected = finetune(first, digits[0], config, validation_scorer=scorer, checkpoint=path)
    second.register_forward_pre_hook(lambda *_: pytest.fail("trained"))
    rows = []
    options = {"validation_scorer": scorer, "checkpoint": path, "progress": rows.append}
    result = finetune(second, digits[0], config, **options)
    assert result == expected and not rows
    assert same_weights(first, second)


def test_transforms_that_draw_from_python_and_numpy_resume_to_the_same_bits(digits, tmp_path):
    class Jittered:
        """Batches as a loader in this process makes them, with transforms of old libraries."""

        def __len__(self):
            return 4

        def __iter__(self):
            for start in range(0, 64, 16):
                x, y = digits[0].images[start : start + 16], digits[0].labels
                yield x * random.uniform(0.5, 1) + np.random.rand(), y[start : start + 16]

    def run(network, **kwargs):
        finetune(network, Jittered(), FinetuneConfig(epochs=3, lr=0.05), **kwargs)

    def cut(row):
        if row.epoch == 1:
            raise KeyboardInterrupt

    path = tmp_path / "training.pt"
    whole, resumed = make_network(), make_network()
    state = random.getstate()
    run(whole)
    assert random.getstate() == state  # and the caller's numbers go on as they were
    with pytest.raises(KeyboardInterrupt):
        run(make_network(), checkpoint=path, progress=cut)
    _ = random.random(), np.random.rand()
    run(resumed, checkpoint=path)
    assert same_weights(whole, resumed)


def test_resume_false_starts_over(digits, tmp_path):
    path = tmp_path / "finetune.pt"
    config = FinetuneConfig(epochs=1)
    finetune(make_network(), digits[0], config, checkpoint=path)
    rows = []
    network = make_network(3)  # another run's checkpoint, were it read
    finetune(network, digits[0], config, checkpoint=path, resume=False, progress=rows.append)
    assert [row.epoch for row in rows] == [1]
    again = make_network(3)
    finetune(again, digits[0], config, checkpoint=path)
    assert same_weights(network, again)


@pytest.mark.parametrize(
    "told, change",
    [
        (r"made with lr=0\.01, not 0\.5", {"config": FinetuneConfig(epochs=1, lr=0.5)}),
        ("another network", {"model": make_network(width=4)}),
        ("another starting weights", {"model": make_network(3)}),
        ("another training data", {"mean": (0.5,)}),
        ("dtype=float32, not bfloat16", {"dtype": torch.bfloat16}),
        ("validation=None", {"validation_scorer": UserScorer(lambda model: 0.0)}),
        ("after_step=None, not builtins.print", {"after_step": print}),
        ("stage=None, not 1 of rigl", {"stage": "1 of rigl"}),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_in_one_line(digits, tmp_path, told, change):
    path = tmp_path / "finetune.pt"
    arguments = {
        "model": make_network(),
        "train": digits[0],
        "config": FinetuneConfig(epochs=1),
        "checkpoint": path,
    }
    finetune(**arguments)
    written = path.read_bytes()
    with pytest.raises(InputError, match=told) as caught:
        finetune(**{**arguments, "model": make_network(), **change})
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == written


# Validation


def scripted_scorer(scores):
    """A scorer that answers with ``scores`` in turn."""
    answers = iter(scores)
    return UserScorer(lambda model: next(answers), fingerprint="scripted")


def test_the_best_epoch_is_kept_the_first_of_equals(digits):
    snapshots = []
    network = make_network()
    scorer = scripted_scorer([0.1, 0.5, 0.9, 0.9, 0.2])
    result = finetune(
        network,
        digits[0],
        FinetuneConfig(epochs=4, lr=0.05),
        validation_scorer=scorer,
        progress=lambda row: snapshots.append(copy.deepcopy(network)),
    )
    assert (result.best_epoch, result.best_score, result.stopped_early) == (2, 0.9, False)
    assert same_weights(network, snapshots[2]) and not same_weights(network, snapshots[4])


def test_a_run_that_only_makes_it_worse_returns_the_network_as_it_came(digits):
    network = make_network()
    before = copy.deepcopy(network)
    scorer = scripted_scorer([1.0, 0.5, 0.4])
    result = finetune(
        network, digits[0], FinetuneConfig(epochs=2, lr=0.5), validation_scorer=scorer
    )
    assert result.best_epoch == 0 and same_weights(network, before)


def test_early_stopping_waits_for_its_patience(digits):
    scorer = scripted_scorer([0.1, 0.5, 0.4, 0.6, 0.6, 0.5, 0.9])
    config = FinetuneConfig(epochs=9, early_stop_patience=2)
    result = finetune(make_network(), digits[0], config, validation_scorer=scorer)
    assert [row.epoch for row in result.history] == [0, 1, 2, 3, 4, 5]
    assert result.stopped_early and result.best_epoch == 3


def test_early_stopping_stays_stopped_on_resume(digits, tmp_path):
    config = FinetuneConfig(epochs=9, early_stop_patience=1)
    path = tmp_path / "finetune.pt"
    arguments = {"train": digits[0], "config": config, "checkpoint": path}
    expected = finetune(
        make_network(), **arguments, validation_scorer=scripted_scorer([0.1, 0.5, 0.4])
    )
    assert expected.stopped_early
    again = finetune(make_network(), **arguments, validation_scorer=scripted_scorer([]))
    assert again == expected


def test_scorers_may_answer_with_numpy_numbers(digits, tmp_path):
    class Scorer:
        fingerprint = "numpy"

        def __call__(self, model):
            return np.float32(0.5), {"top1": np.float64(0.25)}

    config, path = FinetuneConfig(epochs=1), tmp_path / "finetune.pt"
    options = {"validation_scorer": Scorer(), "checkpoint": path}
    first = finetune(make_network(), digits[0], config, **options)
    assert finetune(make_network(), digits[0], config, **options) == first


def test_no_epochs_leave_the_network_as_it_is(digits):
    network = make_network()
    before = copy.deepcopy(network)
    result = finetune(network, digits[0], FinetuneConfig(epochs=0))
    assert result.history == () and result.best_epoch == 0 and not result.stopped_early
    assert same_weights(network, before)


def test_the_history_is_a_table(digits):
    result = finetune(
        make_network(),
        digits[0],
        FinetuneConfig(epochs=2),
        validation_scorer=make_scorer(digits),
    )
    frame = result.to_frame()
    assert list(frame["epoch"]) == [0, 1, 2]
    assert {"lr", "train_loss", "score", "top1", "top5", "loss", "seconds"} <= set(frame.columns)
    assert math.isnan(frame["train_loss"][0]) and frame["seconds"].gt(0).all()
    assert frame["top1"].equals(frame["score"])


# Failures


def test_divergence_stops_with_what_to_do_and_keeps_the_last_checkpoint(tmp_path):
    path = tmp_path / "finetune.pt"
    network = nn.Linear(3, 2)
    batches = [(torch.randn(8, 3), torch.arange(8) % 2)]
    config = FinetuneConfig(epochs=3)

    def poison(row):
        batches[0][0].fill_(math.inf)

    with pytest.raises(FinetuneError, match=r"diverged in epoch 2 \(loss nan\): lower lr \(0\.01"):
        finetune(network, batches, config, checkpoint=path, progress=poison)
    saved = torch.load(path, weights_only=True)["state"]
    assert [row["epoch"] for row in saved["history"]] == [1]
    assert all(t.isfinite().all() for t in saved["model"].values())


def test_settings_that_need_more_than_they_got_are_refused(digits):
    train = digits[0]
    with pytest.raises(
        ValueError, match=r"distill_weight must be 0 without distill_from, got 0\.5"
    ):
        finetune(make_network(), train, FinetuneConfig(distill_weight=0.5))
    with pytest.raises(ValueError, match="early_stop_patience must be None without validation_sc"):
        finetune(make_network(), train, FinetuneConfig(early_stop_patience=3))
    with pytest.raises(InputError, match="dtype=bfloat16 or float32"):
        finetune(make_network(), train, FinetuneConfig(), dtype=torch.float16)


def test_nothing_to_train_is_refused(digits):
    frozen = make_network().requires_grad_(False)
    with pytest.raises(InputError, match="no parameters that require gradients"):
        finetune(frozen, digits[0], FinetuneConfig())
    with pytest.raises(InputError, match="training data are empty"):
        finetune(make_network(), [], FinetuneConfig())


def test_networks_with_other_outputs_in_training_are_refused(digits):
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = make_network()

        def forward(self, x):
            return (self.net(x), None) if self.training else self.net(x)

    with pytest.raises(InputError, match="in training the network returns tuple"):
        finetune(Auxiliary(), digits[0], FinetuneConfig(epochs=1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_trains_like_the_cpu(digits, dtype):
    config = FinetuneConfig(epochs=3, lr=0.05, batch_size=64)
    here, there = make_network(dropout=0.0), make_network(dropout=0.0)
    expected = finetune(here, digits[0], config)
    result = finetune(
        there, digits[0], config, device=torch.device("cuda"), dtype=dtype, channels_last=True
    )
    assert next(there.parameters()).is_cuda
    assert result.history[-1].train_loss == pytest.approx(expected.history[-1].train_loss, rel=0.1)
