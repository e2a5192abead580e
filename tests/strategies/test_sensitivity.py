from dataclasses import replace

import numpy as np
import pytest
import toy

from automl.strategies import load
from automl.strategies.sensitivity import Informed, Sensitivity, analyse, by_threshold, probes_for
from automl.strategies.sensitivity_analysis import Analysis, plan_probes
from automl.strategies.sensitivity_model import Interaction
from automl.strategies.sensitivity_solver import Solver
from automl.types import InputError


def scorer(n: int = 4, **settings) -> toy.Scorer:
    return toy.Scorer(np.linspace(1, 2, n), **settings)


def within(problem, result):
    return [t for t in result.trials if problem.within(t.policy.kept(problem.targets))]


def test_it_finds_the_optimum_of_additive_damage():
    problem = toy.problem()
    result = Sensitivity().search(problem, 60, 0)
    solver = Solver(problem)
    every = np.stack(np.meshgrid(*map(np.arange, solver.sizes), indexing="ij"), -1).reshape(-1, 4)
    every = every[solver.within(every)]
    removed = 1 - solver.kept(every) / problem.space.units
    best = (1 - removed**2 @ np.linspace(1, 2, 4)).max()
    assert problem.evaluate(result.policy).score == pytest.approx(best)


def test_it_is_never_worse_than_uniform():
    problem = toy.problem(scorer=toy.Scorer(np.array([9.0, 0.1, 3.0, 0.1])))
    result = load("sensitivity").search(problem, 12, 0)
    uniform = problem.evaluate(problem.policy(problem.fit(np.ones(4))))
    assert uniform.index == 0
    assert problem.evaluate(result.policy).score >= uniform.score


def test_another_budget_pays_only_for_refinement(tmp_path):
    from automl.journal import Journal

    first, second = scorer(), scorer()
    trials = 24
    with Journal(tmp_path / "trials.jsonl") as journal:
        half = toy.problem(scorer=first, journal=journal)
        Sensitivity(analysis=0.5).search(half, trials, 0)
    with Journal(tmp_path / "trials.jsonl") as journal:
        quarter = toy.problem(budget={"macs": 0.25}, scorer=second, journal=journal)
        result = Sensitivity(analysis=0.5).search(quarter, trials, 0)
    probes = len(plan_probes(quarter, probes_for(quarter, trials, 0.5)))
    assert probes >= 10
    assert len(result.trials) == trials
    assert len(second.seen) <= trials - probes - 1  # the dense network is known too
    assert all(quarter.within(policy.kept(quarter.targets)) for policy in second.seen)


def test_two_limits_at_once_are_met_and_used():
    problem = toy.problem(budget={"macs": 0.5, "params": 0.4})
    result = Sensitivity().search(problem, 40, 0)
    kept = result.policy.kept(problem.targets)
    assert problem.within(kept)
    step = np.minimum(kept + np.diag(problem.space.step), problem.space.units)
    assert not problem.within(step[(step != kept).any(axis=1)]).any()


@pytest.mark.parametrize("trials", [1, 2, 3, 4, 7])
def test_few_trials_are_not_exceeded_and_give_a_result(trials):
    score = scorer()
    problem = toy.problem(scorer=score)
    result = Sensitivity().search(problem, trials, 0)
    assert len(score.seen) == len(result.trials) <= trials
    assert within(problem, result)


def test_fewer_trials_than_targets_are_said_and_group_neighbours(caplog):
    problem = toy.problem((16,) * 9, scorer=scorer(9))
    Sensitivity().search(problem, 8, 0)
    assert "pruned together" in caplog.text
    probes = plan_probes(problem, 5)
    assert sorted(t for probe in probes for t in probe.members) == list(range(9))


def test_without_refinement_the_first_policy_of_the_analysis_ends_the_search():
    problem = toy.problem()
    result = Sensitivity(refine=False).search(problem, 60, 0)
    assert len(within(problem, result)) == 2  # uniform, and the policy


def test_the_threshold_is_the_least_that_meets_the_budget():
    problem = toy.problem((16, 16, 32, 64), {"macs": 0.4})
    solver = Solver(problem)
    damage = [(1 - grid / grid[-1]) ** 2 for grid in problem.grids]
    table = solver.table(damage)
    kept = by_threshold(problem, table)
    at = solver.positions(kept)
    worst = table[np.arange(4), at].max()
    assert problem.within(kept)
    # Whatever lies below the worst damage does not fit when every target is held below it.
    stricter = np.array([np.flatnonzero(curve < worst)[0] for curve in damage])
    assert not solver.within(stricter)


