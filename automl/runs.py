"""The run folder: everything a run leaves behind, each file whole or not there.

| file | what |
|---|---|
| config.yaml | the resolved settings; two runs are the same run if these are equal |
| environment.json | versions, processor and threads when the run was started |
| trials.jsonl, trials.parquet | the journal, and the same as a table once the run is done |
| comparisons.jsonl | what else was scored beside a search from Python, such as ``compare`` does |
| finalists.jsonl | the best trials, scored again on all validation data |
| agent.safetensors, learning.csv | what AMC learned, and how |
| plan.json | the dense network's layers, groups and prunable units |
| policy.json, policy_uniform.json | what was found, and pruning alike within the same budget |
| model.safetensors, rebuild.json | the pruned network's tensors, and how to build its modules |
| result.json | the final table |
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from automl.hashing import digest
from automl.paths import atomic_write
from automl.trust import names_to_trust
from automl.types import InputError

CONFIG = "config.yaml"
#: What its ``started_by`` holds where a search in Python wrote it.
SEARCHER = "automl.Searcher"
ENVIRONMENT = "environment.json"
LATENCY_LIMIT = "latency_limit.json"
SCORING = "scoring.json"
JOURNAL = "trials.jsonl"
COMPARISONS = "comparisons.jsonl"
FINALISTS = "finalists.jsonl"
LANDING = "landing.json"
TRIALS = "trials.parquet"
PLAN = "plan.json"
POLICY = "policy.json"
POLICY_UNIFORM = "policy_uniform.json"
WEIGHTS = "model.safetensors"
REBUILD = "rebuild.json"
RESULT = "result.json"
#: Of the verb sensitivity, which ends without a network.
ANALYSIS = "sensitivity.csv"
#: Of a cell of a sweep that failed: the reason. Of a sweep: its cells.
FAILED = "failed.json"
SWEEP = "sweep.json"

RESULT_SCHEMA, RESULT_VERSION = "prunepilot/result", 1
REBUILD_SCHEMA = "prunepilot/rebuild"
REBUILD_VERSION = 1

#: Settings that say where and how loudly a run goes, not what it computes.
_NOT_IDENTITY = frozenset({"run_dir", "launcher", "engine", "logger", "choices", "overrides"})

#: Values of a config.yaml at most, all of its levels together.
_MOST_SETTINGS = 100_000

_LOCK = ".lock"
#: What ``atomic_write`` leaves behind where it is killed.
_PARTIAL = re.compile(r"\..+\.[0-9a-f]{8}\.partial")


class InUseError(InputError):
    """Another process works in the folder."""


@dataclass(frozen=True)
class RunFolder:
    """One run's folder.

    Attributes:
        path: The directory.
    """

    path: Path

    def file(self, name: str) -> Path:
        """Path of one of the files above."""
        return self.path / name

    @property
    def is_run(self) -> bool:
        """Whether a run was started here."""
        return self.file(CONFIG).is_file()

    @property
    def is_done(self) -> bool:
        """Whether the run reached its result."""
        return self.file(RESULT).is_file()

    def check_free_for(self, config: Mapping[str, Any]) -> None:
        """Refuses a folder that holds something else than this very run.

        Args:
            config: The resolved settings of the run that wants the folder.

        Raises:
            InputError: The path is a file, a folder with other content, or another run.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"run_dir {self.path} is a file; choose another run_dir")
        if self.is_run:
            self._check_same(config)
        elif self.path.is_dir() and not all(_is_leftover(c.name) for c in self.path.iterdir()):
            raise InputError(
                f"run_dir {self.path} holds files that are no run; choose another run_dir"
            )

    def start(
        self,
        config: Mapping[str, Any],
        environment: Callable[[], Mapping[str, Any]],
        scoring: Mapping[str, Any] | None = None,
    ) -> None:
        """Writes what identifies the run, unless the folder has it already.

        Args:
            config: The resolved settings.
            environment: Called for a new run only.
            scoring: In what type and batch size trials are scored, where that was measured.

        Raises:
            InputError: As :meth:`check_free_for`.
        """
        self.check_free_for(config)
        if not self.is_run:
            self.write_json(ENVIRONMENT, environment())
            if scoring is not None:
                self.write_json(SCORING, scoring)
            atomic_write(self.file(CONFIG), to_yaml(config))  # last: it makes this folder a run

    def config(self) -> dict[str, Any]:
        """The settings the run was started with; ``run_dir`` is where the folder is now.

        Raises:
            InputError: The folder holds no run, or its config.yaml cannot be read.
        """
        if not self.is_run:
            if self.file(SWEEP).is_file():
                raise InputError(
                    f"{self.path} is a sweep: name one of the runs in it, or give its command "
                    "again (prunepilot search -m ...) to finish it"
                )
            raise InputError(f"{self.path} holds no run (there is no {CONFIG} in it)")
        try:
            config = from_yaml(self.file(CONFIG).read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{self.file(CONFIG)}: {error}") from error
        return {**config, "run_dir": str(self.path)}

    @property
    def how_to_resume(self) -> str:
        """The command, to be copied, with what it is to trust; in words where Python began it."""
        try:
            config = self.config()
        except (InputError, OSError):  # then the command says what is wrong
            config = {}
        if config.get("started_by") == SEARCHER:
            return "the same automl.Searcher(...).search() in Python, where it was begun"
        trust = [f" --trust {shlex.quote(name)}" for name in names_to_trust(config)]
        return f"prunepilot resume {shlex.quote(str(self.path))}{''.join(trust)}"

    def result(self) -> dict[str, Any]:
        """The final table and what is said beside it.

        Raises:
            InputError: It cannot be read, or is of other settings than config.yaml.
        """
        try:
            return read_result(self.file(RESULT), self.config())
        except ValueError as error:
            raise InputError(
                f"{self.path} cannot be used: {error}; remove {RESULT}, and "
                f"'{self.how_to_resume}' writes it anew from the trials"
            ) from None

    def pin(self, latency: Mapping[str, float]) -> None:
        """Writes what a latency table makes of the budget, or compares it with what is written.

        Args:
            latency: Limit and dense latency in ms, as they are now.

        Raises:
            InputError: The run began with another table, and would not go on to the same result.
        """
        file = self.file(LATENCY_LIMIT)
        if not file.is_file():
            self.write_json(LATENCY_LIMIT, dict(latency))
            return
        try:
            began = json.loads(file.read_text(encoding="utf-8"))
            same = all(math.isclose(began[name], latency[name]) for name in latency)
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise InputError(f"{file} is damaged ({error!r}); start the run anew") from error
        if not same:
            raise InputError(
                f"{self.path} began with another latency table (a limit of "
                f"{began['limit_ms']:g} ms, here {latency['limit_ms']:g} ms): resume it on that "
                "device, from the directory where it began, or start a new run"
            )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other processes from writing here; creates the folder.

        The system drops the lock with the process, so a killed run never blocks the next.

        Raises:
            InUseError: Another process holds it.
            InputError: The folder cannot be created.
        """
        from filelock import FileLock, Timeout

        try:
            self.path.mkdir(parents=True, exist_ok=True)
            held = FileLock(self.file(_LOCK), timeout=0)
            held.acquire()
        except Timeout:
            raise InUseError(f"{self.path} is in use by another process; wait for it") from None
        except OSError as error:
            raise InputError(f"run_dir {self.path} cannot be written: {error.strerror}") from error
        try:
            self._sweep()
            yield
        finally:
            held.release()

    def _sweep(self) -> None:
        """Removes what killed writers left behind; for whoever holds the lock."""
        for child in list(self.path.iterdir()):
            if _PARTIAL.fullmatch(child.name):
                child.unlink(missing_ok=True)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes one of the JSON files, whole or not at all."""
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        atomic_write(self.file(name), text + "\n")

    def _check_same(self, config: Mapping[str, Any]) -> None:
        there, here = (_flat(settings) for settings in (self.config(), config))
        differing = [key for key in {**there, **here} if there.get(key) != here.get(key)]
        if not differing:
            return
        # A setting that many refer to, as seed, before those that do.
        key = min(differing, key=lambda name: name.count("."))
        values = [found.get(key) for found in (there, here)]
        if key.endswith("._target_"):
            values = [str(value).rpartition(".")[2] for value in values]
        raise InputError(
            f"run_dir {self.path} holds another run ({key.removesuffix('._target_')}: "
            f"{values[0]} there, {values[1]} here); choose another run_dir, or go on with that "
            f"one: {self.how_to_resume}"
        )


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 (hexadecimal) of the settings that identify a run."""
    return digest(_flat(config))


def read_result(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's result; one from before settings were noted in it is taken as it is.

    Args:
        path: Of ``result.json``.
        config: What ``config.yaml`` beside it holds.

    Raises:
        ValueError: It cannot be read, is of another version, or is of other settings.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"its {path.name} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise ValueError(f"its {path.name} is damaged") from None
    if not isinstance(found, dict) or not found.get("rows"):
        raise ValueError(f"its {path.name} is damaged")
    if (found.get("schema"), found.get("version")) != (RESULT_SCHEMA, RESULT_VERSION):
        raise ValueError(f"its result is of another version ({found.get('version')})")
    noted = found.get("config_hash")
    if noted is not None and noted != config_hash(config):
        raise ValueError(f"its {path.name} is of other settings than its {CONFIG}")
    return found


def row_of_found(result: Mapping[str, Any]) -> dict[str, Any]:
    """Of a result's rows that of the network that was found, in its last form.

    Where its training failed, it stands before a baseline that was trained.

    Args:
        result: As from :func:`read_result`.
    """
    rows: list[dict[str, Any]] = result["rows"]
    own = [row for row in rows if "found" in row["name"].split(", ")[0].split(" = ")]
    return own[-1]


def to_yaml(config: Mapping[str, Any]) -> str:
    """Plain settings as YAML, in their own order."""
    import yaml

    text: str = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
    return text


def from_yaml(text: str) -> dict[str, Any]:
    """What :func:`to_yaml` wrote.

    Raises:
        ValueError: The text is no YAML mapping.
    """
    import yaml

    try:
        config = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, OverflowError) as error:
        raise ValueError("not YAML") from error
    if not isinstance(config, dict):
        raise ValueError("not a mapping of settings")
    _require_small(config)
    return config


def _require_small(config: Any) -> None:
    """Refuses documents that are larger than they look: references may double, or be circular."""
    waiting, looked = [config], 0
    while waiting and looked + len(waiting) <= _MOST_SETTINGS:
        node, looked = waiting.pop(), looked + 1
        if isinstance(node, Mapping):
            waiting += [*node, *node.values()]
        elif isinstance(node, list | tuple | set):
            waiting += node
    if waiting:
        raise ValueError(f"more than {_MOST_SETTINGS} settings")


def _is_leftover(name: str) -> bool:
    """Whether this may be of a run that has no config.yaml: killed before that, or not begun."""
    before = (_LOCK, ENVIRONMENT, SCORING, COMPARISONS, f"{COMPARISONS}{_LOCK}", FAILED)
    return name in before or _PARTIAL.fullmatch(name) is not None


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value of the settings that decide what a run computes."""
    return _flat(config)


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value, without what does not identify a run."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if not prefix and key in _NOT_IDENTITY:
            continue
        if isinstance(value, Mapping) and value:
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
