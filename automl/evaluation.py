"""Where trials come from: the journal, or an engine that runs them, by which they are written."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace

from automl.engines import Done, Engine
from automl.engines.errors import place_of
from automl.journal import Row
from automl.policy import Policy
from automl.racing import Floats as Losses
from automl.racing import Leader, Leaders, Racing
from automl.runner import Job, Outcome, Runner, now, run_trial
from automl.trials import (
    KnownRows,
    SearchStopped,
    Status,
    Trial,
    TrialLog,
    check_row,
    trial_of,
    trial_row,
)
from automl.types import Measurement

_log = logging.getLogger(__name__)

#: For fewer trials, what a network like them has computed is not worth computing.
_FEWEST_NEAR = 4


class Evaluation:
    """Turns jobs into trials, for one problem.

    Args:
        runner: What all trials share.
        engine: Where they run; stays open.
        cost: All costs of a policy by resource.
        dense: The policy that prunes nothing.
        journal: Where trials are written and looked up; None forgets them.
        known: Rows of other journals.
        max_failures: So many failed trials in a row stop a search.
        racing: How trials race.
    """

    def __init__(
        self,
        runner: Runner,
        engine: Engine,
        *,
        cost: Callable[[Policy], Mapping[str, float]],
        dense: Callable[[], Policy],
        journal: TrialLog | None,
        known: Iterable[Row],
        max_failures: int,
        racing: Racing,
    ) -> None:
        """Reads the journal.

        Raises:
            InputError: A row is damaged.
        """
        self._runner, self._engine, self._cost, self._dense = runner, engine, cost, dense
        self._journal, self._rows = journal, KnownRows(journal, max_failures)
        self._known = {row["key"]: row for row in map(check_row, known) if row["status"] == "ok"}
        self._leaders = Leaders(racing)
        self._losses: dict[str, Losses] = {}  # of the trials of a round
        self._places: dict[int, str] = {}  # where failed trials failed, in the user's own code
        self._is_prepared = False
        self.raised: BaseException | None = None

    def place(self, trial: Trial) -> str:
        """Where in the user's own code a failed trial failed, to be put behind its error."""
        return self._places.get(trial.index, "")

    def run_round(
        self, jobs: Sequence[Job], race: bool
    ) -> Generator[tuple[Job, Trial], None, None]:
        """The trials of jobs in order; those that may lead are leaders once all were taken."""
        finished = []
        with closing(self.measured(jobs, race)) as trials:
            for job, trial in zip(jobs, trials, strict=True):
                yield job, trial
                if trial.status == "ok" and job.examined:
                    finished.append(Leader(job.key, trial, self._losses.get(job.key)))
        self._losses.clear()
        self._leaders.add(finished)

    def measured(self, jobs: Sequence[Job], race: bool = False) -> Generator[Trial, None, None]:
        """The trials of distinct policies in order, from the journal or by scoring them."""
        ready: dict[int, Trial] = {}
        for at, job in enumerate(jobs):
            known = self._known_trial(job, race)
            if known is not None:
                ready[at] = known
        missing = [at for at in range(len(jobs)) if at not in ready]
        with closing(self._submitted([jobs[at] for at in missing], race)) as results:
            for at in range(len(jobs)):
                while at not in ready:
                    done = next(results)
                    there = missing[done.index]
                    ready[there] = self._finished(jobs[there], done)
                yield ready.pop(at)

    def _known_trial(self, job: Job, race: bool) -> Trial | None:
        """From the journal, or from another one that was given, and then written to the journal."""
        rows = self._rows
        row = rows.race(job.key, self._leaders.bar_name) if race else rows.get(job.key)
        if row is not None:
            return trial_of(row, job.index, job.policy, self._cost(job.policy))
        other = None if race else self._known.get(job.key)
        if other is None:
            return None
        trial = trial_of(other, job.index, job.policy, self._cost(job.policy))
        self._write(job.key, trial)
        return trial

    def _submitted(self, jobs: Sequence[Job], race: bool) -> Generator[Done, None, None]:
        if jobs:
            if sum(not job.examined for job in jobs) < _FEWEST_NEAR:
                jobs = [replace(job, near=None) for job in jobs]
            jobs = self._against_the_leaders(jobs) if race else jobs
            yield from self._engine.submit(run_trial, jobs, self._shared)

    def _against_the_leaders(self, jobs: Sequence[Job]) -> Sequence[Job]:
        """The jobs with a bar to pass, once there are enough leaders."""
        last = self._leaders.last
        if last is None:
            return jobs
        if last.losses is None:  # the journal knows only the score
            job = Job(last.key, last.trial.policy, last.trial.index, examined=True)
            (done,) = self._engine.submit(run_trial, [job], self._shared)
            last.losses = None if done.value is None else done.value.losses
        if last.losses is None:
            raise SearchStopped(f"the best trial so far cannot be scored again: {_error(done)}")
        bar = self._leaders.bar(last.losses)
        return [replace(job, bar=bar) if job.examined else job for job in jobs]

    @property
    def _shared(self) -> int:
        """What the engine calls the pruner and the scorer."""
        if self._engine.isolated and not self._is_prepared:
            self._runner.prepare(self._dense())
            self._is_prepared = True
        return self._engine.put(self._runner)

    def _finished(self, job: Job, done: Done) -> Trial:
        """The trial of a result that just came in, written to the journal."""
        found: Outcome | None = done.value
        error, detail, index = _error(done), done.detail, job.index
        seconds, time = 0.0, now()
        measurement = None
        status: Status = "failed"
        if found is not None:
            detail, seconds, time = found.detail or detail, found.seconds, found.time
            if found.score is not None:
                measurement = Measurement(found.score, found.metrics, self._cost(job.policy))
                status = "discarded" if found.discarded else "ok"
            if found.losses is not None:
                self._losses[job.key] = found.losses
        if error is not None:
            # The journal holds one line; whoever looks for the cause wants to see where.
            _log.info("trial %d failed: %s\n%s", index, error, detail)
            self._places[index] = place_of(detail)
            self.raised = None if found is None else found.raised
        trial = Trial(index, job.policy, measurement, status, error, seconds, time)
        # A dense network that cannot be scored ends the search at once; journalled, it would
        # do so even after the cause is gone.
        if trial.status != "failed" or index >= 0:
            self._write(job.key, trial)
        return trial

    def _write(self, key: str, trial: Trial) -> None:
        row = {"key": key, **trial_row(trial)}
        if trial.status == "discarded":
            row["bar"] = self._leaders.bar_name
        if self._journal is not None:
            self._journal.append(row)
        self._rows.add(row)


def _error(done: Done) -> str | None:
    """Why there is no score, one line: of the engine, or of the trial itself."""
    return done.error if done.value is None else done.value.error
