"""One search from its settings to its result, in a run folder."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from automl.budget import Budget
from automl.commands.build import Bench
from automl.commands.engine import engine_of
from automl.commands.finishing import Finals, finish
from automl.commands.granularity import read_grains
from automl.commands.intact import fault_of
from automl.commands.landing import Landing, lands
from automl.commands.pruners import short_term_of
from automl.commands.settings import (
    flag,
    instantiate,
    number,
    run_dir,
    seed_of,
    set_up_process,
    whole,
)
from automl.commands.table import Row as TableRow
from automl.commands.table import print_table
from automl.commands.training import codebook_of, schedule_of, tuning_of
from automl.commands.untrained import warn_of_chance
from automl.engines import Engine
from automl.environment import environment
from automl.finalists import choose, chosen, finalists, searched
from automl.fitting import Space
from automl.journal import Journal, Row
from automl.loggers import Callback, Guarded, SearchInfo
from automl.problem import Problem, Trial, limited
from automl.progress import Progress, progress
from automl.pruning.granularities import CHANNEL
from automl.racing import Racing
from automl.runs import FINALISTS, JOURNAL, SCORING, TRIALS, RunFolder
from automl.scoring import ScoreError
from automl.strategies import load
from automl.training.config import FinetuneConfig
from automl.types import CostModel, InputError, SearchResult, Strategy


@dataclass(frozen=True, eq=False)
class SearchRun:
    """A search and where it is written.

    Attributes:
        config: The resolved configuration.
        bench: The network, data, pruner and scorers.
        folder: Where it is written.
        known: Journal rows of sister runs; what they scored is not scored again.
        engine: Where trials run; None while nothing is to be scored.
    """

    config: Mapping[str, Any]
    bench: Bench
    folder: RunFolder
    known: Sequence[Row] = ()
    engine: Engine | None = None

    @classmethod
    def of(
        cls, config: Mapping[str, Any], bench: Bench | None = None, known: Sequence[Row] = ()
    ) -> SearchRun:
        """Checks what can be checked without loading anything.

        Args:
            config: The resolved configuration.
            bench: What was made for a run that differs in strategy or budget only.
            known: See the attribute.

        Raises:
            InputError: A setting is off, or the folder holds something else.
        """
        whole(config, "trials", 1)
        seed_of(config)
        whole(config, "max_failures", 1)
        whole(config["scoring"], "scoring.finalists", 1)
        number(config, "latency_budget_s", 0)
        set_up_process(config)
        Budget.parse(config["budget"])
        _refuse_settings_of_prune(config)
        _logger(config)  # says what is not installed before anything is computed
        instantiate(config["strategy"], "strategy")
        tuning_of(config)
        short_term_of(config)
        folder = RunFolder(run_dir(config) or Path(_new_run_dir(config)))
        folder.check_free_for(config)
        return cls(config, bench or Bench(config), folder, tuple(known))

    def execute(self, title: str = "trials", train_again: bool = False) -> int:
        """Searches, fine-tunes, measures and writes everything; returns the exit code.

        Args:
            title: What the progress display is called.
            train_again: Whether a finished run whose training failed runs its last phase again.
        """
        if self.folder.is_done:
            reason = self._reason_to_go_on(train_again)
            if reason is None:
                return self._finished_before()
            print(f"{reason}: the last phase runs again, from the trials", flush=True)
        strategy, tuning, _ = self.bench.strategy(), self._tuning(), self._baselines()
        self.prove()
        with ExitStack() as engine:
            run = engine.enter_context(self.with_engine())  # may refuse: nothing is written yet
            with self.folder.lock():
                if self.folder.is_done and self._reason_to_go_on(train_again) is None:
                    return self._finished_before()  # by another process, since this one looked
                self.start()
                print(f"run folder: {self.folder.path}", flush=True)
                with Journal(self.folder.file(JOURNAL)) as journal:
                    finals = run._search(strategy, journal, title)
                    engine.close()  # its workers are of no more use
                    journal.write_parquet(self.folder.file(TRIALS))
                finish(self.bench, self.folder, finals, tuning)
        self._show()
        print(f"wrote {self.folder.path} (policy.json, model.safetensors, trials.parquet, ...)")
        return self._failures()

    def _reason_to_go_on(self, train_again: bool) -> str | None:
        """Why a run that has a result is not left as it is, in words; None where it is."""
        fault = fault_of(self.folder)
        if fault is None and train_again:
            return next(iter(failures_of(self.folder.result())), None)
        return fault

    def _finished_before(self) -> int:
        self._show()
        print(f"finished before: {self.folder.path}")
        return self._failures()

    def _failures(self) -> int:
        """Says which networks could not be trained; the exit code."""
        failures = failures_of(self.folder.result())
        for line in failures:
            print(f"prunepilot: failed: {line}; {self._how_to_train()}", file=sys.stderr)
        return 1 if failures else 0

    def _how_to_train(self) -> str:
        return (
            "to train with other settings: "
            f"prunepilot apply {shlex.quote(str(self.folder.path))} --fine-tune "
            f"model={self.config['choices']['model']} --out NEW finetune.lr=..."
        )

    @contextmanager
    def with_engine(self) -> Iterator[SearchRun]:
        """The same run with an engine, closed after the block."""
        with engine_of(self.config) as engine:
            yield replace(self, engine=engine)

    def start(self) -> None:
        """Writes what identifies the run, once it is proved."""
        choice = self.bench.scoring_choice
        self.folder.start(self.config, environment, choice.to_dict() if choice.why else None)

    def prove(self) -> None:
        """Lets all bad input show before anything is written.

        Raises:
            InputError: The budget is out of reach, or the dense network cannot be scored.
        """
        choice = self.bench.settle_scoring(self.folder.file(SCORING))
        if choice.why:
            print(f"trials are scored in {choice.dtype} ({choice.why})", file=sys.stderr)
        scorer = self.bench.scorer  # made first: what it refuses, it refuses before tracing
        problem = self.problem()
        if problem.within(problem.space.units):
            print(
                f"the dense network is within the budget ({problem.budget}): nothing needs to be "
                "pruned",
                file=sys.stderr,
            )
        try:
            scorer.prepare()
        except ScoreError as error:
            raise InputError(f"the dense network cannot be scored: {error}") from error

    def require_reachable(self) -> None:
        """Makes sure that the budget can be met, as far as that takes no data and no clock.

        Raises:
            InputError: It cannot, or there is nothing to prune.
        """
        bench, budget = self.bench, Budget.parse(self.config["budget"])
        counted = tuple(one for one in budget.limits if one.resource != "latency_ms")
        if counted:
            min_keep = self.config["granularity"]["min_keep"]
            space = Space.of(bench.plan.targets, bench.rounding, min_keep)
            dense = {str(name): float(cost(space.units)) for name, cost in bench.costs.items()}
            limited(Budget(counted), space, bench.costs, dense)

    def _search(self, strategy: Strategy, journal: Journal, title: str) -> Finals:
        trials, seed = self.config["trials"], self.config["seed"]
        seconds, started = self._spent(journal), time.monotonic()
        logger = Guarded([_logger(self.config)])
        with progress(trials, title) as shown, logger.to_the_end():
            watch = _Watch(shown, self.config["scoring"]["score"], logger)
            problem = self.problem(journal, watch)
            dense = problem.dense  # first: where it cannot be scored, nothing can
            if not self.known:  # else another cell of the sweep has said it
                warn_of_chance(self.bench, dense)
            watch.dense, watch.limits = problem.dense_costs, problem.limits
            costs, limits = problem.dense_costs, problem.limits
            if "latency_ms" in limits:
                self.folder.pin({"limit_ms": limits["latency_ms"], "dense_ms": costs["latency_ms"]})
            logger.on_search_start(SearchInfo(self.config, costs, limits, self.folder.path))
            result = searched(strategy, problem, trials, seed)
            scored = problem.trials  # before the baselines ask for theirs
            watch.end(len(result.trials))
            logger.on_search_end(chosen(result))
            seconds += time.monotonic() - started
        if hasattr(strategy, "save"):  # what it learned, to start another search from
            strategy.save(self.folder.path)
        others = {"uniform": searched(load("uniform"), problem, 1, seed)}
        others |= {name: self._baseline(name) for name in self._baselines()}
        finals = self._last_round(problem, result, others)
        return replace(finals, wall_seconds=seconds, exhausted=result.exhausted, scored=scored)

    def _spent(self, journal: Journal) -> float:
        """Seconds of the trials that an earlier process of this search ran."""
        known = {row["key"] for row in self.known}
        return float(sum(row.get("seconds") or 0.0 for row in journal if row["key"] not in known))

    def _baselines(self) -> list[str]:
        """Names of the strategies that the table shows beside uniform.

        Raises:
            InputError: ``baselines`` is no list of strategies.
        """
        asked = self.config["baselines"]
        if not isinstance(asked, list):
            raise InputError(f"baselines must be a list of strategies, as [random], got {asked}")
        for name in asked:
            load(str(name))
        return [name for name in dict.fromkeys(map(str, asked)) if name != "uniform"]

    def _baseline(self, name: str) -> SearchResult:
        """The result of another strategy with as many trials, in a journal of its own."""
        trials, seed = self.config["trials"], self.config["seed"]
        with (
            progress(trials, name) as shown,
            Journal(self.folder.file(f"trials-{name}.jsonl")) as journal,
        ):
            watch = _Watch(shown, self.config["scoring"]["score"])
            problem = self.problem(journal, watch)
            watch.dense, watch.limits = problem.dense_costs, problem.limits
            result = searched(load(name), problem, trials, seed)
            watch.end(len(result.trials))
            return result

    def _last_round(
        self, problem: Problem, result: SearchResult, others: Mapping[str, SearchResult]
    ) -> Finals:
        """Chooses among the best trials of every search, on all validation images."""
        results = {**others, "found": result}
        if not self._has_last_round and not lands(self.bench, problem):
            best = {name: chosen(one) for name, one in results.items()}
            return Finals(problem, result.trials, problem.dense, best)
        count = whole(self.config["scoring"], "scoring.finalists", 1) if self._has_last_round else 1
        with Journal(self.folder.file(FINALISTS)) as journal:
            careful = self.problem(journal, careful=True)
            best = {n: choose(finalists(r, problem, count), careful) for n, r in results.items()}
            finals = Finals(problem, result.trials, careful.dense, best, count)
            return self._landed(finals, journal) if lands(self.bench, problem) else finals

    def _landed(self, finals: Finals, journal: Journal) -> Finals:
        """With every network brought onto the budget of latency, as it is timed."""
        land = Landing(self.bench, self.folder)

        def remake(latency: CostModel) -> Problem:
            return self.problem(journal, careful=True, latency=latency)

        best = {name: land(name, trial, remake) for name, trial in finals.best.items()}
        trials = {name: landed.trial for name, landed in best.items()}
        return replace(finals, best=trials, latency=best["found"].cost)

    def problem(
        self,
        journal: Journal | None = None,
        watch: Callable[[Trial], None] | None = None,
        careful: bool = False,
        latency: CostModel | None = None,
    ) -> Problem:
        """The problem that the settings describe.

        Args:
            journal: Where trials are written; None keeps them in memory.
            watch: Called after every trial.
            careful: Whether networks are made and scored as in the last round.
            latency: Predicts it, where it is limited; None for what was aimed at the budget.

        Raises:
            InputError: There is nothing to prune, or the budget is out of reach.
        """
        bench, granularity = self.bench, self.config["granularity"]
        costs = bench.costs_for(self.config["budget"])
        if latency is not None:
            costs = {**costs, "latency_ms": latency}
        return Problem(
            bench.plan,
            bench.finalist_pruner if careful else bench.trial_pruner,
            bench.careful_scorer if careful else bench.scorer,
            self.config["budget"],
            costs,
            rounding=bench.rounding,
            min_keep=granularity["min_keep"],
            journal=journal,
            known=self.known,
            on_trial=watch,
            max_failures=self.config["max_failures"],
            prepare=bench.pruner.for_inference,
            engine=self.engine,
            racing=None if careful else self._racing(),
            reuse=flag({"reuse": True, **self.config["scoring"]}, "scoring.reuse"),
        )

    def _racing(self) -> Racing | None:
        """How trials race: for as many places as go into the last round.

        Raises:
            InputError: A setting is off.
        """
        settings = {"racing": False, "racing_delta": 0.01, "racing_round": 8}
        settings |= self.config["scoring"]  # runs from before there were races have none
        if not flag(settings, "scoring.racing"):
            return None
        size, delta = whole(settings, "scoring.racing_round", 1), settings["racing_delta"]
        places = whole(settings, "scoring.finalists", 1) if self._has_last_round else 1
        if isinstance(delta, bool) or not isinstance(delta, int | float) or not 0 < delta < 1:
            raise InputError(f"scoring.racing_delta must be a number in (0, 1), got {delta!r}")
        return Racing(float(delta), size, places)

    @property
    def _has_last_round(self) -> bool:
        """Whether the best trials are scored again: otherwise or on more images than trials."""
        bench = self.bench
        as_trials = bench.finalist_pruner is bench.trial_pruner
        return not (as_trials and bench.scorer is bench.careful_scorer)

    def _tuning(self) -> FinetuneConfig:
        tuning, grains = tuning_of(self.config), read_grains(self.config["granularity"])
        names = [CHANNEL] if grains is None else grains.names
        schedule_of(self.config, names, tuning.epochs)  # refuses what does not go together
        codebook_of(self.config)  # likewise
        return tuning

    def _show(self) -> None:
        """Prints the result that the folder holds."""
        result = self.folder.result()
        print_table([TableRow(**row) for row in result["rows"]], result)


def _refuse_settings_of_prune(config: Mapping[str, Any]) -> None:
    if config.get("ratio") is not None:
        raise InputError("ratio= is for prune; a search finds ratios within a budget")
    if config["granularity"].get("scope") == "global":
        raise InputError(
            "granularity.scope=global ranks all layers together, which is for prune; a search "
            "finds every layer's ratio"
        )


def _logger(config: Mapping[str, Any]) -> Callback:
    # Runs from before there were loggers have no such setting.
    settings = config.get("logger") or {"_target_": "automl.loggers.Nobody"}
    logger: Callback = instantiate(settings, "logger")
    return logger


class _Watch:
    """Keeps the progress display at the number of trials and the best of them.

    Attributes:
        dense: Costs of the dense network, which others are shown as shares of.
        limits: The budget; some strategies learn from policies over it, which are never the best.
    """

    def __init__(self, shown: Progress, score: str, logger: Callback | None = None) -> None:
        self.dense: Mapping[Any, float] = {}
        self.limits: Mapping[Any, float] = {}
        self._shown, self._score, self._logger = shown, score, logger
        self._best: Trial | None = None
        self._ended = False

    def __call__(self, trial: Trial) -> None:
        if self._ended:
            return
        if self._logger is not None:
            self._logger.on_trial(trial)
        better = self._best is None or trial.score > self._best.score
        if trial.status == "ok" and self._within(trial) and better:
            self._best = trial
        best = "" if self._best is None else self._text(self._best)
        self._shown.update(trial.index + 1, best)

    def _within(self, trial: Trial) -> bool:
        costs = {} if trial.measurement is None else trial.measurement.costs
        return all(costs.get(name, 0.0) <= most for name, most in self.limits.items())

    def end(self, trials: int) -> None:
        """Shows how many trials it was, those that were known before included."""
        self._ended = True
        if self._best is not None:
            self._shown.update(trials, self._text(self._best))

    def _text(self, trial: Trial) -> str:
        found = trial.measurement
        if found is None:
            return f"failed: {trial.error}"
        names = dict.fromkeys([self._score, "top1"])
        scores = [f"{name} {found.metrics[name]:.4f}" for name in names if name in found.metrics]
        shares = [
            f"{name} {100 * found.costs[name] / self.dense[name]:.1f} %"
            for name in ("macs", "params")
            if self.dense.get(name)
        ]
        return f"best: {', '.join([*scores, *shares])}"


def failures_of(result: Mapping[str, Any]) -> list[str]:
    """A line for every network of a finished run whose training failed."""
    failures = result.get("failures")  # earlier versions did not write it
    return [str(line) for line in failures] if isinstance(failures, list) else []


def _new_run_dir(config: Mapping[str, Any]) -> str:
    """A folder below runs/ that is not there yet, named after what runs and when."""
    settings = config["model"]
    model = str(settings["factory"] if settings["name"] == "custom" else settings["name"])
    strategy = str(config["strategy"]["_target_"]).rpartition(".")[2].lower()
    name = model.replace(":", ".").rpartition(".")[2]
    # To the millisecond: a loop of a shell starts several in a second.
    return f"runs/{name}-{strategy}-{f'{datetime.now():%Y%m%d-%H%M%S-%f}'[:-3]}"
