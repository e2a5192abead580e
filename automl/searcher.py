"""``automl.Searcher``: from a model and a way to score it to a pruned network, in five lines."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict
from inspect import Parameter, signature
from numbers import Integral, Real
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from automl.budget import Budget
from automl.cost import standard_costs
from automl.cost.masked import masked_costs
from automl.engines import Engine
from automl.engines import load as load_engine
from automl.environment import environment
from automl.finalists import chosen, searched
from automl.graph.trace import trace
from automl.journal import Journal, Row
from automl.loggers import Callback, Guarded, SearchInfo
from automl.policy import Policy
from automl.problem import Problem, Trial, TrialLog
from automl.pruning.masked_plan import MaskedPlan
from automl.pruning.refine import Refinement, require_inputs
from automl.pruning.sparse_pruner import pruner_for
from automl.racing import Racing
from automl.runs import COMPARISONS, JOURNAL, POLICY, SEARCHER, TRIALS, RunFolder
from automl.scoring import UserScorer
from automl.search_run import SearchRun
from automl.seeding import MOST_SEED, own_random_numbers
from automl.strategies import strategy_of
from automl.types import (
    CostModel,
    InputError,
    Resource,
    Scorer,
    Strategy,
    is_whole,
    one_or_more,
)

Evaluate = Callable[[nn.Module], float | Mapping[str, float]]
Finetune = Callable[[nn.Module], nn.Module | None]

#: Settings that are plain data; NumPy's numbers once they are Python's.
_SCALARS = (str, Real)
#: Parameters that stand for others.
_ANY = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


class Searcher:
    """Searches how much to prune from every layer of a network.

    Example:
        >>> searcher = Searcher(model, example_inputs, evaluate, budget={"macs": 0.5})
        >>> run = searcher.search(trials=5, seed=0)
        >>> list(run.compare("uniform").index)
        ['dense', 'uniform', 'found']
        >>> small = run.apply()
        >>> automl.trace(small, example_inputs).macs <= 0.5 * searcher.trace.macs
        True

    Attributes:
        trace: The network's structure.
        pruner: Makes slim networks.
        scorer: Scores them.
        budget: What they may cost.
        strategy: Chooses which to try.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Tensor | Sequence[Any],
        evaluate: Evaluate | Scorer,
        *,
        budget: Budget | Mapping[str, Any],
        strategy: str | Strategy = "amc",
        run_dir: str | os.PathLike[str] | None = None,
        finetune: Finetune | None = None,
        calibration: Tensor | None = None,
        refine: Refinement | None = None,
        criterion: str = "l2",
        granularity: str | Sequence[str] = "channel",
        rounding: int = 8,
        min_keep: float = 0.0,
        exclude: str | Sequence[str] = (),
        score_key: str | None = None,
        costs: Mapping[Resource, CostModel] | None = None,
        max_failures: int = 3,
        on_trial: Callable[[Trial], None] | None = None,
        engine: str | Engine = "serial",
        callbacks: Sequence[Callback] = (),
        racing: Racing | None = None,
    ) -> None:
        """Traces the network and checks everything that can be checked without scoring.

        Args:
            model: The dense network; it is put in eval mode, its weights are not touched.
            example_inputs: A tensor or the arguments of ``forward``, first dimension the batch.
            evaluate: ``evaluate(model) -> float | {name: float}`` on held-out data, higher is
                better; or a scorer, such as ``automl.scoring.ClassifierScorer``.
            budget: What the result may cost, such as ``{"macs": 0.5}`` (see ``Budget.parse``).
            strategy: A name from conf/strategy, or an object that searches; what its constructor
                takes, and it shows as attributes, tells its searches from others.
            run_dir: Where trials, policy and tables are written, and from where a search that
                was cut goes on; None keeps them in memory.
            finetune: ``finetune(model)`` trains the final network in place, or returns it.
            calibration: Unlabelled training inputs, shape (images, ...), on which layers that
                read pruned channels are fitted anew; None leaves them as they are.
            refine: How the final network is refined on them (``automl.Refinement()``); None: not.
            criterion: Which units go first; a name from conf/criterion.
            granularity: What is removed together, see ``automl.prune``.
            rounding: Kept counts are multiples of this where targets are large enough.
            min_keep: Least fraction of its units that every target keeps.
            exclude: Shell patterns of layers to leave alone; one, or several.
            score_key: The score among what ``evaluate`` returns; by default ``"score"``.
            costs: More cost models, for resources besides macs, params and size_bytes.
            max_failures: So many failed trials in a row stop the search.
            on_trial: Called after every trial, for progress; what it raises ends the search.
            engine: Where trials run: a name from conf/engine, which lives as long as a search,
                or an engine, such as ``automl.engines.load("process", n=4)``, which stays open.
            callbacks: Watch the search (see ``automl.loggers``); one that fails is left out.
            racing: How trials are given up that fall behind (``automl.racing``); needs a
                ``ClassifierScorer``.

        Raises:
            InputError: The network cannot be traced, the budget cannot be met, or an argument is
                malformed.
        """
        require_inputs(refine, calibration)
        self._exclude = one_or_more(exclude)
        self.trace = trace(model, example_inputs, exclude=self._exclude)
        prunes: dict[str, Any] = {
            "exclude": self._exclude,
            "criterion": criterion,
            "calibration": calibration,
        }
        self.pruner = self._finisher = pruner_for(self.trace, granularity, **prunes)
        if refine is not None:
            self._finisher = pruner_for(self.trace, granularity, **prunes, refine=refine)
        plan = self.pruner.plan
        counted = masked_costs(plan) if isinstance(plan, MaskedPlan) else standard_costs(plan)
        steps = plan.steps(rounding) if isinstance(plan, MaskedPlan) else rounding
        self.scorer = _scorer(evaluate, score_key)
        self.budget = Budget.parse(budget)
        self.strategy = strategy_of(strategy)
        self._described = _describe(self.strategy)  # now: it may change while it searches
        self._costs = {**counted, **(costs or {})}
        self._settings: dict[str, Any] = {"rounding": steps, "min_keep": min_keep}
        self._max_failures = max_failures
        self._finetune = finetune
        self._on_trial, self._callbacks = on_trial, tuple(callbacks)
        self._engine, self._racing = engine, racing
        self._folder = None if run_dir is None else RunFolder(Path(run_dir))
        self._log: list[Row] = []
        self._compared: list[Row] = []
        self._make_problem(None, racing=racing)

    def search(self, trials: int = 200, seed: int = 0) -> SearchRun:
        """Searches, or goes on with the search that the run folder holds.

        Args:
            trials: How many policies to try at most.
            seed: Of the strategy.

        Returns:
            What was found; in the run folder, the policy and the table of trials are written. Where
            ``result.exhausted``, there were fewer new policies than trials (see ``rounding``).

        Raises:
            InputError: The dense network cannot be scored, an argument is out of range, the run
                folder holds another search or is in use, or the strategy returns no result within
                the budget. Trials that were scored stay in the run folder.
            SearchStopped: Too many trials in a row failed.
        """
        for name, value, least in (("trials", trials, 1), ("seed", seed, 0)):
            if not is_whole(value, least):
                raise InputError(f"{name} must be an integer >= {least}, got {value!r}")
        trials, seed = int(trials), int(seed)
        if seed > MOST_SEED:
            raise InputError(f"seed must be at most {MOST_SEED}, got {seed}")
        if self._folder is None:
            return self._run(self._log, self._compared, trials, seed)
        with self._folder.lock():
            self._folder.start(self._identity(seed), environment)
            compared = _rows(self._folder.file(COMPARISONS))
            with Journal(self._folder.file(JOURNAL)) as journal:
                run = self._run(journal, compared, trials, seed)
                journal.write_parquet(self._folder.file(TRIALS))
            run.policy.save(self._folder.file(POLICY))
        return run

    def _run(self, log: TrialLog, known: Iterable[Row], trials: int, seed: int) -> SearchRun:
        path = None if self._folder is None else self._folder.path
        watch = Guarded(self._callbacks, self._on_trial)
        with self._open_engine() as engine, watch.to_the_end():
            problem = self._make_problem(log, watch.on_trial, engine, self._racing, known)
            dense = problem.dense  # first: where it cannot be scored, nothing can
            settings, limits = self._identity(seed), problem.limits
            watch.on_search_start(SearchInfo(settings, dense.costs, limits, path))
            result = searched(self.strategy, problem, trials, seed)
            watch.on_search_end(chosen(result))
        return SearchRun(self, result, dense, trials, seed)

    @contextmanager
    def _open_engine(self) -> Iterator[Engine]:
        """The engine that was given, or the one that was named, closed after the block."""
        if not isinstance(self._engine, str):
            yield self._engine
            return
        with closing(load_engine(self._engine)) as engine:
            yield engine

    @contextmanager
    def problem(self) -> Iterator[Problem]:
        """The problem, with everything scored so far; holds the run folder's lock.

        What is scored here goes to a journal of its own (``comparisons.jsonl``), so that the
        search's holds nothing but the search. A search knows it all the same.

        Raises:
            InputError: The run folder is in use.
        """
        with ExitStack() as opened:
            engine = opened.enter_context(self._open_engine())
            log: TrialLog = self._compared
            known = self._log
            if self._folder is not None:
                opened.enter_context(self._folder.lock())
                known = _rows(self._folder.file(JOURNAL))
                log = opened.enter_context(Journal(self._folder.file(COMPARISONS)))
            yield self._make_problem(log, engine=engine, known=known)

    def several_examples(self) -> Tensor:
        """Example inputs, at least three, to check exported programs on.

        Raises:
            InputError: The network takes more than one tensor.
        """
        inputs = self.trace.example_inputs
        if len(inputs) != 1 or not isinstance(inputs[0], Tensor):
            raise InputError("only networks that take one tensor can be exported as programs")
        return torch.cat([inputs[0]] * math.ceil(3 / len(inputs[0])))

    def finished(self, policy: Policy) -> nn.Module:
        """The network of a policy: pruned, repaired and, where asked for, refined and trained."""
        network = self._finisher.prune(policy)
        if self._finetune is None:
            return network
        with own_random_numbers(policy.key):
            tuned = self._finetune(network)
        if not isinstance(tuned, nn.Module | None):
            raise InputError(
                f"finetune must return the network, or None where it trains in place, "
                f"got {type(tuned).__name__}"
            )
        return network if tuned is None else tuned

    def _make_problem(
        self,
        log: TrialLog | None,
        on_trial: Callable[[Trial], None] | None = None,
        engine: Engine | None = None,
        racing: Racing | None = None,
        known: Iterable[Row] = (),
    ) -> Problem:
        return Problem(
            self.pruner.plan,
            self.pruner,
            self.scorer,
            self.budget,
            self._costs,
            journal=log,
            known=known,
            on_trial=on_trial,
            max_failures=self._max_failures,
            engine=engine,
            racing=racing,
            **self._settings,
        )

    def _identity(self, seed: int) -> dict[str, Any]:
        """What makes two searches the same one, as plain data."""
        found: dict[str, Any] = _plain({
            "started_by": SEARCHER,
            "model": self.pruner.model_hash,
            "pruner": self.pruner.fingerprint,
            "scorer": self.scorer.fingerprint,
            "budget": self.budget.to_dict(),
            "strategy": self._described,
            "exclude": list(self._exclude),
            **self._settings,
            **({} if self._racing is None else {"racing": asdict(self._racing)}),
            "seed": seed,
        })  # fmt: skip
        return found


