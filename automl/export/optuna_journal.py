"""The trials of a run as a study of Optuna, in a journal file that its storages read.

    storage = JournalStorage(JournalFileBackend("small/optuna.log"))
    study = optuna.load_study(study_name=None, storage=storage)

Parameters are the kept counts of the targets, the value is the score (higher is better).
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from automl.journal import Journal
from automl.policy import Policy
from automl.runs import JOURNAL, POLICY
from automl.types import InputError

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

FILE = "optuna.log"


def require() -> None:
    """Checks for the package.

    Raises:
        InputError: It is not installed.
    """
    if importlib.util.find_spec("optuna") is None:
        raise InputError("format optuna needs a package: pip install 'prunepilot[tpe]'")


def write(run: Path, folder: Path) -> tuple[Path, int]:
    """Writes the study of a run; the file must not be there yet.

    Args:
        run: A run folder.
        folder: Where to write; exists.

    Returns:
        The file, and how many trials it holds.

    Raises:
        InputError: The journal cannot be read.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    rows = {row["key"]: row for row in Journal.read(run / JOURNAL)}
    trials = sorted((r for r in rows.values() if r["index"] >= 0), key=lambda r: int(r["index"]))
    units = {one.target: one.units for one in Policy.load(run / POLICY).decisions}
    made = [_trial(row, units) for row in trials]
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        storage = JournalStorage(JournalFileBackend(str(folder / FILE)))
        study = optuna.create_study(storage=storage, study_name=run.name, direction="maximize")
        for row in rows.values():
            if row["index"] == -1:  # the dense network
                study.set_user_attr("dense", _attributes(row))
        study.add_trials(made)
    finally:
        optuna.logging.set_verbosity(before)
    return folder / FILE, len(made)


def _trial(row: Mapping[str, Any], units: Mapping[str, int]) -> FrozenTrial:
    from optuna.distributions import IntDistribution
    from optuna.trial import TrialState, create_trial

    if len(row["kept"]) != len(units):
        raise InputError(f"trial {row['index']} is of another network than the run's policy")
    score = row["score"]
    # Optuna has no trials that are complete without a number.
    scored = row["status"] == "ok" and score is not None and not math.isnan(float(score))
    state = TrialState.COMPLETE if scored else TrialState.FAIL
    if row["status"] == "discarded":
        state = TrialState.PRUNED
    trial = create_trial(
        state=state,
        value=float(score) if scored else None,
        params={name: int(kept) for name, kept in zip(units, row["kept"], strict=True)},
        distributions={name: IntDistribution(1, most) for name, most in units.items()},
        user_attrs=_attributes(row),
    )
    end = datetime.fromisoformat(row["time"]).astimezone().replace(tzinfo=None)
    trial.datetime_start = end - timedelta(seconds=float(row["seconds"]))
    if trial.state.is_finished():
        trial.datetime_complete = end
    return trial


def _attributes(row: Mapping[str, Any]) -> dict[str, Any]:
    names = ("costs", "metrics", "seconds", "error", "policy", "index")
    return {name: row[name] for name in names if row.get(name) is not None}
