import math
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn

from automl.batch_size import default_batch_size, fastest_batch_size
from automl.scoring import ClassifierScorer, ScoreError, UserScorer
from automl.types import InputError, Scorer

CLASSES = 7
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def make_network(seed: int = 0, classes: int = CLASSES) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, classes),
    )


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (53, 3, 8, 8), dtype=torch.uint8, generator=generator)


@pytest.fixture
def labels():
    return torch.arange(53) % CLASSES


class Table(nn.Module):
    """Looks its logits up by the first value of an example, so that tests choose them."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits[x[:, 0].long()]


def score_table(logits, labels=None, dense=None, **options):
    """Scores logits given as a table: example i has row i."""
    rows = torch.arange(len(logits), dtype=torch.float64)[:, None]
    teacher = None if dense is None else Table(dense)
    options = {"dtype": torch.float64, "batch_size": 4, **options}
    return ClassifierScorer(rows, labels, dense=teacher, **options)(Table(logits))


def numpy_log_softmax(logits):
    logits = np.asarray(logits, dtype=np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


# Metrics


def test_metrics_equal_independent_float64_arithmetic():
    rng = np.random.default_rng(0)
    logits, dense = rng.normal(size=(2, 30, CLASSES)) * 3
    labels = rng.integers(CLASSES, size=30)
    score, metrics = score_table(
        torch.tensor(logits), torch.tensor(labels), torch.tensor(dense), score="loss"
    )

    q, p = numpy_log_softmax(logits), numpy_log_softmax(dense)
    order = np.argsort(-logits, axis=1)
    assert metrics["top1"] == np.mean(order[:, 0] == labels)
    assert metrics["top5"] == np.mean((order[:, :5] == labels[:, None]).any(axis=1))
    assert metrics["loss"] == pytest.approx(-q[np.arange(30), labels].mean(), rel=1e-12)
    assert metrics["kl"] == pytest.approx((np.exp(p) * (p - q)).sum(axis=1).mean(), rel=1e-12)
    assert score == -metrics["loss"]


@pytest.mark.parametrize("score, sign", [("top1", 1), ("loss", -1), ("kl", -1)])
def test_the_score_is_the_chosen_metric_and_higher_is_better(images, labels, score, sign):
    scorer = ClassifierScorer(images, labels, score=score, dense=make_network(1))
    value, metrics = scorer(make_network(0))
    assert value == sign * metrics[score]


def test_top5_needs_six_classes():
    labels = torch.zeros(3, dtype=torch.int64)
    assert "top5" not in score_table(torch.randn(3, 5), labels)[1]
    assert "top5" in score_table(torch.randn(3, 6), labels)[1]


def test_ties_go_to_the_lower_class():
    constant = torch.zeros(CLASSES, CLASSES)
    _, metrics = score_table(constant, torch.arange(CLASSES))
    assert metrics["top1"] == pytest.approx(1 / CLASSES)
    assert metrics["top5"] == pytest.approx(5 / CLASSES)


@given(
    st.integers(1, 9),
    st.integers(2, 12),
    st.floats(0.01, 200),
    st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_kl_is_never_negative_and_zero_for_the_dense_network(examples, classes, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(examples, classes, generator=generator, dtype=torch.float64) * scale
    other = torch.randn(examples, classes, generator=generator, dtype=torch.float64) * scale
    assert score_table(dense, dense=dense, score="kl")[1]["kl"] == 0
    assert score_table(other, dense=dense, score="kl")[1]["kl"] >= 0


def test_kl_of_a_real_network_to_itself_is_exactly_zero(images):
    dense = make_network()
    scorer = ClassifierScorer(images, score="kl", dense=dense, mean=MEAN, std=STD, batch_size=10)
    score, metrics = scorer(dense)
    assert score == 0 and metrics == {"kl": 0}


@given(st.integers(1, 60))
@settings(max_examples=15, deadline=None)
def test_the_batch_size_does_not_change_the_metrics(batch_size):
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(53, 3, 6, 6, generator=generator)
    labels = torch.randint(CLASSES, (53,), generator=generator)
    whole, parts = (
        ClassifierScorer(images, labels, dense=make_network(1), batch_size=size)
        for size in (53, batch_size)
    )
    network = make_network(0)
    assert parts(network)[1] == pytest.approx(whole(network)[1], rel=1e-5)


def test_labels_are_not_needed_for_kl(images):
    scorer = ClassifierScorer(images, score="kl", dense=make_network(0))
    score, metrics = scorer(make_network(1))
    assert set(metrics) == {"kl"} and score < 0


def test_half_types_autocast_and_stay_near_float32(images, labels):
    network = make_network()
    exact = ClassifierScorer(images, labels, mean=MEAN, std=STD)(network)[1]
    rounded = ClassifierScorer(images, labels, mean=MEAN, std=STD, dtype=torch.bfloat16)(network)[1]
    assert rounded["loss"] == pytest.approx(exact["loss"], rel=0.05)
    assert rounded["loss"] != exact["loss"]
    assert next(network.parameters()).dtype == torch.float32


def test_channels_last_gives_the_same_metrics(images, labels):
    network = make_network()
    usual = ClassifierScorer(images, labels, mean=MEAN, std=STD)(network)[1]
    other = ClassifierScorer(images, labels, mean=MEAN, std=STD, channels_last=True)(network)[1]
    assert other == pytest.approx(usual, rel=1e-6)


def test_a_graph_module_scores_like_the_module_it_was_traced_from(images, labels):
    network = make_network().eval()
    scorer = ClassifierScorer(images, labels, dense=network)
    assert scorer(fx.symbolic_trace(network)) == scorer(network)


def test_batches_of_a_loader_score_like_their_tensors(images, labels):
    x = images.float() / 255
    network = make_network()
    parts = list(zip(x.split(20), labels.split(20), strict=True))
    assert ClassifierScorer.from_batches(parts)(network) == ClassifierScorer(x, labels)(network)
    unlabelled = [(part, None) for part in x.split(20)]
    scorer = ClassifierScorer.from_batches(unlabelled, score="kl", dense=network)
    assert scorer(network)[0] == 0


# What the network sees, and how often


class Recorder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.inputs.append(x.clone())
        return x.flatten(1)[:, :CLASSES].float()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_inputs_are_those_of_the_data_sets_own_batches(images, labels, dtype, channels_last):
    tensors = pytest.importorskip("automl.data.tensors")
    options = {"mean": MEAN, "std": STD, "dtype": dtype, "channels_last": channels_last}
    recorder = Recorder()
    ClassifierScorer(images, labels, batch_size=20, **options)(recorder)
    expected = [x for x, _ in tensors.TensorSet(images, labels).batches(20, **options)]
    for ours, theirs in zip(recorder.inputs, expected, strict=True):
        assert torch.equal(ours, theirs)
        assert ours.dtype == dtype
        assert ours.is_contiguous(
            memory_format=torch.channels_last if channels_last else torch.contiguous_format
        )


def test_images_too_many_to_keep_are_normalised_batch_by_batch(images, labels, monkeypatch):
    network = make_network()
    kept = ClassifierScorer(images, labels, mean=MEAN, std=STD, batch_size=20)
    monkeypatch.setattr("automl.scoring.classifier._KEEP_BYTES", 0)
    streamed = ClassifierScorer(images, labels, mean=MEAN, std=STD, batch_size=20)
    assert streamed(network) == kept(network)


def test_one_forward_pass_per_batch_and_dense_only_once(images, labels):
    dense, pruned = make_network(0), make_network(1)
    calls = {"dense": 0, "pruned": 0}

    def count(name, *_):
        calls[name] += 1

    dense.register_forward_hook(partial(count, "dense"))
    pruned.register_forward_hook(partial(count, "pruned"))
    scorer = ClassifierScorer(images, labels, score="kl", dense=dense, batch_size=20)
    assert calls == {"dense": 0, "pruned": 0}  # nothing is computed before it is needed
    scorer(pruned)
    assert calls == {"dense": 3, "pruned": 3}
    scorer(pruned)
    assert calls == {"dense": 3, "pruned": 6}


def test_scoring_is_repeatable_and_changes_nothing(images, labels):
    network = make_network().train()
    network[1].eval()  # frozen normalisation
    before = {name: t.clone() for name, t in network.state_dict().items()}
    scorer = ClassifierScorer(images, labels, score="loss")
    first, second = scorer(network), scorer(network)
    assert first == second
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())
    assert network.training and network[0].training and not network[1].training


class Overwriting(nn.Module):
    """Normalises in place, as networks in use do."""

    def __init__(self):
        super().__init__()
        self.net = make_network()

    def forward(self, x):
        return self.net(x.sub_(0.5).mul_(2))


@pytest.mark.parametrize("dense", [None, Overwriting().eval()])
@pytest.mark.parametrize("channels_last", [False, True])
def test_networks_that_write_into_their_inputs_get_the_same_every_time(
    images, labels, dense, channels_last
):
    network = Overwriting().eval()
    own = images.float()
    plain = own.clone()
    score = "loss" if dense is None else "kl"
    scorer = ClassifierScorer(
        own, labels, dense=dense, score=score, batch_size=16, channels_last=channels_last
    )
    found = [scorer(network)[1] for _ in range(3)]
    assert found[0] == found[1] == found[2]
    assert torch.equal(own, plain)
    with torch.no_grad():
        expected = nn.functional.cross_entropy(network(plain.clone()), labels.long())
    assert found[0]["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_measuring_the_batch_size_leaves_inputs_as_they_are():
    images, labels = torch.rand(130, 3, 4, 4), torch.randint(5, (130,))
    network = Overwriting().eval()
    expected = ClassifierScorer(images.clone(), labels, score="loss", batch_size=64)(network)[1]
    found = ClassifierScorer(images.clone(), labels, score="loss", batch_size="auto")(network)[1]
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)


def test_modes_come_back_when_the_network_fails(images, labels):
    network = nn.Sequential(nn.Flatten(), nn.Linear(5, 5))  # cannot take the images
    with pytest.raises(RuntimeError):
        ClassifierScorer(images, labels)(network)
    assert network.training


def test_a_scorer_travels_to_another_process_with_what_it_computed(images, labels):
    dense, pruned = make_network(0), make_network(1)
    scorer = ClassifierScorer(images, labels, score="kl", dense=dense, mean=MEAN, std=STD)
    expected = scorer(pruned)
    copy = pickle.loads(pickle.dumps(scorer))
    nn.init.zeros_(copy._dense[0].weight)  # would change kl, were it computed again
    assert copy(pruned) == expected
    assert copy.fingerprint == scorer.fingerprint


def test_scorers_satisfy_the_protocol(images, labels):
    scorers: list[Scorer] = [ClassifierScorer(images, labels), UserScorer(lambda model: 1.0)]
    assert all(len(scorer.fingerprint) == 64 for scorer in scorers)


# Outputs that are not finite


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_outputs_that_are_not_finite_raise_and_say_how_many(value):
    logits = torch.randn(9, CLASSES)
    logits[2, 3] = value
    logits[5] = value
    dense = torch.randn(9, CLASSES)
    with pytest.raises(ScoreError, match="2 of 9 examples, so top1, loss, top5, kl") as caught:
        score_table(logits, torch.arange(9) % CLASSES, dense)
    assert set(caught.value.metrics) == {"top1", "top5", "loss", "kl"}
    assert all(math.isnan(v) for v in caught.value.metrics.values())


def test_a_dense_network_with_nan_outputs_is_named_as_such():
    with pytest.raises(ScoreError, match="dense network's outputs"):
        score_table(torch.randn(3, CLASSES), dense=torch.full((3, CLASSES), math.nan), score="kl")


def test_huge_but_finite_outputs_are_scored():
    huge = torch.tensor([[3e38, -3e38], [-3e38, 3e38]])
    _, metrics = score_table(huge, torch.tensor([0, 0]), dense=huge.flip(0))
    assert (
        metrics["top1"] == 0.5 and math.isfinite(metrics["loss"]) and math.isfinite(metrics["kl"])
    )


def test_score_errors_survive_pickling():
    error = pickle.loads(pickle.dumps(ScoreError("broken", {"top1": 0.5})))
    assert str(error) == "broken" and error.metrics == {"top1": 0.5}


# Bad input


def test_scores_without_what_they_need_are_refused(images, labels):
    with pytest.raises(InputError, match="score=top1 needs labels; without any use score=kl"):
        ClassifierScorer(images)
    with pytest.raises(InputError, match="score=kl compares with the dense network"):
        ClassifierScorer(images, labels, score="kl")
    with pytest.raises(InputError, match="one of top1, loss, kl, got 'accuracy'"):
        ClassifierScorer(images, labels, score="accuracy")


def test_data_that_do_not_fit_are_refused(images, labels):
    with pytest.raises(InputError, match="no examples"):
        ClassifierScorer(images[:0], labels[:0])
    with pytest.raises(InputError, match="53 images but 52 labels"):
        ClassifierScorer(images, labels[1:])
    with pytest.raises(InputError, match="from 0 on, got -1"):
        ClassifierScorer(images, labels - 1)
    with pytest.raises(ValueError, match=r"labels must be integers.*float32"):
        ClassifierScorer(images, labels.float())
    with pytest.raises(ValueError, match=r"uint8, floating point or int64 ids, got torch\.int32"):
        ClassifierScorer(images.int(), labels)
    with pytest.raises(ValueError, match="mean must have one value for each channel"):
        ClassifierScorer(images, labels, mean=(0.5,))
    with pytest.raises(ValueError, match="std must be > 0"):
        ClassifierScorer(images, labels, std=(1.0, 0.0, 1.0))
    with pytest.raises(ValueError, match="batch_size must be a positive integer or 'auto', got 0"):
        ClassifierScorer(images, labels, batch_size=0)
    assert ClassifierScorer(images, labels, batch_size=np.int64(8)).batch_size == 8
    with pytest.raises(ValueError, match="channels_last must be False for 2-D"):
        ClassifierScorer(torch.rand(4, 3), torch.zeros(4).long(), channels_last=True)


def test_networks_that_are_no_classifiers_of_the_data_are_refused(images, labels):
    scorer = ClassifierScorer(images, labels, dense=make_network())
    with pytest.raises(InputError, match=r"shape \(53, 3, 8, 8\), not logits"):
        scorer(nn.Identity())
    with pytest.raises(InputError, match=r"labels go up to 6, but the network has only 4 classes"):
        scorer(make_network(classes=4))
    with pytest.raises(InputError, match="9 classes, the dense one 7"):
        scorer(make_network(classes=9))

    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(InputError, match="returns tuple, not logits"):
        scorer(Pair())


def test_a_network_elsewhere_is_refused(images, labels):
    with pytest.raises(ValueError, match="device must be the network's, meta, got cpu"):
        ClassifierScorer(images, labels)(make_network().to("meta"))


# Fingerprints


def test_fingerprints_tell_settings_and_data_apart(images, labels):
    def make(images=images, labels=labels, **options):
        return ClassifierScorer(images, labels, **options).fingerprint

    changed = images.clone()
    changed[0, 0, 0, 0] ^= 1
    fingerprints = [
        make(),
        make(images=changed),
        make(labels=labels.flip(0)),
        make(score="loss"),
        make(dtype=torch.bfloat16),
        make(mean=MEAN),
        make(mean=MEAN, std=STD),
        make(score="kl", dense=make_network(0)),
        make(score="kl", dense=make_network(1)),
    ]
    assert len(set(fingerprints)) == len(fingerprints)


def test_fingerprints_ignore_what_does_not_change_a_score(images, labels):
    expected = ClassifierScorer(images, labels).fingerprint
    strided = images.contiguous(memory_format=torch.channels_last)
    assert ClassifierScorer(images, labels, batch_size=7).fingerprint == expected
    assert ClassifierScorer(strided, labels, channels_last=True).fingerprint == expected
    assert ClassifierScorer(images, labels, dense=make_network()).fingerprint == expected
    dense = make_network()
    kl = [ClassifierScorer(images, labels, score="kl", dense=dense) for _ in range(2)]
    kl[0](dense)
    assert kl[0].fingerprint == kl[1].fingerprint


# Batch sizes


def test_the_default_batch_size_goes_by_the_size_of_an_image():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert default_batch_size(3 * 32 * 32, cpu) == 250
    assert default_batch_size(1 * 8 * 8, cpu) == 1000
    assert default_batch_size(3 * 224 * 224, cpu) == 32
    assert default_batch_size(3 * 32 * 32, cuda) == 1000
    assert default_batch_size(3 * 224 * 224, cuda) == 81


def test_a_batch_of_a_network_with_large_activations_is_smaller():
    cpu, cuda, image = torch.device("cpu"), torch.device("cuda"), 3 * 32 * 32
    assert default_batch_size(image, cpu, activations=2 * 16 * 32 * 32) == 250  # ResNet-20
    assert default_batch_size(image, cpu, activations=96 * 32 * 32) == 83  # MobileNetV1
    assert default_batch_size(image, cpu, activations=10**9) == 32
    assert default_batch_size(image, cpu, activations=0) == 250
    assert default_batch_size(image, cuda, activations=10**9) == 1000


def test_auto_measures_once_and_then_keeps_the_size():
    images = torch.rand(130, 3, 4, 4)
    labels = torch.zeros(130, dtype=torch.int64)
    scorer = ClassifierScorer(images, labels, batch_size="auto")
    calls = []
    network = make_network()
    network.register_forward_hook(lambda module, x, y: calls.append(len(x[0])))
    scorer(network)
    assert scorer.batch_size in (64, 128)
    assert {64, 128} <= set(calls)
    calls.clear()
    scorer(network)
    assert calls[0] == scorer.batch_size and sum(calls) == 130


def test_auto_takes_everything_where_there_is_little():
    scorer = ClassifierScorer(torch.rand(9, 3, 4, 4), torch.zeros(9).long(), batch_size="auto")
    scorer(make_network())
    assert scorer.batch_size == 9


def test_the_fastest_size_is_that_of_most_examples_per_second(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("automl.batch_size.time.perf_counter", lambda: clock[0])
    seconds = {64: 64 / 100, 128: 128 / 300, 256: 256 / 200}

    def forward(size):
        clock[0] += seconds[size]

    assert fastest_batch_size(forward, [64, 128, 256]) == 128


def test_sizes_beyond_the_memory_drop_out():
    def forward(size):
        if size > limit:
            raise torch.OutOfMemoryError

    limit = 100
    assert fastest_batch_size(forward, [64, 128, 256]) == 64
    limit = 10
    with pytest.raises(torch.OutOfMemoryError):
        fastest_batch_size(forward, [64, 128])


# The user's own


@pytest.mark.parametrize(
    "value", [0.75, np.float32(0.75), torch.tensor(0.75), torch.tensor([0.75])]
)
def test_a_users_number_is_the_score(value):
    assert UserScorer(lambda model: value)(make_network()) == (0.75, {})


def test_a_users_mapping_gives_score_and_metrics():
    result = {"score": 0.5, "size": 3}
    assert UserScorer(lambda model: result)(make_network()) == (0.5, {"score": 0.5, "size": 3.0})
    result = {"accuracy": 0.25, "loss": torch.tensor(2.0)}
    scorer = UserScorer(lambda model: result, score_key="accuracy")
    assert scorer(make_network()) == (0.25, {"accuracy": 0.25, "loss": 2.0})


def test_a_users_mapping_without_the_score_is_refused_with_what_it_has():
    scorer = UserScorer(lambda model: {"accuracy": 0.5, "loss": 1.0})
    with pytest.raises(InputError, match=r"returned accuracy, loss, but no 'score'.*score_key"):
        scorer(make_network())
    with pytest.raises(InputError, match="returned nothing, but no 'top1'"):
        UserScorer(lambda model: {}, score_key="top1")(make_network())


@pytest.mark.parametrize("name", ["loss", "kl"])
def test_a_score_of_which_less_is_better_is_refused_before_anything_is_scored(name):
    with pytest.raises(InputError, match=f"score_key='{name}' .* return its negative as 'score'"):
        UserScorer(lambda model: {name: 1.0}, score_key=name)


@pytest.mark.parametrize("value", [None, "0.5", True, [0.5], torch.zeros(2), 1j])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(InputError, match=r"evaluate\(model\) must be a number"):
        UserScorer(lambda model: value)(make_network())
    with pytest.raises(InputError, match=r"evaluate\(model\)\['score'\] must be a number"):
        UserScorer(lambda model: {"score": value})(make_network())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_users_score_that_is_not_finite_raises(value):
    with pytest.raises(ScoreError, match=r"evaluate\(model\) is (nan|inf|-inf)"):
        UserScorer(lambda model: value)(make_network())
    with pytest.raises(ScoreError, match=r"evaluate\(model\)\['acc'\]") as caught:
        UserScorer(lambda model: {"acc": value, "n": 3}, "acc")(make_network())
    assert caught.value.metrics["n"] == 3


def test_the_users_function_sees_eval_mode_and_errors_pass_through():
    network = make_network()
    assert UserScorer(lambda model: float(model.training))(network)[0] == 0
    assert network.training

    def broken(model):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        UserScorer(broken)(network)
    assert network.training


def evaluate_a(model):
    return 1.0


def evaluate_b(model):
    return 2.0


class Evaluator:
    def __call__(self, model):
        return 1.0


def test_users_fingerprints_follow_the_function():
    same = [UserScorer(evaluate_a), UserScorer(evaluate_a), UserScorer(partial(evaluate_a))]
    assert len({scorer.fingerprint for scorer in same}) == 1
    others = [
        UserScorer(evaluate_b),
        UserScorer(evaluate_a, score_key="x"),
        UserScorer(Evaluator()),
        UserScorer(evaluate_a, fingerprint="mine"),
    ]
    assert len({scorer.fingerprint for scorer in [*same, *others]}) == 5
    assert UserScorer(Evaluator()).fingerprint == UserScorer(Evaluator()).fingerprint
    assert UserScorer(len).fingerprint  # no source to be had


def test_what_cannot_be_called_is_refused():
    with pytest.raises(TypeError, match=r"UserScorer\.evaluate must be callable, got 0\.5"):
        UserScorer(0.5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_gpu_agrees_with_the_cpu(images, labels, channels_last):
    dense, pruned = make_network(0), make_network(1)
    here = ClassifierScorer(images, labels, dense=dense, mean=MEAN, std=STD)(pruned)[1]
    there = ClassifierScorer(
        images,
        labels,
        dense=dense.cuda(),
        mean=MEAN,
        std=STD,
        device="cuda",
        channels_last=channels_last,
    )(pruned.cuda())[1]
    assert there == pytest.approx(here, rel=1e-2, abs=1e-3)  # TF32 convolutions


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_no_batch_waits_for_the_gpu(images, labels):
    network = make_network().cuda()
    scorer = ClassifierScorer(images, labels, dense=network, device="cuda", batch_size=10)
    scorer(network)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.inference_mode():
            totals = scorer._totals(network.eval())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert totals.shape == (5,)
