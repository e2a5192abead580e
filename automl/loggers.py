"""Who watches a search: TensorBoard, MLflow, Weights & Biases, or anything with three methods.

``prunepilot search logger=tensorboard`` chooses one of conf/logger; ``automl.Searcher(...,
callbacks=[...])`` takes any number of objects. What watches must never cost a search: one that
fails is warned about once and left out from then on.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from automl.problem import Trial
from automl.types import InputError


@dataclass(frozen=True, eq=False)
class SearchInfo:
    """What is known when a search starts.

    Attributes:
        settings: Of the search, as plain data.
        dense: Costs of the dense network.
        limits: The budget, in the units of the costs.
        folder: Run folder; None where nothing is written.
    """

    settings: Mapping[str, Any]
    dense: Mapping[Any, float]
    limits: Mapping[Any, float]
    folder: Path | None = None

    @property
    def name(self) -> str:
        """What to call it: the run folder's name."""
        return "search" if self.folder is None else self.folder.name


class Callback(Protocol):
    """Watches a search."""

    def on_search_start(self, info: SearchInfo) -> None:
        """Called once the dense network was scored."""

    def on_trial(self, trial: Trial) -> None:
        """Called after every trial in order; of a resumed search, those of before included."""

    def on_search_end(self, found: Trial | None) -> None:
        """Called at the end, with the best trial; None where the search was cut."""


class Guarded:
    """Several callbacks as one that never raises: who fails is warned about once and left out."""

    def __init__(
        self, callbacks: Sequence[Callback], first: Callable[[Trial], None] | None = None
    ) -> None:
        """Takes the callbacks, called in this order.

        Args:
            callbacks: Those that never stop a search.
            first: Called before them after every trial; what it raises is passed on.
        """
        self._callbacks, self._first = list(callbacks), first
        self._started = False

    def on_search_start(self, info: SearchInfo) -> None:
        """See :class:`Callback`."""
        self._started = True
        self._call("on_search_start", info)

    def on_trial(self, trial: Trial) -> None:
        """See :class:`Callback`."""
        if self._first is not None:
            self._first(trial)
        self._call("on_trial", trial)

    def on_search_end(self, found: Trial | None) -> None:
        """See :class:`Callback`; nobody is called afterwards."""
        self._call("on_search_end", found)
        self._callbacks = []

    @contextmanager
    def to_the_end(self) -> Iterator[None]:
        """Tells the callbacks where an exception ends the block."""
        try:
            yield
        except BaseException:
            if self._started:
                self.on_search_end(None)
            raise

    def _call(self, method: str, argument: Any) -> None:
        for callback in list(self._callbacks):
            try:
                getattr(callback, method)(argument)
            except Exception as error:
                self._callbacks.remove(callback)
                name = type(callback).__name__
                warnings.warn(
                    f"{name} failed in {method} and is left out from here on; the search goes on "
                    f"({type(error).__name__}: {error})",
                    RuntimeWarning,
                    stacklevel=2,
                )


@dataclass
class Nobody:
    """Logs nothing."""

    def on_search_start(self, info: SearchInfo) -> None:
        """See :class:`Callback`."""

    def on_trial(self, trial: Trial) -> None:
        """See :class:`Callback`."""

    def on_search_end(self, found: Trial | None) -> None:
        """See :class:`Callback`."""


