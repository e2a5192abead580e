"""Scores a network on held-out data: the number that a search maximises, and its metrics.

`ClassifierScorer` measures classifiers on decoded images; `UserScorer` wraps any function of the
user's. Both satisfy `automl.types.Scorer`.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from automl.batch_size import CANDIDATES, default_batch_size, fastest_batch_size
from automl.hashing import digest, weights_hash
from automl.training.state import evaluating
from automl.types import InputError

Score = Literal["top1", "loss", "kl"]
SCORES: tuple[Score, ...] = get_args(Score)

_HIGHER_IS_BETTER = {"top1": 1.0, "loss": -1.0, "kl": -1.0}
_TOP5_CLASSES = 6  # with five classes or fewer, top-5 is 1 by definition

# Normalised images beyond this are made anew for every batch instead of being kept.
_KEEP_BYTES = 4 << 30


class ScoreError(RuntimeError):
    """A network could not be scored: its outputs, or the score, are not finite.

    Attributes:
        metrics: Every metric that was to be reported, NaN where it could not be computed.
    """

    def __init__(self, message: str, metrics: Mapping[str, float]) -> None:
        """Keeps ``metrics`` beside the message."""
        super().__init__(message, dict(metrics))
        self.metrics = dict(metrics)

    def __str__(self) -> str:
        """The message alone, one line."""
        return str(self.args[0])


class ClassifierScorer:
    """Scores classifiers on decoded images: all metrics from one forward pass over each batch.

    Metrics, means over the examples:
        top1: Fraction with the true class first, in [0, 1]; equal outputs rank by class index.
        top5: Fraction with the true class among the first five; from six classes on.
        loss: Cross entropy with the labels, in nats.
        kl: Kullback-Leibler divergence KL(dense || network) of the softmax outputs, in nats. Needs
            no labels and is 0 for the dense network itself.

    The score is top1, -loss or -kl, so that higher is always better. Everything that does not
    depend on the network being scored (normalised images on the device, the dense network's
    log-probabilities) is computed once, at the first call or by `prepare`. Batches keep their
    order, sums are float64 and stay on the device until the end, so one score costs forward
    passes and one synchronisation, and is deterministic where the network's operators are.

    Attributes:
        score: Which metric the score is made of.
        fingerprint: SHA-256 over images, labels, normalisation, score, dtype and, where it
            matters, the dense network's WEIGHTS. Not its outputs: they differ in the last bits
            between machines and numbers of threads, and resuming elsewhere must find its trials.
        batch_size: Examples per forward pass; "auto" until measured, then the fastest found.
    """

    fingerprint: str

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        score: Score = "top1",
        dense: nn.Module | None = None,
        batch_size: int | Literal["auto"] | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        channels_last: bool = False,
    ) -> None:
        """Holds the data; computes nothing but the fingerprint.

        Args:
            images: Shape (examples, channels, height, width); uint8 counts from 0 to 255 and is
                divided by 255, floating point is taken as it is. Inputs without channels of
                their own, shape (examples, ...), work where mean, std and channels_last are off;
                int64 are ids of tokens or categories and stay as they are.
            labels: True classes, integers of shape (examples,); None where there are none, which
                leaves ``kl`` alone.
            score: ``top1``, ``loss`` or ``kl``.
            dense: The network before pruning; needed by ``kl``, which is reported where it is
                given. Must not change afterwards.
            batch_size: Examples per forward pass. None: by the size of an image. "auto": the
                fastest of 64, 128, 256 and 512, measured once on the dense network, or else on
                the first one scored. The size moves a score only in its last bits; a run that
                is to be repeated bit for bit fixes it (read it from this object and pass it).
            device: Where the networks to be scored lie.
            dtype: What they compute in. float16 and bfloat16 use autocast, so networks keep
                their float32 weights.
            mean: Subtracted from each channel, on the scale of [0, 1] images.
            std: Divides each channel.
            channels_last: Lays images out channels-last. For full effect convert the networks
                too: ``network.to(memory_format=torch.channels_last)``.

        Raises:
            InputError: The score needs labels or a dense network that is not given, or is
                unknown; there are no examples, or not one label for each.
            ValueError: A size, shape or type is off.
        """
        _check_data(images, labels)
        _check_score(score, labels, dense)
        self.score = score
        self.device = torch.device(device)
        self.dtype = dtype
        self.batch_size = _initial_batch_size(batch_size, images, self.device)
        self._images = images
        self._labels = labels
        self._dense = dense
        self._channels_last = channels_last
        self._scale, self._bias = _normalisation(images, mean, std)
        if channels_last and images.ndim != 4:
            raise ValueError(
                f"ClassifierScorer.channels_last must be False for {images.ndim}-D images, got True"
            )
        self._highest_label = int(labels.max()) if labels is not None else -1
        self.fingerprint = self._fingerprint()
        # Policy-independent results, filled once.
        self._inputs: Tensor | None = None
        self._targets: Tensor | None = None
        self._reference: Tensor | None = None

    @classmethod
    def from_batches(
        cls, batches: Iterable[tuple[Tensor, Tensor | None]], **settings: Any
    ) -> ClassifierScorer:
        """A scorer over what a data loader yields: (images, labels), or (images, None).

        Args:
            batches: Gone through once, in order; images are taken as they are.
            settings: As for the class.
        """
        images, labels = zip(*batches, strict=True)
        known = [part for part in labels if part is not None]
        return cls(torch.cat(images), torch.cat(known) if known else None, **settings)

    def __call__(self, model: nn.Module) -> tuple[float, dict[str, float]]:
        """Scores ``model``.

        Args:
            model: Maps a batch to logits of shape (batch, classes); lies on `device`. It is run
                in eval mode and gets its modes back.

        Returns:
            (score, metrics): higher scores are better.

        Raises:
            ScoreError: Some outputs are NaN or infinite.
            InputError: The outputs are not logits over the classes of the labels.
            ValueError: The network lies on another device.
        """
        self.prepare(model)
        with evaluating(model), torch.inference_mode(), self._precision():
            totals = self._totals(model)
        return self._report(*totals.tolist())

    def prepare(self, model: nn.Module | None = None) -> None:
        """Computes all that does not depend on the network being scored, unless it is there.

        Call it before handing the scorer to other processes, so that all of them compare with
        the same dense outputs, bit for bit.

        Args:
            model: Network to measure the batch size on, where it is "auto" and there is no
                dense network.
        """
        if self._targets is None and self._labels is not None:
            self._targets = self._labels.to(self.device, torch.int64)
        if self._inputs is None and self._images_bytes() <= _KEEP_BYTES:
            self._inputs = self._normalised(slice(None))
        probe = self._dense if self._dense is not None else model
        if self.batch_size == "auto" and probe is not None:
            self.batch_size = self._measured_batch_size(probe)
        if self._reference is None and self._dense is not None:
            self._reference = self._log_probabilities(self._dense)

    def __len__(self) -> int:
        """How many examples a score is taken over."""
        return len(self._images)

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out normalised images: the receiver makes them from the smaller decoded ones."""
        return {**self.__dict__, "_inputs": None, "_targets": None}

    # What a score is made of

    def _totals(self, model: nn.Module) -> Tensor:
        """Sums over all examples, shape (5,) float64 on the device; see `_batch_totals`."""
        totals = torch.zeros(5, dtype=torch.float64, device=self.device)
        for rows, logits in self._outputs(model):
            targets = self._targets[rows] if self._targets is not None else None
            reference = self._reference[rows] if self._reference is not None else None
            totals += _batch_totals(logits, targets, reference)
        return totals

    def _outputs(self, model: nn.Module) -> Iterator[tuple[slice, Tensor]]:
        """The rows and logits (batch, classes) of every batch in order."""
        self._check_device(model)
        for rows in self._batches():
            logits = model(self._batch(rows))
            self._check_logits(logits, rows.stop - rows.start)
            yield rows, logits

    def _report(
        self, top1: float, top5: float, loss: float, kl: float, broken: float
    ) -> tuple[float, dict[str, float]]:
        sums = {}
        if self._labels is not None:
            sums = {"top1": top1, "loss": loss}
            if not math.isnan(top5):
                sums["top5"] = top5
        if self._dense is not None:
            sums["kl"] = kl
        metrics = {name: value / len(self) for name, value in sums.items()}
        if broken:
            raise ScoreError(
                f"the network's outputs are NaN or infinite for {int(broken)} of {len(self)} "
                f"examples, so {', '.join(metrics)} cannot be computed",
                dict.fromkeys(metrics, math.nan),
            )
        return _HIGHER_IS_BETTER[self.score] * metrics[self.score], metrics

    def _log_probabilities(self, dense: nn.Module) -> Tensor:
        """Log-softmax outputs of the dense network, shape (examples, classes), float64."""
        with evaluating(dense), torch.inference_mode(), self._precision():
            outputs = [logits for _, logits in self._outputs(dense)]
            reference = torch.log_softmax(torch.cat(outputs).double(), dim=1)
        if not reference.isfinite().all():
            raise ScoreError(
                "the dense network's outputs are NaN or infinite, so kl cannot be computed",
                {"kl": math.nan},
            )
        return reference

    # Batches

    def _batches(self) -> Iterator[slice]:
        size = self.batch_size
        if size == "auto":  # nothing to measure on yet
            size = CANDIDATES[0]
        for start in range(0, len(self), size):
            yield slice(start, min(start + size, len(self)))

    def _batch(self, rows: slice) -> Tensor:
        return self._inputs[rows] if self._inputs is not None else self._normalised(rows)

    def _normalised(self, rows: slice) -> Tensor:
        """The network's inputs for ``rows``, on the device, in the type and layout to be used."""
        images = self._images[rows].to(self.device, non_blocking=True)
        if images.dtype == torch.int64:
            return images
        # float32 at least, rounded to a half type once at the end; one multiplication and one
        # sum, as automl.data's batches do it, to the same bits.
        exact = torch.promote_types(self.dtype, torch.float32)
        layout = torch.channels_last if self._channels_last else torch.contiguous_format
        x = images.to(exact, copy=True, memory_format=layout)
        if self._scale is not None and self._bias is not None:
            x.mul_(self._scale.to(x)).add_(self._bias.to(x))
        return x.to(self.dtype)

    def _images_bytes(self) -> int:
        return self._images.numel() * self.dtype.itemsize

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if self.dtype in (torch.float16, torch.bfloat16):
            return torch.autocast(self.device.type, dtype=self.dtype)
        return contextlib.nullcontext()

    def _measured_batch_size(self, model: nn.Module) -> int:
        """The candidate with the most examples per second on ``model``."""
        self._check_device(model)

        def forward(size: int) -> None:
            model(self._batch(slice(0, size)))
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)

        candidates = [size for size in CANDIDATES if size <= len(self)]
        with evaluating(model), torch.inference_mode(), self._precision():
            return fastest_batch_size(forward, candidates) if candidates else len(self)

    # Checks and identity

    def _check_device(self, model: nn.Module) -> None:
        parameter = next(model.parameters(), None)
        if parameter is None:
            return
        here, there = self.device, parameter.device
        if there.type != here.type or here.index not in (None, there.index):
            raise ValueError(f"ClassifierScorer.device must be the network's, {there}, got {here}")

    def _check_logits(self, logits: object, examples: int) -> None:
        if not isinstance(logits, Tensor):
            raise InputError(
                f"the network returns {type(logits).__name__}, not logits of shape (batch, "
                "classes); wrap it, or bring your own evaluate(model)"
            )
        if logits.ndim != 2 or logits.shape[0] != examples or logits.shape[1] < 2:
            raise InputError(
                f"the network turns {examples} examples into shape {tuple(logits.shape)}, not "
                "logits of shape (batch, classes); wrap it, or bring your own evaluate(model)"
            )
        if logits.shape[1] <= self._highest_label:
            raise InputError(
                f"labels go up to {self._highest_label}, but the network has only "
                f"{logits.shape[1]} classes (0 to {logits.shape[1] - 1})"
            )
        if self._reference is not None and logits.shape[1] != self._reference.shape[1]:
            raise InputError(
                f"the network has {logits.shape[1]} classes, "
                f"the dense one {self._reference.shape[1]}"
            )

    def _fingerprint(self) -> str:
        dense = None
        if self.score == "kl" and self._dense is not None:
            dense = weights_hash(self._dense)
        tensors = [self._images, self._labels, self._scale, self._bias]
        return digest("classifier-scorer-1", self.score, str(self.dtype), dense, *tensors)


