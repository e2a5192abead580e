"""Scores classifiers on decoded images, on all of them or in a race."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from automl.batch_size import CANDIDATES, fastest_batch_size
from automl.hashing import digest, weights_hash
from automl.racing import Bar, Examined, Race, drawn_order
from automl.scoring.errors import ScoreError
from automl.scoring.inputs import check_data, initial_batch_size, normalisation
from automl.scoring.metrics import BROKEN, COLUMNS, SCORES, Score, losses, of_examples
from automl.training.state import evaluating
from automl.types import SIGNS, InputError

# Normalised images beyond this are made anew for every batch instead of being kept.
_KEEP_BYTES = 4 << 30

#: A race begins with this part of a batch; each next batch may be as large as all before it.
_FIRST_PART = 4

#: Rows of the examples: those in between, or these.
Rows = slice | Tensor


@runtime_checkable
class _Numbered(Protocol):
    """A network that wants to know which batch it is given."""

    def numbered_batch(self, number: int, inputs: Tensor) -> Tensor:
        """Logits of batch ``number``; a scorer's batches are the same in every call."""


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
    #: Networks with ``numbered_batch(number, inputs)`` are called by it.
    numbers_batches = True

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
        check_data(images, labels)
        _check_score(score, labels, dense)
        self.score = score
        self.device = torch.device(device)
        self.dtype = dtype
        self.batch_size = initial_batch_size(batch_size, images, self.device)
        self._images = images
        self._labels = labels
        self._dense = dense
        self._channels_last = channels_last
        self._scale, self._bias = normalisation(images, mean, std)
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
        self._overwritten: bool | None = None  # whether networks write into what they are given

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
        return self._report(totals.tolist(), len(self))

    def examine(self, model: nn.Module, key: str, bar: Bar | None = None) -> Examined:
        """Scores ``model`` and keeps the loss of every example, in a race if there is a bar.

        Args:
            model: As for a call.
            key: A digest that draws the order of the examples.
            bar: What the network must not fall behind; None scores it on every example.

        Returns:
            Score, metrics and losses. Where the network fell behind there are no losses, the
            metrics are means over the examples seen, and the metric that the score is made of is
            estimated from those and what the bar says of the others; ``examples`` says how many
            were seen.

        Raises:
            ScoreError: Some outputs are NaN or infinite.
            InputError: The outputs are not logits over the classes of the labels.
            ValueError: The network lies on another device, or the bar has other examples.
        """
        if bar is not None and len(bar.losses) != len(self):
            raise ValueError(
                f"ClassifierScorer.examine: bar must have {len(self)} examples, "
                f"got {len(bar.losses)}"
            )
        self.prepare(model)
        order, race = drawn_order(len(self), key), None if bar is None else Race(bar)
        found = np.empty((len(self), COLUMNS))
        with evaluating(model), torch.inference_mode(), self._precision():
            for rows, values in self._drawn(model, order):
                found[rows] = values
                if race is None or values[:, BROKEN].any():
                    continue
                lost = losses(torch.from_numpy(values), self.score).numpy()
                if race.falls_behind(rows, lost) and race.examples < len(self):
                    return self._estimated(found[order[: race.examples]], race)
        score, metrics = self._report(found.sum(axis=0).tolist(), len(self))
        return Examined(score, metrics, losses(torch.from_numpy(found), self.score).numpy())

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
        """Sums over all examples, shape (5,) float64 on the device; see `metrics.of_examples`."""
        totals = torch.zeros(COLUMNS, dtype=torch.float64, device=self.device)
        for rows, logits in self._outputs(model):
            totals += self._values(rows, logits).sum(dim=0)
        return totals

    def _values(self, rows: Rows, logits: Tensor) -> Tensor:
        targets = self._targets[rows] if self._targets is not None else None
        reference = self._reference[rows] if self._reference is not None else None
        return of_examples(logits, targets, reference)

    def _outputs(self, model: nn.Module) -> Iterator[tuple[slice, Tensor]]:
        """The rows and logits (batch, classes) of every batch in order."""
        self._check_device(model)
        numbered = model if isinstance(model, _Numbered) else None
        for number, rows in enumerate(self._batches()):
            inputs = self._batch(rows)
            with self._kept(inputs) as given:
                logits = (
                    model(given) if numbered is None else numbered.numbered_batch(number, given)
                )
            self._check_logits(logits, rows.stop - rows.start)
            yield rows, logits

    def _drawn(
        self, model: nn.Module, order: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """Rows and metrics of batches of examples in an order; batches grow."""
        self._check_device(model)
        most, seen = self._batch_size, 0
        while seen < len(order):
            size = min(most, max(most // _FIRST_PART, seen, 1))
            rows = order[seen : seen + size]
            there = torch.from_numpy(rows).to(self.device)
            logits = model(self._batch(there))
            self._check_logits(logits, len(rows))
            seen += len(rows)
            yield rows, self._values(there, logits).cpu().numpy()

    def _estimated(self, seen: NDArray[np.float64], race: Race) -> Examined:
        """What is known of a network that fell behind, from the metrics of (seen, 5)."""
        _, metrics = self._report(seen.sum(axis=0).tolist(), len(seen))
        loss = race.estimate()
        metrics[self.score] = 1 - loss if self.score == "top1" else loss
        metrics["examples"] = float(len(seen))
        return Examined(SIGNS[self.score] * metrics[self.score], metrics, None)

    def _report(self, totals: Sequence[float], examples: int) -> tuple[float, dict[str, float]]:
        """The score and metrics of sums over so many examples."""
        top1, top5, loss, kl, broken = totals
        sums = {}
        if self._labels is not None:
            sums = {"top1": top1, "loss": loss}
            if not math.isnan(top5):
                sums["top5"] = top5
        if self._dense is not None:
            sums["kl"] = kl
        metrics = {name: value / examples for name, value in sums.items()}
        if broken:
            raise ScoreError(
                f"the network's outputs are NaN or infinite for {int(broken)} of {examples} "
                f"examples, so {', '.join(metrics)} cannot be computed",
                dict.fromkeys(metrics, math.nan),
            )
        return SIGNS[self.score] * metrics[self.score], metrics

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

    @property
    def _batch_size(self) -> int:
        # Before there was a network to measure on, the least.
        return CANDIDATES[0] if self.batch_size == "auto" else self.batch_size

    def _batches(self) -> Iterator[slice]:
        size = self._batch_size
        for start in range(0, len(self), size):
            yield slice(start, min(start + size, len(self)))

    def _batch(self, rows: Rows) -> Tensor:
        if self._inputs is None:
            return self._normalised(rows)
        if isinstance(rows, slice) or not self._channels_last:
            return self._inputs[rows]
        # So that channels stay last: chosen as a tensor whose channels are the last dimension.
        chosen = self._inputs.permute(0, 2, 3, 1).index_select(0, rows)
        return chosen.permute(0, 3, 1, 2)

    @contextlib.contextmanager
    def _kept(self, inputs: Tensor) -> Iterator[Tensor]:
        """What a network is given of inputs that the next one needs: some write into it.

        Whether they do is seen on the first batch; others are not copied.
        """
        if self._overwritten is None:
            before = inputs.clone()
            yield inputs
            self._overwritten = not torch.equal(before, inputs)
            if self._overwritten:
                inputs.copy_(before)
        else:
            yield inputs.clone() if self._overwritten else inputs

    def _normalised(self, rows: Rows) -> Tensor:
        """The network's inputs for ``rows``, on the device, in the type and layout to be used."""
        there = rows if isinstance(rows, slice) else rows.to(self._images.device)
        images = self._images[there].to(self.device, non_blocking=True)
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
            with self._kept(self._batch(slice(0, size))) as inputs:
                model(inputs)
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


def _check_score(score: str, labels: Tensor | None, dense: nn.Module | None) -> None:
    if score not in SCORES:
        raise InputError(f"score must be one of {', '.join(SCORES)}, got {score!r}")
    if score == "kl" and dense is None:
        raise InputError("score=kl compares with the dense network: pass it as dense")
    if score != "kl" and labels is None:
        raise InputError(f"score={score} needs labels; without any use score=kl")