def test_failed_probes_are_done_without():
    score = scorer(faults={3: RuntimeError("out of memory"), 5: float("nan")})
    problem = toy.problem(scorer=score)
    result = Sensitivity().search(problem, 40, 0)
    assert sum(trial.status == "failed" for trial in result.trials) == 2
    assert problem.evaluate(result.policy).score > 0


def test_a_network_that_nothing_hurts_is_pruned_all_the_same():
    problem = toy.problem(scorer=toy.Scorer(np.zeros(4)))
    result = Sensitivity().search(problem, 20, 0)
    assert problem.within(result.policy.kept(problem.targets))


def test_noise_does_not_break_it():
    rng = np.random.default_rng(0)
    problem = toy.problem(scorer=scorer(every=lambda call: 0.9 + 0.05 * rng.standard_normal()))
    result = Sensitivity().search(problem, 30, 0)
    assert problem.within(result.policy.kept(problem.targets))


def test_another_metric_can_be_added_up():
    problem = toy.problem()
    by_loss = Sensitivity(damage="loss", refine=False).search(problem, 40, 0)
    by_score = Sensitivity(refine=False).search(problem, 40, 0)
    assert by_loss.policy == by_score.policy  # the toy's loss is its score


def test_bad_settings_are_refused():
    with pytest.raises(InputError, match="did you mean 'threshold'"):
        Sensitivity(policy="treshold")
    with pytest.raises(ValueError, match=r"Sensitivity.analysis must be in \[0, 1\], got 2"):
        Sensitivity(analysis=2)
    with pytest.raises(ValueError, match=r"Sensitivity.trials must be >= 1, got 0"):
        Sensitivity().search(toy.problem(), 0, 0)
    with pytest.raises(InputError, match="must be one of score, top1, loss here, got 'kl'"):
        Sensitivity(damage="kl").search(toy.problem(), 20, 0)


def test_the_dense_network_failing_does_not_stop_the_search():
    score = scorer(faults={1: RuntimeError("once")})  # 0 is uniform, 1 dense
    problem = toy.problem(scorer=score)
    result = Sensitivity().search(problem, 20, 0)
    assert isinstance(result.trials[1].error, str)
    assert problem.evaluate(result.policy).status == "ok"
    assert not np.isnan(Analysis(result.trials[1], (), result.trials[2:5]).damages()).any()


def test_metrics_whose_better_direction_is_not_known_are_not_added_up():
    class Named(toy.Scorer):
        def __call__(self, model):
            score, metrics = super().__call__(model)
            return score, {**metrics, "psnr": score}

    problem = toy.problem(scorer=Named(np.linspace(1, 2, 4)))
    with pytest.raises(InputError, match="must be one of score, top1, loss here, got 'psnr'"):
        Sensitivity(damage="psnr").search(problem, 20, 0)


def test_policies_as_good_as_the_dense_network_count_as_the_best():
    problem = toy.problem(rounding=4)
    analysis = analyse(problem, 12)
    informed = Informed(problem, analysis)
    some = [informed.solver.kept(informed.solver.solve(informed.table))]
    some += list(informed.near(some, np.random.default_rng(0)))[:20]
    trials = [problem.evaluate(problem.policy(kept)) for kept in some]
    best, others = trials[0], trials[1:]
    better = replace(best, measurement=replace(best.measurement, score=1.5))
    with_it, without = informed.judge([better, *others]), informed.judge(others)
    # It was tried, so nothing is to be gained there; and less elsewhere than over the others.
    assert with_it(some[0][None]) < 0.1 * without(some[0][None])
    assert with_it(np.stack(some[1:])).max() < without(np.stack(some[1:])).max()


def test_of_many_policies_the_best_and_the_latest_are_learned_from(monkeypatch):
    problem = toy.problem(rounding=1)
    informed = Informed(problem, analyse(problem, 12))
    rng = np.random.default_rng(0)
    kept = list({k.tobytes(): k for k in (problem.fit(rng.random(4)) for _ in range(60))}.values())
    trials = problem.evaluate_many([problem.policy(one) for one in kept])
    monkeypatch.setattr("automl.strategies.sensitivity._MOST_FITTED", 20)
    learned_from = []
    fitted = Interaction.fitted

    def watched(alone, keep, damage):
        learned_from.append({tuple(row) for row in keep})
        return fitted(alone, keep, damage)

    monkeypatch.setattr(Interaction, "fitted", watched)
    by_score = sorted(trials, key=lambda trial: -trial.score)
    for given in (trials, by_score):
        informed.judge(given)
        learned, units = learned_from[-1], problem.space.units
        assert len(learned) == 20
        for trial in [*by_score[:10], *trials[-5:]]:
            assert tuple(trial.policy.kept(problem.targets) / units) in learned