class UserScorer:
    """Scores with a function of the user's: ``evaluate(model) -> float | {name: float}``.

    The network is in eval mode during the call and gets its modes back.

    Attributes:
        fingerprint: Identifies the function in a journal; by default SHA-256 over its name and
            source. What the source does not show (data, constants elsewhere) it cannot see: pass
            your own where such things change between runs.
    """

    fingerprint: str

    def __init__(
        self,
        evaluate: Callable[[nn.Module], float | Mapping[str, float]],
        score_key: str | None = None,
        fingerprint: str | None = None,
    ) -> None:
        """Holds the function.

        Args:
            evaluate: Higher is better; a mapping holds the score under ``score_key``.
            score_key: Which entry of a mapping is the score; by default ``"score"``.
            fingerprint: Replaces the one made from the function's source.

        Raises:
            TypeError: ``evaluate`` cannot be called.
        """
        if not callable(evaluate):
            raise TypeError(f"UserScorer.evaluate must be callable, got {evaluate!r}")
        self.evaluate = evaluate
        self.score_key = score_key
        self.fingerprint = fingerprint or digest("user-scorer-1", score_key, *_source(evaluate))

    def __call__(self, model: nn.Module) -> tuple[float, dict[str, float]]:
        """Scores ``model``.

        Returns:
            (score, metrics): the metrics are the mapping's entries, or empty for a number.

        Raises:
            ScoreError: The score is NaN or infinite.
            InputError: ``evaluate`` returned something else, or no score.
        """
        with evaluating(model):
            result = self.evaluate(model)
        if not isinstance(result, Mapping):
            return self._finite(_number(result, "evaluate(model)"), "evaluate(model)", {}), {}
        metrics = {str(k): _number(v, f"evaluate(model)[{k!r}]") for k, v in result.items()}
        key = self.score_key or "score"
        if key not in metrics:
            raise InputError(
                f"evaluate(model) returned {', '.join(metrics) or 'nothing'}, but no {key!r}: "
                "return the number to maximise under that name, or name it by score_key"
            )
        return self._finite(metrics[key], f"evaluate(model)[{key!r}]", metrics), metrics

    def _finite(self, score: float, what: str, metrics: Mapping[str, float]) -> float:
        if not math.isfinite(score):
            raise ScoreError(f"{what} is {score}", metrics)
        return score