@dataclass
class TensorBoard:
    """Scalars of every trial, for ``tensorboard --logdir``.

    Attributes:
        folder: Where to write; None: ``tensorboard`` in the run folder.
    """

    folder: str | None = None
    _writer: Any = field(default=None, init=False, repr=False)
    _figures: _Figures | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuses to start without the package.

        Raises:
            InputError: It is not installed.
        """
        _require("tensorboard", "tensorboard", "prunepilot[tensorboard]")

    def on_search_start(self, info: SearchInfo) -> None:
        """See :class:`Callback`."""
        from torch.utils.tensorboard import SummaryWriter

        folder = self.folder or (info.folder or Path("runs") / info.name) / "tensorboard"
        # What a search that was cut has written before is written again, not twice.
        self._writer = SummaryWriter(str(folder), purge_step=0)
        self._figures = _Figures(info)
        self._writer.add_text("settings", _as_text(info.settings), 0)

    def on_trial(self, trial: Trial) -> None:
        """See :class:`Callback`."""
        assert self._figures is not None  # for the type checker
        for name, value in self._figures(trial).items():
            self._writer.add_scalar(name, value, trial.index)
        if trial.error:
            self._writer.add_text("failed", str(trial.error), trial.index)
        self._writer.flush()

    def on_search_end(self, found: Trial | None) -> None:
        """See :class:`Callback`."""
        self._writer.close()


@dataclass
class MLflow:
    """A run of MLflow with a metric per figure and trial.

    Attributes:
        experiment: Name of the experiment, made where there is none.
        uri: Tracking server or store; None: MLflow's own (``MLFLOW_TRACKING_URI``).
    """

    experiment: str = "prunepilot"
    uri: str | None = None
    _client: Any = field(default=None, init=False, repr=False)
    _run: str = field(default="", init=False, repr=False)
    _figures: _Figures | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuses to start without the package.

        Raises:
            InputError: It is not installed.
        """
        _require("mlflow", "mlflow", "prunepilot[mlflow]")

    def on_search_start(self, info: SearchInfo) -> None:
        """See :class:`Callback`."""
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=self.uri)
        known = self._client.get_experiment_by_name(self.experiment)
        where = self._client.create_experiment(self.experiment) if known is None else None
        where = known.experiment_id if known is not None else where
        self._run = self._client.create_run(where, run_name=info.name).info.run_id
        for name, value in _flat(info.settings).items():
            self._client.log_param(self._run, name, str(value)[:500])
        self._figures = _Figures(info)

    def on_trial(self, trial: Trial) -> None:
        """See :class:`Callback`."""
        assert self._figures is not None  # for the type checker
        for name, value in self._figures(trial).items():
            self._client.log_metric(self._run, name, value, step=trial.index)

    def on_search_end(self, found: Trial | None) -> None:
        """See :class:`Callback`."""
        self._client.set_terminated(self._run, "KILLED" if found is None else "FINISHED")


@dataclass
class WandB:
    """A run of Weights & Biases.

    Attributes:
        project: Its project.
        mode: ``offline`` writes files that ``wandb sync`` sends later; ``online`` sends at once.
    """

    project: str = "prunepilot"
    mode: str = "offline"
    _run: Any = field(default=None, init=False, repr=False)
    _figures: _Figures | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuses to start without the package.

        Raises:
            InputError: It is not installed, or the mode is unknown.
        """
        if self.mode not in ("offline", "online"):
            raise InputError(f"logger.mode must be offline or online, got {self.mode!r}")
        _require("wandb", "wandb", "prunepilot[wandb]")

    def on_search_start(self, info: SearchInfo) -> None:
        """See :class:`Callback`."""
        wandb: Any = importlib.import_module("wandb")
        where = None if info.folder is None else str(info.folder)
        self._run = wandb.init(
            project=self.project,
            name=info.name,
            mode=self.mode,
            dir=where,
            config=dict(_flat(info.settings)),
        )
        self._figures = _Figures(info)

    def on_trial(self, trial: Trial) -> None:
        """See :class:`Callback`."""
        assert self._figures is not None  # for the type checker
        self._run.log(self._figures(trial), step=trial.index)

    def on_search_end(self, found: Trial | None) -> None:
        """See :class:`Callback`."""
        self._run.finish(exit_code=int(found is None))


class _Figures:
    """Trial -> name -> number: what every logger shows."""

    def __init__(self, info: SearchInfo) -> None:
        self._dense, self._limits = info.dense, info.limits
        self._best: float | None = None

    def __call__(self, trial: Trial) -> dict[str, float]:
        figures = {"seconds": trial.seconds, "failed": float(trial.measurement is None)}
        found = trial.measurement
        if found is None:
            return figures
        within = all(found.costs.get(name, 0.0) <= most for name, most in self._limits.items())
        counts = within and trial.status == "ok"
        if counts and (self._best is None or found.score > self._best):
            self._best = found.score
        figures["score"] = found.score
        if self._best is not None:
            figures["best_score"] = self._best
        figures |= {f"metric/{name}": value for name, value in found.metrics.items()}
        figures |= {f"cost/{name}": value for name, value in found.costs.items()}
        figures |= {
            f"cost_ratio/{name}": value / self._dense[name]
            for name, value in found.costs.items()
            if self._dense.get(name)
        }
        return figures


def _require(module: str, what: str, package: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise InputError(f"logger={what} needs a package: pip install '{package}'")


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as ``a.b.c`` -> value."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _as_text(settings: Mapping[str, Any]) -> str:
    """A list in Markdown, which TensorBoard shows."""
    return "\n".join(f"- `{name}`: {value}" for name, value in _flat(settings).items())