def _scorer(evaluate: Evaluate | Scorer, score_key: str | None) -> Scorer:
    if hasattr(evaluate, "fingerprint"):
        return cast(Scorer, evaluate)
    return UserScorer(evaluate, score_key)


def _describe(strategy: Strategy) -> dict[str, Any]:
    """Class and settings, as plain data.

    Settings are what the constructor takes and the strategy shows under the same name: all else
    may be results. What is None or empty is left out, which says the same.
    """
    kind = type(strategy)
    settings = {name: _plain(getattr(strategy, name, None)) for name in _settings_of(strategy)}
    described = {name: value for name, value in settings.items() if value not in (None, [], {})}
    return {"class": f"{kind.__module__}.{kind.__qualname__}", **described}


def _settings_of(strategy: Strategy) -> list[str]:
    """Names of what the constructor takes; where it does not tell, of every public scalar too."""
    named: list[str] = []
    with suppress(ValueError):  # of a class that is not written in Python
        taken = signature(type(strategy)).parameters.values()
        named = [one.name for one in taken if one.kind not in _ANY]
        if len(named) == len(taken):
            return named
    held = getattr(strategy, "__dict__", {})
    scalars = [name for name, value in held.items() if isinstance(value, _SCALARS)]
    return [*named, *(name for name in scalars if name not in named and name[0] != "_")]


def _plain(value: Any) -> Any:
    """Like a value, but plain data: tuples are lists; None where it is none, or what it holds."""
    if isinstance(value, bool | str):
        return value
    if isinstance(value, Real):
        return int(value) if isinstance(value, Integral) else float(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else None


def _rows(path: Path) -> list[Row]:
    """The rows of a journal, none where there is no journal."""
    return Journal.read(path) if path.exists() else []