def _batch_totals(logits: Tensor, labels: Tensor | None, reference: Tensor | None) -> Tensor:
    """Sums over one batch.

    Args:
        logits: Shape (batch, classes).
        labels: Shape (batch,), or None.
        reference: Log-probabilities of the dense network, shape (batch, classes), or None.

    Returns:
        Shape (5,), float64: top-1 hits, top-5 hits (NaN below six classes), cross entropy, KL
        divergence, examples with outputs that are not finite. 0 where an input is missing.
    """
    zero = logits.new_zeros((), dtype=torch.float64)
    top1 = top5 = loss = kl = zero
    log_q = torch.log_softmax(logits.double(), dim=1)
    if labels is not None:
        rank = _rank(logits, labels)
        top1 = (rank < 1).sum()
        top5 = (rank < 5).sum() if logits.shape[1] >= _TOP5_CLASSES else zero + math.nan
        loss = -log_q.gather(1, labels[:, None]).sum()
    if reference is not None:
        # Not below 0 but for rounding; clamp passes NaN on.
        kl = (reference.exp() * (reference - log_q)).sum(dim=1).clamp_min(0).sum()
    broken = (~logits.isfinite()).any(dim=1).sum()
    return torch.stack([top1.double(), top5.double(), loss, kl, broken.double()])


def _rank(logits: Tensor, labels: Tensor) -> Tensor:
    """How many classes come before the true one, shape (batch,); ties go to the lower index.

    Counting is exact and deterministic on every device, which argmax and topk are not in ties
    (frequent in half types).
    """
    true = logits.gather(1, labels[:, None])
    lower = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
    return ((logits > true) | ((logits == true) & lower)).sum(dim=1)


def _check_data(images: Tensor, labels: Tensor | None) -> None:
    if images.ndim < 2:
        raise ValueError(
            f"ClassifierScorer.images must be (examples, ...), got {tuple(images.shape)}"
        )
    if not (images.is_floating_point() or images.dtype in (torch.uint8, torch.int64)):
        raise ValueError(
            "ClassifierScorer.images must be uint8, floating point or int64 ids, "
            f"got {images.dtype}"
        )
    if len(images) == 0:
        raise InputError("there are no examples to score on; check the data's split")
    if labels is None:
        return
    if labels.is_floating_point() or labels.ndim != 1:
        raise ValueError(
            "ClassifierScorer.labels must be integers of shape (examples,), "
            f"got {labels.dtype} {tuple(labels.shape)}"
        )
    if len(labels) != len(images):
        raise InputError(f"there are {len(images)} images but {len(labels)} labels")
    if int(labels.min()) < 0:
        raise InputError(f"labels must be classes from 0 on, got {int(labels.min())}")


def _check_score(score: str, labels: Tensor | None, dense: nn.Module | None) -> None:
    if score not in SCORES:
        raise InputError(f"score must be one of {', '.join(SCORES)}, got {score!r}")
    if score == "kl" and dense is None:
        raise InputError("score=kl compares with the dense network: pass it as dense")
    if score != "kl" and labels is None:
        raise InputError(f"score={score} needs labels; without any use score=kl")


def _initial_batch_size(
    asked: int | Literal["auto"] | None, images: Tensor, device: torch.device
) -> int | Literal["auto"]:
    if asked is None:
        return default_batch_size(images[0].numel(), device)
    if asked == "auto":
        return "auto"
    if not isinstance(asked, int) or asked < 1:
        raise ValueError(
            f"ClassifierScorer.batch_size must be a positive integer or 'auto', got {asked!r}"
        )
    return asked


def _normalisation(
    images: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[Tensor | None, Tensor | None]:
    """(scale, bias) that turn decoded images into inputs: float64, shape (channels, 1, 1).

    (None, None) where there is nothing to do.
    """
    if images.dtype == torch.int64:
        if mean or std:
            raise ValueError(f"ClassifierScorer.mean and std must be None for ids, got {mean}")
        return None, None
    unit = 255.0 if images.dtype == torch.uint8 else 1.0
    if mean is None and std is None and unit == 1.0:
        return None, None
    shift = _per_channel("mean", mean, images, 0.0)
    spread = _per_channel("std", std, images, 1.0)
    if not bool((spread > 0).all()):
        raise ValueError(f"ClassifierScorer.std must be > 0, got {std}")
    return 1.0 / (unit * spread), -shift / spread


def _per_channel(
    name: str, values: Sequence[float] | None, images: Tensor, default: float
) -> Tensor:
    """Shape (channels, 1, 1), float64; one value for all without ``values``."""
    if values is None:
        return torch.tensor(default, dtype=torch.float64)
    if images.ndim != 4 or len(values) != images.shape[1]:
        raise ValueError(
            f"ClassifierScorer.{name} must have one value for each channel of images "
            f"{tuple(images.shape)}, got {list(values)}"
        )
    return torch.tensor(list(values), dtype=torch.float64)[:, None, None]


def _number(value: object, what: str) -> float:
    plain = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if isinstance(plain, bool) or not isinstance(plain, numbers.Real):
        raise InputError(
            f"{what} must be a number (or evaluate(model) a mapping of names to numbers), "
            f"got {type(value).__name__}"
        )
    return float(plain)


def _source(function: Callable[..., Any]) -> list[str]:
    """What can be known of a function: its full name and, where there is one, its source."""
    while isinstance(function, partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    parts = [str(getattr(named, "__module__", "")), str(named.__qualname__)]
    with contextlib.suppress(OSError, TypeError):
        parts.append(inspect.getsource(named))
    return parts
